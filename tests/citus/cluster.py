"""A Citus cluster that somebody provides, with databases of its own for the tests."""

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import asyncpg
from sqlalchemy import make_url

from cart_grpc import app, database_setup
from cart_grpc.settings import Settings
from cart_grpc.store.schema import metadata
from cart_grpc.store.shards import schema_names
from tests.databases import SHARDS

RESTART_SECONDS = 30.0
_numbers = itertools.count()
_WORKERS = (
    "SELECT nodename, nodeport FROM pg_dist_node WHERE groupid > 0 AND noderole = 'primary' AND isactive ORDER BY 2, 1"
)
# A process that begins anew after a crash.
_CHECKPOINTER = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
_PLACES = """
    SELECT DISTINCT relnamespace::regnamespace::text AS schema, nodename, nodeport
    FROM pg_dist_shard JOIN pg_dist_shard_placement USING (shardid) JOIN pg_class ON pg_class.oid = logicalrelid
    WHERE relname = 'clock'
"""


class Node(NamedTuple):
    """The address of a node."""

    host: str
    port: int


class Cluster:
    """The nodes of the cluster whose coordinator has `url`, a superuser's for a database with Citus and all nodes.

    The tests must reach all nodes, by the names that the coordinator has for them.
    """

    def __init__(self, url: str) -> None:
        self.url = make_url(url).set(drivername="postgresql")
        self.coordinator = Node(self.url.host or "127.0.0.1", self.url.port or 5432)
        self.workers: Sequence[Node] = ()

    async def open(self) -> None:
        """Find the workers."""
        found = await self.fetch(self.coordinator, self.url.database or "postgres", _WORKERS)
        self.workers = [Node(*row) for row in found]
        assert len(self.workers) > 1, "the tests need two workers"

    async def fetch(self, node: Node, database: str, statement: str, *values: object) -> list[Any]:
        """Run a statement on a node, and return its rows."""
        connection = await asyncpg.connect(self.url_of(node, database))
        try:
            return list(await connection.fetch(statement, *values))
        finally:
            await connection.close(timeout=5)

    async def run(self, node: Node, database: str, script: str) -> None:
        """Run statements on a node."""
        connection = await asyncpg.connect(self.url_of(node, database))
        try:
            await connection.execute(script)
        finally:
            await connection.close(timeout=5)

    async def crash(self, node: Node) -> None:
        """Make a node's PostgreSQL crash, and wait until it has recovered.

        A backend kills itself with SIGKILL. Then the postmaster kills all others, and begins again from the log.
        """
        before = await self.fetch(node, "postgres", _CHECKPOINTER)
        try:
            await self.fetch(node, "postgres", "COPY (SELECT 1) TO PROGRAM 'kill -9 $PPID'")
        except (asyncpg.PostgresConnectionError, OSError):
            pass
        else:
            raise AssertionError("the backend did not die")
        # The postmaster may notice the death a moment later, and still let a session begin.
        await self._answers(node, before)

    async def configure(self, node: Node, name: str, value: str | None) -> None:
        """Change a setting of a node, or, with None, back to what its file says."""
        changed = f"RESET {name}" if value is None else f"SET {name} = '{value}'"
        await self.fetch(node, "postgres", f"ALTER SYSTEM {changed}")
        await self.fetch(node, "postgres", "SELECT pg_reload_conf()")

    @asynccontextmanager
    async def create_database(self) -> AsyncIterator["Database"]:
        """Create an empty database on all nodes, and drop it at the end."""
        name = f"sharded_citus_{os.getpid()}_{next(_numbers)}"
        nodes = (self.coordinator, *self.workers)
        try:
            for node in nodes:
                await self.fetch(node, "postgres", f"CREATE DATABASE {name}")
                await self.fetch(node, name, "CREATE EXTENSION citus")
            await self.fetch(self.coordinator, name, "SELECT citus_set_coordinator_host($1, $2)", *self.coordinator)
            for worker in self.workers:
                await self.fetch(self.coordinator, name, "SELECT citus_add_node($1, $2)", *worker)
            yield Database(self, name, self.url_of(self.coordinator, name))
        finally:
            for node in nodes:
                await self.fetch(node, "postgres", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def url_of(self, node: Node, database: str) -> str:
        """The URL of a database on a node."""
        url = self.url.set(host=node.host, port=node.port, database=database)
        return url.render_as_string(hide_password=False)

    async def _answers(self, node: Node, before: list[Any]) -> None:
        deadline = time.monotonic() + RESTART_SECONDS
        while True:
            try:
                if await self.fetch(node, "postgres", _CHECKPOINTER) != before:
                    return
            except (asyncpg.PostgresError, OSError):
                pass
            assert time.monotonic() < deadline, f"{node} does not answer"
            await asyncio.sleep(0.02)


class Database:
    """A database on all nodes. Callers use `url`, the coordinator's."""

    def __init__(self, cluster: Cluster, name: str, url: str) -> None:
        self.cluster = cluster
        self.name = name
        self.url = url

    async def fetch(self, node: Node, statement: str, *values: object) -> list[Any]:
        """Run a statement on a node, and return its rows."""
        return await self.cluster.fetch(node, self.name, statement, *values)

    async def run(self, node: Node, script: str) -> None:
        """Run statements on a node."""
        await self.cluster.run(node, self.name, script)

    async def places(self) -> dict[str, Node]:
        """Return the node of each shard, by its schema."""
        rows = await self.fetch(self.cluster.coordinator, _PLACES)
        return {row["schema"]: Node(row["nodename"], row["nodeport"]) for row in rows}

    async def move(self, schema: str) -> None:
        """Move a shard to another node."""
        place = (await self.places())[schema]
        other = next(worker for worker in self.cluster.workers if worker != place)
        moved = "SELECT citus_schema_move($1::text::regnamespace, $2::text, $3::int)"
        await self.fetch(self.cluster.coordinator, moved, schema, *other)

    async def recover(self) -> int:
        """End the transactions that an interrupted two-phase commit has left, and return how many.

        Citus does the same by itself, by default once a minute.
        """
        ((count,),) = await self.fetch(self.cluster.coordinator, "SELECT recover_prepared_transactions()")
        return int(count)

    async def prepared(self) -> int:
        """Return how many transactions are prepared, on all workers."""
        query = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()"
        counts = [await self.fetch(worker, query) for worker in self.cluster.workers]
        return sum(rows[0][0] for rows in counts)


class LentDatabase:
    """One migrated database on the cluster, for one test after the other."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._database = self._runner.run(self._open(Cluster(url)))

    @contextmanager
    def lend(self) -> Iterator[str]:
        """The URL of the database, without rows."""
        yield self._database.url
        self._runner.run(self._empty())

    def close(self) -> None:
        """Drop the database."""
        self._runner.run(self._stack.aclose())
        self._runner.close()

    async def _open(self, cluster: Cluster) -> Database:
        await cluster.open()
        database = await self._stack.enter_async_context(cluster.create_database())
        async with app.open_engine(Settings(database_url=database.url, database_shards=SHARDS)) as engine:
            await database_setup.upgrade(engine)
        return database

    async def _empty(self) -> None:
        connection = await asyncpg.connect(self._database.url)
        try:
            for schema in schema_names(SHARDS):
                for table in metadata.tables:
                    await connection.execute(f"DELETE FROM {schema}.{table}")  # noqa: S608 - our own names
        finally:
            await connection.close(timeout=5)
