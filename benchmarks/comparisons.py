"""Other designs on the same work, in the same rounds: items that are reserved at the simulator."""

import asyncio
import contextlib
import functools
import re
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
from sqlalchemy import make_url

from benchmarks import http_load
from benchmarks.plan import CARTS, IN_FLIGHT, SKUS, Plan
from benchmarks.programs import Json, Product, Program, Testbed, interleave, load, measure
from benchmarks.reserved import reserve

_HTTP = re.compile(r"and http://(127\.0\.0\.1:\d+)")


def comparisons(testbed: Testbed, database: str, plan: Plan) -> Json:
    """Measure reserved items of the product and of another design, and calls of an ORM session per request.

    On SQLite the other design is FastAPI with background tasks, on PostgreSQL an ORM session per request with a job
    queue. On SQLite also the no-op on asyncio's own event loop.
    """
    started: list[Program] = []
    ask = functools.partial(measure, duration=plan.seconds, in_flight=IN_FLIGHT, carts=CARTS, skus=SKUS)
    contenders: dict[str, Callable[[], Json]] = {"noop": functools.partial(ask, testbed.noop, "noop")}
    product = testbed.serve(testbed.database(database, carts=CARTS, items=SKUS))
    product.resume()
    contenders["reserved"] = functools.partial(reserve, testbed, product, seconds=2 * plan.seconds)
    orm = testbed.start("benchmarks.orm_server", testbed.database(database))
    # Only 20 carts of 20 items: this server would take minutes to fill more.
    load(orm.address, "--each", carts=20, skus=SKUS)
    contenders["orm add"] = functools.partial(ask, orm, "add", warmup=1)
    contenders["orm get"] = functools.partial(measure, orm, "get", duration=plan.seconds, in_flight=IN_FLIGHT, carts=20)
    started += [product.program, orm]
    if database == "sqlite":
        asyncio_noop = testbed.start("benchmarks.servers", "noop", "asyncio")
        contenders["asyncio noop"] = functools.partial(ask, asyncio_noop, "noop")
        exercise = Exercise(testbed)
        contenders["exercise reserved"] = functools.partial(exercise.reserve, seconds=2 * plan.seconds)
        contenders["exercise get"] = exercise.get(2 * plan.seconds)
        started += [exercise.program, asyncio_noop]
    else:
        url = testbed.database(database)
        queue = JobQueue(testbed.start("benchmarks.queue_server", url, testbed.simulator.address), url, "")
        contenders["queue reserved"] = functools.partial(reserve, testbed, queue, seconds=2 * plan.seconds)
        started += [queue.program]
    for name, contender in contenders.items():
        if name.endswith("reserved"):
            contender()
    results = interleave(contenders, plan.rounds)
    for program in started:
        program.stop()
    return results


class JobQueue(Product):
    """A running `queue_server`."""

    def count_reconciling(self) -> int:
        """Return how many jobs are queued or at work. Raises RuntimeError if a job failed for good."""
        return asyncio.run(_count_jobs(self.database_url))


async def _count_jobs(url: str) -> int:
    parsed = make_url(url)
    connection = await asyncpg.connect(user=parsed.username, database=parsed.database, host=str(parsed.query["host"]))
    try:
        rows = await connection.fetch("SELECT status, count(*) FROM procrastinate_jobs GROUP BY status")
    finally:
        await connection.close()
    if failed := {status: count for status, count in rows if status not in {"todo", "doing", "succeeded"}}:
        raise RuntimeError(f"jobs failed: {failed}")
    return sum(count for status, count in rows if status in {"todo", "doing"})


class Exercise:
    """A running `exercise_server`, which reserves at the simulator by the `basic` contract."""

    def __init__(self, testbed: Testbed) -> None:
        self._file = testbed.folder / "exercise.db"
        api = f"http://{testbed.simulator.says(_HTTP)}/basic"
        self.program = testbed.start("benchmarks.exercise_server", str(self._file), api)
        self._simulator = testbed.simulator

    def get(self, seconds: float) -> Callable[[], Json]:
        return functools.partial(http_load.measure, self.program, "get", duration=seconds, carts=CARTS)

    def reserve(self, *, seconds: float) -> Json:
        """Add items for `seconds`, wait until all are reserved, and return the cost of an item. See `reserved`."""
        before, api_before, started = self.program.cpu_seconds(), self._simulator.cpu_seconds(), time.monotonic()
        stored = _count(self._file, "")
        found = http_load.measure(self.program, "add", duration=seconds, carts=CARTS)
        deadline = time.monotonic() + 120
        while left := _count(self._file, "WHERE reservation_id IS NULL"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{left} items are not reserved")
            time.sleep(0.05)
        took = time.monotonic() - started
        items = _count(self._file, "") - stored
        cpu, api = self.program.cpu_seconds() - before, self._simulator.cpu_seconds() - api_before
        return {**found, "per_s": items / took, "cpu_us": cpu / items * 1e6, "api_cpu_us": api / items * 1e6}


def _count(file: Path, where: str) -> int:
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM items {where}").fetchone()[0])
