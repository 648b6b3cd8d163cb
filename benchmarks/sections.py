"""What is measured, a function each: it starts what it reads, interleaves it with the no-op server, and ends it."""

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

from benchmarks import http_load
from benchmarks.overload import fairness, overload
from benchmarks.plan import CARTS, IN_FLIGHT, SKUS, Plan, Section
from benchmarks.programs import ROOT, Json, Product, World, interleave, load, measure


def table(world: World, database: str, plan: Plan) -> Json:
    """AddItem and GetCart against the no-op, the reconciler idle; then again while it drains what is due.

    What is read are carts of their own, in which nothing happens meanwhile, and which have been read before; `get
    changing` reads those of AddItem.
    """
    product = world.serve(world.database(database, carts=2 * CARTS, items=SKUS))
    noop, served = world.noop, product.program
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
    durable = asyncio.run(commit_us(product.database_url)) if database == "postgresql" else fsync_us(world.folder)
    product.resume()
    draining = interleave(many, plan.rounds)
    due = product.stats().due_count
    served.stop()
    return {"idle": idle, "draining": draining, "durable_us": durable, "due_at_the_end": due}


def fsync_us(folder: Path, times: int = 200) -> float:
    """What it costs to have 8 KiB on the disk, in µs: the median."""
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


def concurrency(world: World, database: str, plan: Plan) -> Json:
    """Throughput and latency as more is in flight."""
    product = world.serve(world.database(database, carts=2 * CARTS, items=SKUS))
    seen: Json = {}
    for in_flight in (1, 8, 64, 256):
        ask = functools.partial(measure, duration=plan.seconds, in_flight=in_flight, carts=CARTS, skus=SKUS)
        contenders = {
            "noop": functools.partial(ask, world.noop, "noop"),
            "add": functools.partial(ask, product.program, "add"),
            "get": functools.partial(ask, product.program, "get", first_cart=CARTS),
        }
        seen[str(in_flight)] = interleave(contenders, max(2, plan.rounds - 1))
    product.program.stop()
    return seen


