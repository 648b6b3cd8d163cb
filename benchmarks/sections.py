"""The sections of the benchmark. Each starts its servers, alternates them with the no-op server, and stops them."""

import asyncio
import functools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
from sqlalchemy import make_url

from benchmarks.access import access
from benchmarks.comparisons import comparisons
from benchmarks.interpreters import interpreters
from benchmarks.metrics import metrics
from benchmarks.overload import Peak, fairness, overload
from benchmarks.parts import parts
from benchmarks.plan import CARTS, IN_FLIGHT, SKUS, Plan, Section
from benchmarks.programs import ROOT, Json, Testbed, interleave, measure
from benchmarks.reserved import reserved, wait_until_reserved
from benchmarks.shards import shards
from benchmarks.traces import traces
from benchmarks.watch import watch


def table(testbed: Testbed, database: str, plan: Plan) -> Json:
    """Measure AddItem and GetCart against the no-op, with the reconciler paused. `reserved` measures it at work.

    `get` reads carts that do not change and were read before. `get changing` reads the carts that AddItem changes.
    """
    product = testbed.serve(testbed.database(database, carts=2 * CARTS, items=SKUS))
    noop, served = testbed.noop, product.program
    ask = functools.partial(measure, duration=plan.seconds, carts=CARTS, skus=SKUS)
    many = {
        "noop": lambda: ask(noop, "noop", in_flight=IN_FLIGHT),
        "add": lambda: ask(served, "add", in_flight=IN_FLIGHT),
        "get": lambda: ask(served, "get", in_flight=IN_FLIGHT, first_cart=CARTS),
        "get changing": lambda: ask(served, "get", in_flight=IN_FLIGHT),
    }
    alone = {
        "noop_alone": lambda: ask(noop, "noop", in_flight=1),
        "add_alone": lambda: ask(served, "add", in_flight=1),
        "get_alone": lambda: ask(served, "get", in_flight=1, first_cart=CARTS),
    }
    many["get"]()
    idle = interleave({**many, **alone}, plan.rounds)
    durable = asyncio.run(commit_us(product.database_url)) if database == "postgresql" else fsync_us(testbed.folder)
    served.stop()
    return {"idle": idle, "durable_us": durable}


def fsync_us(folder: Path, times: int = 200) -> float:
    """Return the median time of writing 8 KiB to disk, in µs."""
    file = os.open(folder / "fsync", os.O_CREAT | os.O_RDWR)
    took = []
    for turn in range(times):
        started = time.perf_counter()
        os.pwrite(file, b"\0" * 8192, turn * 8192)
        os.fdatasync(file)
        took.append(time.perf_counter() - started)
    os.close(file)
    return round(statistics.median(took) * 1e6, 1)


async def commit_us(url: str, times: int = 200) -> float:
    """What it costs PostgreSQL to commit one row, in µs: the median."""
    parsed = make_url(url)
    connection = await asyncpg.connect(user=parsed.username, database=parsed.database, host=str(parsed.query["host"]))
    await connection.execute("CREATE TABLE commits (n bigint)")
    took = []
    for turn in range(times):
        started = time.perf_counter()
        await connection.execute("INSERT INTO commits VALUES ($1)", turn)
        took.append(time.perf_counter() - started)
    await connection.execute("DROP TABLE commits")
    await connection.close()
    return round(statistics.median(took) * 1e6, 1)


def concurrency(testbed: Testbed, database: str, plan: Plan) -> Json:
    """Throughput and latency as more is in flight."""
    product = testbed.serve(testbed.database(database, carts=2 * CARTS, items=SKUS))
    results: Json = {}
    for in_flight in (1, 8, 64, 256):
        ask = functools.partial(measure, duration=plan.seconds, in_flight=in_flight, carts=CARTS, skus=SKUS)
        contenders = {
            "noop": functools.partial(ask, testbed.noop, "noop"),
            "add": functools.partial(ask, product.program, "add"),
            "get": functools.partial(ask, product.program, "get", first_cart=CARTS),
        }
        results[str(in_flight)] = interleave(contenders, max(2, plan.rounds - 1))
    product.program.stop()
    return results


