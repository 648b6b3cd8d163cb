"""SQLite: one file that belongs to one process, with one writer connection in a thread of its own."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import URL, Connection, ExceptionContext, create_engine, event
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import QueuePool

from cart_grpc.carts.refusals import DatabaseDamaged
from cart_grpc.metrics import COMMIT_DURATION
from cart_grpc.store.dialects import Dialect, SqliteDialect, built_once
from cart_grpc.store.failures import CommitFailed, find_refusal, is_unwritten
from cart_grpc.store.pool_usage import PoolUsage
from cart_grpc.store.sqlite_file import SqliteFile

if TYPE_CHECKING:
    from cart_grpc.store.engine import Engine

T = TypeVar("T")
_QUERY_READERS: Final = 4


class _Use:
    """Counts the calls that use one of `most` connections, or wait for one. A connection that is closed is idle."""

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._running = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the call until the block ends."""
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def usage(self) -> PoolUsage:
        """Return how much is in use."""
        used = min(self._running, self._most)
        return PoolUsage(self._name, self._most - used, used, self._most, self._running - used)


_dialect = built_once(SqliteDialect)


class SqliteEngine:
    """One writer connection in its own thread, and readers beside it, on a file that is locked until `close`.

    Raises OSError if the file cannot be used. Only the writer checkpoints, and it closes last: SQLite before 3.51.3 can
    corrupt a WAL that two connections reset.
    """

    locks_users = False
    is_shared = False
    # One process owns the file.
    hints = None
    is_in_process = True
    schema: str | None = None

    def __init__(self, url: URL, clock: Callable[[], int]) -> None:
        self.name = url.render_as_string(hide_password=True)
        self.shards: Sequence[Engine] = (self,)
        self._file = SqliteFile(Path(url.database or ""))
        url = url.set(database=str(self._file.path))
        self.dialect: Dialect = _dialect(clock)
        # A separate thread, because fdatasync would block the event loop. Both threads release the GIL while they wait.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-writer")
        # We send BEGIN and COMMIT: SQLAlchemy would not begin a transaction for statements that `prepared` runs on the
        # driver.
        self._writer = create_engine(
            url.set(drivername="sqlite+pysqlite"),
            isolation_level="AUTOCOMMIT",
            poolclass=QueuePool,
            pool_size=1,
            max_overflow=0,
            # `prepared.PerTable` has one upsert for each table and number of rows.
            connect_args={"cached_statements": 512},
        )
        self._connection: Connection | None = None
        self.reader = create_async_engine(
            url.set(drivername="sqlite+aiosqlite"), pool_size=_QUERY_READERS, max_overflow=0
        )
        # `read` does not use aiosqlite, which switches threads several times for each statement.
        self._read_thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-reader")
        self._read_engine = create_engine(
            url.set(drivername="sqlite+pysqlite"), poolclass=QueuePool, pool_size=1, max_overflow=0
        )
        self._writes, self._reads, self._queries = _Use("write", 1), _Use("read", 1), _Use("query", _QUERY_READERS)
        self._damaged = False
        for engine in (self._writer, self._read_engine, self.reader.sync_engine):
            # The path may lead to another file by now.
            event.listen(engine, "do_connect", lambda *_: self._file.check())
            event.listen(engine, "handle_error", self._on_error)
        event.listen(self._writer, "connect", _prepare_writer)
        event.listen(self._writer, "connect", lambda *_: self._file.renew_log())
        for engine in (self._read_engine, self.reader.sync_engine):
            event.listen(engine, "connect", _prepare_reader)

    @property
    def has_log(self) -> bool:
        return self._file.has_log

    def shard_of(self, slice_: int) -> "Engine":
        return self

    def _on_error(self, context: ExceptionContext) -> None:
        self._note_damage(context.original_exception)

    def _note_damage(self, error: BaseException) -> None:
        """Stop all writes once the file is damaged: a later write could be lost with it."""
        if isinstance(find_refusal(error), DatabaseDamaged):
            self._damaged = True

    async def transact(self, work: Callable[[Connection], T]) -> T:
        with self._writes.running():
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work)

    def _transact(self, work: Callable[[Connection], T]) -> T:
        # Check in the writer's thread: the transaction before this one may have found the damage meanwhile.
        if self._damaged:
            raise DatabaseDamaged
        self._file.check()
        if self._connection is None or self._connection.closed:
            self._connection = self._writer.connect()
        connection = self._connection
        driver: Any = connection.connection.driver_connection
        try:
            # A deferred BEGIN that reads first and then writes fails with BUSY_SNAPSHOT, which no timeout prevents.
            driver.execute("BEGIN IMMEDIATE")
            self._file.check_log()
            result = work(connection)
        except BaseException as error:
            # SQLAlchemy's `handle_error` does not see the statements that `prepared` runs on the driver.
            self._note_damage(error)
            driver.rollback()
            connection.close()
            raise
        try:
            self._commit(connection)
        except Exception as error:
            self._note_damage(error)
            connection.invalidate()
            connection.close()
            if is_unwritten(error):
                raise
            raise CommitFailed(result) from error
        return result

    def _commit(self, connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        with COMMIT_DURATION.time():
            driver.commit()

    async def read(self, work: Callable[[Connection], T]) -> T:
        with self._reads.running():
            return await asyncio.get_running_loop().run_in_executor(self._read_thread, self._read, work)

    def _read(self, work: Callable[[Connection], T]) -> T:
        with self._read_engine.connect() as connection:
            try:
                return work(connection)
            except Exception as error:
                self._note_damage(error)
                raise

    async def query(self, work: Callable[[Connection], T]) -> T:
        with self._queries.running():
            async with self.reader.connect() as connection:
                return await connection.run_sync(work)

    def write_at_once(self, count: int) -> None:
        """Do nothing: a file has one writer."""

    def pools(self) -> Sequence[PoolUsage]:
        return [pool.usage() for pool in (self._writes, self._reads, self._queries)]

    async def close(self) -> None:
        await self.reader.dispose()
        await asyncio.get_running_loop().run_in_executor(self._read_thread, self._read_engine.dispose)
        self._read_thread.shutdown()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close_writer)
        self._thread.shutdown()
        self._file.close()

    def _close_writer(self) -> None:
        if self._connection:
            self._connection.close()
        self._writer.dispose()


def _prepare_writer(connection: sqlite3.Connection, _: Any) -> None:
    _prepare(connection)
    # For a new file, before anything is written. Purging then gives free pages back (`give_back_space`).
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    # NORMAL loses acknowledged commits in a power failure.
    connection.execute("PRAGMA synchronous = FULL")
    # 40 MB instead of 4: a page that a hundred batches have written is copied into the file once.
    connection.execute("PRAGMA wal_autocheckpoint = 10000")
    # A log that grew beyond that, while a backup or a long read kept it, is cut when it begins anew.
    connection.execute("PRAGMA journal_size_limit = 67108864")
    connection.execute("PRAGMA temp_store = MEMORY")
    # 64 MB instead of 2: the pages that every batch touches stay in memory.
    connection.execute("PRAGMA cache_size = -65536")


def _prepare_reader(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    _prepare(cursor)
    cursor.execute("PRAGMA wal_autocheckpoint = 0")
    cursor.execute("PRAGMA query_only = ON")
    cursor.close()
    connection.isolation_level = None


def _prepare(connection: Any) -> None:
    """Set the options of every connection. No isolation level: the driver would begin transactions by itself."""
    if isinstance(connection, sqlite3.Connection):
        connection.isolation_level = None
    # A write and then a readiness check must both fit into the deadline of one call.
    connection.execute("PRAGMA busy_timeout = 2000")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