def flatness(world: World, database: str, plan: Plan) -> Json:
    """The same with much in the database, against a small one: servers side by side, asked in turn."""
    fillings = {
        "few": {"carts": 2 * CARTS, "items": SKUS},
        "many pending": {"carts": 2 * CARTS, "items": SKUS, "pending": plan.rows},
        "many finished": {"carts": 2 * CARTS, "items": SKUS, "finished": plan.rows},
        "1 item": {"carts": 2 * CARTS, "items": 1},
        "many carts": {"carts": plan.rows, "items": 1},
        "200 items": {"carts": CARTS // 5, "items": 200},
    }
    # Where there are twice as many carts as are asked for, reads have those in which nothing happens.
    asked = {"many carts": plan.rows, "200 items": CARTS // 5}
    products = {name: world.serve(world.database(database, **filling)) for name, filling in fillings.items()}
    ask = functools.partial(measure, duration=plan.seconds, in_flight=IN_FLIGHT)
    contenders: dict[str, Callable[[], Json]] = {"noop": functools.partial(ask, world.noop, "noop", carts=CARTS)}
    for name, product in products.items():
        carts, skus = asked.get(name, CARTS), fillings[name]["items"]
        still = fillings[name]["carts"] - carts
        for call, first in (("add", 0), ("get", still)):
            contenders[f"{call}, {name}"] = functools.partial(
                ask, product.program, call, carts=carts, skus=skus, first_cart=first
            )
    contenders["add, one hot cart"] = functools.partial(ask, products["200 items"].program, "add", carts=1, skus=200)
    seen = interleave(contenders, plan.rounds)
    for product in products.values():
        product.program.stop()
    return {"rows": plan.rows, **seen}


def settling(world: World, database: str, plan: Plan) -> Json:
    """A backlog is worked off: how many reservations are settled a second, all processes on the same cores."""
    backlog = plan.rows
    product = world.serve(world.database(database, pending=backlog))
    product.resume()
    before, cpu, started = _left(product), product.program.cpu_seconds(), time.monotonic()
    # As long as it lasts, or long enough to tell.
    while (left := _left(product)) > 0 and time.monotonic() - started < 10 * plan.seconds:
        time.sleep(0.1)
    took, cpu = time.monotonic() - started, product.program.cpu_seconds() - cpu
    product.program.stop()
    settled = before - left
    return {
        "backlog": backlog,
        "settled": settled,
        "seconds": took,
        "per_s": settled / took,
        "cpu_us": cpu / max(settled, 1) * 1e6,
    }


def _left(product: Product) -> int:
    return sum(kind.count for kind in product.stats().backlog)


def slow_calls(world: World, database: str, plan: Plan) -> Json:
    """AddItem while the Reservation API lets ten thousand calls hang, and what one of them costs in memory."""
    slow = world.simulate("90s")
    wanted = 10_000
    url = world.database(database, carts=CARTS, items=SKUS, pending=wanted)
    product = world.serve(url, api=slow, CART_RESERVATION_MAX_IN_FLIGHT=str(wanted))
    # Long enough to see what is done for all of them every few seconds.
    ask = functools.partial(measure, in_flight=IN_FLIGHT, carts=CARTS, skus=SKUS)
    contenders = {
        "noop": functools.partial(ask, world.noop, "noop", duration=plan.seconds),
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


def workers(world: World, database: str, plan: Plan) -> Json | None:
    """Several processes on one PostgreSQL, each with as much in flight; None where that does not exist."""
    offered = subprocess.run(
        [sys.executable, "-m", "cart_grpc.cli", "serve", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    if database == "sqlite" or "--workers" not in offered:
        return None
    contenders: dict[str, Callable[[], Json]] = {
        "noop": functools.partial(measure, world.noop, "noop", duration=plan.seconds, in_flight=IN_FLIGHT)
    }
    served = {}
    for count in (1, 2):
        url = world.database(database, carts=CARTS, items=SKUS)
        served[count] = world.serve(url, f"--workers={count}").program
        contenders[str(count)] = functools.partial(
            measure,
            served[count],
            "add",
            duration=plan.seconds,
            in_flight=count * IN_FLIGHT,
            connections=count * 8,
            carts=CARTS,
        )
    seen = interleave(contenders, plan.rounds)
    for program in served.values():
        program.stop()
    return seen


def comparisons(world: World, database: str, plan: Plan) -> Json:
    """An ORM session per request on the same proto; on SQLite also the exercise's design, and asyncio's loop."""
    orm = world.start("benchmarks.orm_server", world.database(database))
    # Few carts of twenty items: filling many would take it minutes.
    load(orm.address, "--each", carts=20, skus=SKUS)
    ask = functools.partial(measure, duration=plan.seconds, in_flight=IN_FLIGHT, carts=CARTS, skus=SKUS)
    contenders: dict[str, Callable[[], Json]] = {
        "noop": functools.partial(ask, world.noop, "noop"),
        "orm add": functools.partial(ask, orm, "add", warmup=1),
        "orm get": functools.partial(measure, orm, "get", duration=plan.seconds, in_flight=IN_FLIGHT, carts=20),
    }
    started = [orm]
    if database == "sqlite":
        asyncio_noop = world.start("benchmarks.servers", "noop", "asyncio")
        contenders["asyncio noop"] = functools.partial(ask, asyncio_noop, "noop")
        stub = world.start("benchmarks.exercise_server", "stub")
        url = f"http://{stub.address}/reservations"
        exercise = world.start("benchmarks.exercise_server", str(world.folder / "exercise.db"), url)
        asked = functools.partial(http_load.measure, exercise, duration=2 * plan.seconds, carts=CARTS)
        contenders["exercise get"] = functools.partial(asked, "get")
        contenders["exercise add"] = functools.partial(asked, "add")
        started += [exercise, stub, asyncio_noop]
    seen = interleave(contenders, plan.rounds)
    for program in started:
        program.stop()
    return seen


SECTIONS: dict[str, Section] = {
    "table": table,
    "concurrency": concurrency,
    "flatness": flatness,
    "settling": settling,
    "slow calls": slow_calls,
    "overload": overload,
    "fairness": fairness,
    "workers": workers,
    "comparisons": comparisons,
}