def flatness(testbed: Testbed, database: str, plan: Plan) -> Json:
    """Measure AddItem and GetCart on large databases against small ones. The servers take turns."""
    fillings = {
        "few": {"carts": 2 * CARTS, "items": SKUS},
        "many pending": {"carts": 2 * CARTS, "items": SKUS, "pending": plan.rows},
        "many finished": {"carts": 2 * CARTS, "items": SKUS, "finished": plan.rows},
        "1 item": {"carts": 2 * CARTS, "items": 1},
        "many carts": {"carts": plan.rows, "items": 1},
        "200 items": {"carts": CARTS // 5, "items": 200},
    }
    # If there are twice as many carts as AddItem uses, GetCart reads the other half, which does not change.
    asked = {"many carts": plan.rows, "200 items": CARTS // 5}
    products = {name: testbed.serve(testbed.database(database, **filling)) for name, filling in fillings.items()}
    ask = functools.partial(measure, duration=plan.seconds, in_flight=IN_FLIGHT)
    contenders: dict[str, Callable[[], Json]] = {"noop": functools.partial(ask, testbed.noop, "noop", carts=CARTS)}
    for name, product in products.items():
        carts, skus = asked.get(name, CARTS), fillings[name]["items"]
        still = fillings[name]["carts"] - carts
        for call, first in (("add", 0), ("get", still)):
            contenders[f"{call}, {name}"] = functools.partial(
                ask, product.program, call, carts=carts, skus=skus, first_cart=first
            )
    contenders["add, one hot cart"] = functools.partial(ask, products["200 items"].program, "add", carts=1, skus=200)
    results = interleave(contenders, plan.rounds)
    for product in products.values():
        product.program.stop()
    return {"rows": plan.rows, **results}


def settling(testbed: Testbed, database: str, plan: Plan) -> Json:
    """Measure how many reservations of a backlog settle per second, with all processes on the same cores."""
    backlog = plan.rows
    product = testbed.serve(testbed.database(database, pending=backlog))
    peak = Peak(product.program.memory_mib)
    cpu, started = product.program.cpu_seconds(), time.monotonic()
    product.resume()
    with peak.running():
        # To count a million rows takes the server a second, so it is asked seldom.
        wait_until_reserved(product, per_s=3_000, timeout=60 + backlog / 500, longest_sleep=30)
    took, cpu = time.monotonic() - started, product.program.cpu_seconds() - cpu
    product.program.stop()
    return {
        "backlog": backlog,
        "seconds": took,
        "per_s": backlog / took,
        "cpu_us": cpu / backlog * 1e6,
        "peak_mib": peak.highest,
    }


def slow_calls(testbed: Testbed, database: str, plan: Plan) -> Json:
    """Measure AddItem while 10,000 calls of the Reservation API hang, and the memory of one of them."""
    slow = testbed.simulate("90s")
    wanted = 10_000
    url = testbed.database(database, carts=CARTS, items=SKUS, pending=wanted)
    product = testbed.serve(url, api=slow, CART_RESERVATION_MAX_IN_FLIGHT=str(wanted))
    # Long enough to include the work that the server does for all of them every few seconds.
    ask = functools.partial(measure, in_flight=IN_FLIGHT, carts=CARTS, skus=SKUS)
    contenders = {
        "noop": functools.partial(ask, testbed.noop, "noop", duration=plan.seconds),
        "add": functools.partial(ask, product.program, "add", duration=3 * plan.seconds),
    }
    before = interleave(contenders, plan.rounds)
    memory = product.program.memory_mib()
    product.resume()
    deadline = time.monotonic() + 30
    while (hanging := product.stats().reconciler.in_flight_count) < wanted and time.monotonic() < deadline:
        time.sleep(0.2)
    each = (product.program.memory_mib() - memory) * 1024 / max(hanging, 1)
    during = interleave(contenders, plan.rounds)
    product.program.stop()
    slow.stop()
    return {"hanging": hanging, "kib_each": each, "before": before, "during": during}


def workers(testbed: Testbed, database: str, plan: Plan) -> Json | None:
    """Measure several processes on one PostgreSQL, each with as many calls in flight. None on SQLite."""
    offered = subprocess.run(
        [sys.executable, "-m", "cart_grpc", "serve", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    if database == "sqlite" or "--workers" not in offered:
        return None
    contenders: dict[str, Callable[[], Json]] = {
        "noop": functools.partial(measure, testbed.noop, "noop", duration=plan.seconds, in_flight=IN_FLIGHT)
    }
    served = {}
    for count in (1, 2):
        url = testbed.database(database, carts=CARTS, items=SKUS)
        served[count] = testbed.serve(url, f"--workers={count}").program
        contenders[str(count)] = functools.partial(
            measure,
            served[count],
            "add",
            duration=plan.seconds,
            in_flight=count * IN_FLIGHT,
            connections=count * 8,
            carts=CARTS,
        )
    results = interleave(contenders, plan.rounds)
    for program in served.values():
        program.stop()
    return results


SECTIONS: dict[str, Section] = {
    "reserved": reserved,
    "parts": parts,
    "table": table,
    "concurrency": concurrency,
    "flatness": flatness,
    "settling": settling,
    "slow calls": slow_calls,
    "overload": overload,
    "fairness": fairness,
    "workers": workers,
    "watch": watch,
    "access": access,
    "metrics": metrics,
    "traces": traces,
    "shards": shards,
    "comparisons": comparisons,
    "interpreters": interpreters,
}
