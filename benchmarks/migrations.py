"""Measures each migration on a large table while the previous release serves: how long, which locks, which stalls.

`python -m benchmarks.migrations --rows 10000000` makes a PostgreSQL server, fills it and measures. It needs 10 GB of
disk and about ten minutes. `--url` measures on a filled database of the previous release's schema instead.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import grpc
from cartgrpc.v1 import cart_pb2, cart_service_pb2, cart_service_pb2_grpc

from benchmarks.fill import Filling, fill
from cart_grpc import app
from cart_grpc.settings import Settings
from cart_grpc.store import migrate, migration_run
from cart_grpc.store.engine import Engine
from cart_grpc.store.migration_run import MigrationRun
from cart_grpc.store.revisions import FIRST, LATEST, VERSIONS
from tests.postgres import running_postgres
from tests.processes.harness import LISTENS, START_SECONDS
from tests.processes.previous import running_previous_programs

CALLERS = 8
QUIET_SECONDS = 5.0
SAMPLE_SECONDS = 0.002
# Not a migration of ours: what an index on a large table costs.
INDEX = f'''"""An index as an example"""
from cart_grpc.store.migrations.operations import build_index

revision, down_revision = "9999", "{LATEST}"
transactional = False


def upgrade() -> None:
    build_index("reservations_example", "reservations", ["sku", "create_time"])
'''
_LOCKS = """
    SELECT c.relname || ' ' || l.mode || CASE WHEN l.granted THEN '' ELSE ' (waits)' END
    FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
    WHERE l.pid = $1 AND c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace
        AND l.mode NOT IN ('AccessShareLock', 'RowExclusiveLock')
"""
_SIZE = """
    SELECT (SELECT count(*) FROM reservations) || ' rows, ' || pg_size_pretty(pg_total_relation_size('reservations'))
"""


class Callers:
    """Callers in a loop, each with a cart of its own. They note when each call ended, and how long it took."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = cart_service_pb2_grpc.CartServiceStub(channel)
        self.calls: list[tuple[float, float]] = []
        self._tasks = [asyncio.create_task(self._call(number)) for number in range(CALLERS)]

    async def _call(self, number: int) -> None:
        item = cart_pb2.Item(sku="beans", quantity=1)
        request = cart_service_pb2.AddItemRequest(parent=f"users/caller{number}/carts/default", item=item)
        while True:
            begin = time.monotonic()
            await self._stub.AddItem(request, timeout=60)
            self.calls.append((time.monotonic(), time.monotonic() - begin))

    def longest(self, begin: float, end: float) -> str:
        """Describe the calls that ran between two times. Raises the error of a call that failed."""
        for task in self._tasks:
            if task.done():
                task.result()
        found = [taken for ended, taken in self.calls if ended >= begin and ended - taken <= end]
        return f"{len(found)} calls, the longest {max(found) * 1000:.0f} ms"

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()


def copy_versions(folder: Path, pattern: str) -> Path:
    """Copy the migrations whose files match `pattern` to a new folder, and return it."""
    folder.mkdir()
    for file in VERSIONS.glob(pattern):
        (folder / file.name).write_text(file.read_text())
    return folder


async def measure(url: str, folder: Path) -> None:
    """Run each pending migration, and the example, while the previous release serves."""
    versions = copy_versions(folder / "all", "[0-9]*.py")
    (versions / "9999_example.py").write_text(INDEX)
    async with app.open_engine(Settings(database_url=url)) as engine:
        observer = await asyncpg.connect(url.replace("+asyncpg", ""))
        print("reservations:", await observer.fetchval(_SIZE))
        with serving(url, folder) as address:
            async with grpc.aio.insecure_channel(await address) as channel:
                callers = Callers(channel)
                await asyncio.sleep(QUIET_SECONDS)
                print(f"before: {callers.longest(0, time.monotonic())} in {QUIET_SECONDS:g} s")
                is_done = False
                while not is_done:
                    is_done = await measure_next(engine, versions, callers, observer)
                callers.stop()
        await observer.close()


@contextmanager
def serving(url: str, folder: Path) -> Iterator["asyncio.Future[str]"]:
    """Run a server of the previous release. Yield its address."""
    limits = {"max_quantity_per_item": "1000000", "max_units_per_user": "1000000000"}
    with running_previous_programs(folder) as programs:
        server = programs.start(
            "serve", listen="127.0.0.1:0", database_url=url, reservation_url="grpc://127.0.0.1:1", **limits
        )

        async def says() -> str:
            async with asyncio.timeout(START_SECONDS):
                return (await server.says(LISTENS))[1]

        yield asyncio.ensure_future(says())


async def measure_next(engine: Engine, versions: Path, callers: Callers, observer: asyncpg.Connection) -> bool:
    """Run the next migration and print its costs. Return whether none is left."""
    pid = await engine.transact(lambda connection: connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
    seen: dict[str, tuple[float, float]] = {}
    begin = time.monotonic()
    running = asyncio.create_task(MigrationRun(engine, print, versions).run_next(engine))
    while not running.done():
        for (name,) in await observer.fetch(_LOCKS, pid):
            now = time.monotonic()
            seen[name] = (seen.get(name, (now, now))[0], now)
        await asyncio.sleep(SAMPLE_SECONDS)
    end = time.monotonic()
    step: migrate.Step = running.result()
    if step.before == step.after:
        return True
    await asyncio.sleep(QUIET_SECONDS)
    locks = [f"{name} for {last - first:.3f} s" for name, (first, last) in seen.items()]
    print(f"schema {step.after} ({step.title}): {end - begin:.2f} s; locks: {', '.join(locks) or 'none seen'}; "
          f"meanwhile {callers.longest(begin, end)}")  # fmt: skip
    return False


async def migrate_to_first(url: str, versions: Path) -> None:
    """Give an empty database the schema of the previous release."""
    async with app.open_engine(Settings(database_url=url)) as engine:
        await migration_run.run(engine, versions=versions)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.migrations", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--url")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.url:
            asyncio.run(measure(options.url, folder))
            return
        with running_postgres(durable=True) as postgres:
            url = postgres.create_database("filled")
            asyncio.run(migrate_to_first(url, copy_versions(folder / "first", f"{FIRST}_*.py")))
            begin = time.monotonic()
            fill(url, Filling(finished=options.rows))
            print(f"filled in {time.monotonic() - begin:.0f} s")
            asyncio.run(measure(url, folder))


if __name__ == "__main__":
    main()
