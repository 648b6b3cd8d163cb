"""PostgreSQL: a database that several replicas share, through asyncpg."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asyncpg
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.util import await_only

from cart_grpc.metrics import COMMIT_DURATION
from cart_grpc.store.connection_pool import ConnectionPool, Shortage, find_driver
from cart_grpc.store.database_connection import Connector
from cart_grpc.store.database_parameters import refusal
from cart_grpc.store.database_url import ConnectArguments
from cart_grpc.store.dialects import Dialect, PostgresqlDialect, built_once
from cart_grpc.store.failures import READ_ONLY as READ_ONLY_STATE
from cart_grpc.store.failures import CommitFailed, get_sqlstate, is_dead
from cart_grpc.store.pool_usage import PoolUsage
from cart_grpc.store.postgresql_hints import PostgresqlHints
from cart_grpc.store.postgresql_session import CUSTOM_PLANS, KEPT_PLANS, READ_ONLY, SETTINGS, Sessions
from cart_grpc.store.shards import Shard, schema_names, shard_index
from cart_grpc.tls.reloaded_files import NamedFile

if TYPE_CHECKING:
    from cart_grpc.store.engine import Engine

T = TypeVar("T")
# On a distributed database, a batch waits for round trips between nodes. With two connections, a batch of another shard
# runs meanwhile. On one PostgreSQL, a second one only makes batches smaller: four shards lost a third of the rate.
WRITERS_OF_NODES: Final = 2
# How many prepared statements a connection keeps. One that it has forgotten is parsed and planned again.
STATEMENTS: Final = 80
STATEMENTS_PER_SHARD: Final = 20
_dialect = built_once(PostgresqlDialect)


class PostgresqlEngine:
    """One connection for writes, up to four for `read`, up to four for `query`, and one that listens for hints.

    With shards on several nodes, WRITERS_OF_NODES connections write. There are fewer if the database grants fewer.
    `password` is a file that each new session reads.
    """

    locks_users = True
    is_shared = True
    is_in_process = False
    schema: str | None = None
    # PostgreSQL checks by itself that its log belongs to its files.
    has_log = False

    def __init__(self, arguments: ConnectArguments, password: NamedFile | None = None, shard_count: int = 1) -> None:
        if taken := arguments.settings.keys() & {*SETTINGS, *KEPT_PLANS, *READ_ONLY}:
            raise refusal("options", f"must not set {min(taken)}: cart-grpc sets it")
        self.name = arguments.name
        self.dialect: Dialect = _dialect()
        cached = STATEMENTS + STATEMENTS_PER_SHARD * shard_count
        self._connector = Connector(arguments, password, cached)
        self._sessions = sessions = Sessions(self._connector.connect, arguments.settings, cached)
        shortage = Shortage(sessions)
        self._writer = ConnectionPool(sessions, shortage, 1, {**SETTINGS, **KEPT_PLANS}, self._note_writer)
        self._reader = ConnectionPool(sessions, shortage, 4, {**SETTINGS, **READ_ONLY, **KEPT_PLANS})
        self._query_reader = ConnectionPool(sessions, shortage, 4, {**SETTINGS, **READ_ONLY, **CUSTOM_PLANS})
        self.hints = PostgresqlHints(sessions, self._query_reader.run)
        shortage.spare = self.hints
        self.shards: Sequence[Engine] = (self,)
        if shard_count > 1:
            self.shards = [Shard(self, schema) for schema in schema_names(shard_count)]

    def shard_of(self, slice_: int) -> "Engine":
        return self.shards[shard_index(slice_, len(self.shards))]

    def _note_writer(self) -> None:
        if self._sessions.is_distributed and len(self.shards) > 1:
            self.write_at_once(WRITERS_OF_NODES)
        # A new connection of the writer may be to a new primary. The old one may still answer reads, from the past.
        self.hints.replace()
        self._reader.replace_all()
        self._query_reader.replace_all()

    async def transact(self, work: Callable[[Connection], T]) -> T:
        # A separate task: cancelling the driver in the middle of a statement makes the connection unusable.
        transaction = asyncio.create_task(self._transact(work))
        # If the caller has left, nobody else looks at an error, and asyncio would log it.
        transaction.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return await asyncio.shield(transaction)

    async def _transact(self, work: Callable[[Connection], T]) -> T:
        async with self._writer.connect() as connection:
            driver = find_driver(connection)
            try:
                await driver.execute("BEGIN")
                result = await connection.run_sync(work)
            except BaseException as error:
                if get_sqlstate(error) == READ_ONLY_STATE:
                    # The primary was fenced, or became a standby. Its connections remain.
                    self._connector.try_another_host()
                    await connection.invalidate()
                else:
                    await _roll_back(connection, driver, error)
                raise
            try:
                await connection.run_sync(self._commit)
            except Exception as error:
                await connection.invalidate()
                raise CommitFailed(result) from error
            return result

    def _commit(self, connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        with COMMIT_DURATION.time():
            await_only(driver.execute("COMMIT"))

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await self._reader.run(work)

    async def query(self, work: Callable[[Connection], T]) -> T:
        return await self._query_reader.run(work)

    def write_at_once(self, count: int) -> None:
        self._writer.widen(count)

    def pools(self) -> Sequence[PoolUsage]:
        pools = {"write": self._writer, "read": self._reader, "query": self._query_reader}
        return [pool.usage(name) for name, pool in pools.items()]

    async def close(self) -> None:
        await self.hints.close()
        await self._query_reader.close()
        await self._reader.close()
        await self._writer.close()


async def _roll_back(connection: AsyncConnection, driver: asyncpg.Connection, error: BaseException) -> None:
    if driver.is_closed() or is_dead(error):
        await connection.invalidate()
        return
    try:
        await driver.execute("ROLLBACK")
    except Exception:  # noqa: BLE001 - the caller raises the first error, not this one
        await connection.invalidate()
