"""How the two databases are connected to, written to and failed by; `dialects` has what differs in what is said.

Both offer the same: `transact` runs a synchronous function in a transaction of the one writer connection, `look` one
that reads carts, beside it; `reader` is an async engine for all other reads.
"""

import asyncio
import socket
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar

import asyncpg
from sqlalchemy import URL, Connection, ExceptionContext, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import QueuePool
from sqlalchemy.util import await_only

from cart_grpc.carts.refusals import DatabaseDamaged, DatabaseFull, DatabaseUnavailable
from cart_grpc.store.dialects import Dialect, PostgresqlDialect, SqliteDialect

T = TypeVar("T")
Clock = Callable[[], int]


class CommitFailed(Exception):
    """COMMIT itself failed, so the transaction may or may not be there; `result` is what it would have answered."""

    def __init__(self, result: Any) -> None:
        super().__init__("COMMIT failed")
        self.result = result


class Engine(Protocol):
    """A database, connected. `name` is its URL, the password hidden."""

    name: str
    dialect: Dialect
    locks_users: bool
    is_shared: bool
    reader: AsyncEngine

    async def transact(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction on the writer's connection, and return its result once it is durable.

        It runs to its end even if the caller is cancelled. Raises CommitFailed where the outcome is not known, and
        otherwise what `work` or the database raised, with nothing done.
        """
        ...

    async def look(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which reads with one statement, on a connection that cannot write, and return its result."""
        ...

    async def close(self) -> None:
        """Close every connection, the writer's last."""
        ...


def connect(url: str, clock: Clock) -> Engine:
    """The engine for a SQLAlchemy URL whose backend is `sqlite` or `postgresql`; `clock` is this process's, in µs."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return SqliteEngine(parsed, clock)
    return PostgresqlEngine(parsed)


class SqliteEngine:
    """One file, one process, one writer connection in a thread of its own, readers beside it.

    The writer alone checkpoints and closes last: SQLite before 3.51.3 can corrupt a WAL that two connections reset.
    """

    locks_users = False
    is_shared = False

    def __init__(self, url: URL, clock: Clock) -> None:
        self.name = url.render_as_string(hide_password=True)
        self.dialect: Dialect = SqliteDialect(clock)
        # A thread of its own, since fdatasync would stop the event loop. Both release the interpreter while they wait.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-writer")
        # BEGIN and COMMIT are ours: what `prepared` runs on the driver itself would not make SQLAlchemy begin.
        self._writer = create_engine(
            url.set(drivername="sqlite+pysqlite"),
            isolation_level="AUTOCOMMIT",
            poolclass=QueuePool,
            pool_size=1,
            max_overflow=0,
            # Of each table's upsert there is one for every number of rows.
            connect_args={"cached_statements": 512},
        )
        self._connection: Connection | None = None
        self.reader = create_async_engine(url.set(drivername="sqlite+aiosqlite"), pool_size=4, max_overflow=0)
        # aiosqlite goes to its thread and back several times for each statement.
        self._looking_thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-reader")
        self._looker = create_engine(
            url.set(drivername="sqlite+pysqlite"), poolclass=QueuePool, pool_size=1, max_overflow=0
        )
        self._damaged = False
        for engine in (self._writer, self._looker, self.reader.sync_engine):
            event.listen(engine, "handle_error", self._hear)
        event.listen(self._writer, "connect", _prepare_writer)
        for engine in (self._looker, self.reader.sync_engine):
            event.listen(engine, "connect", _prepare_reader)

    def _hear(self, context: ExceptionContext) -> None:
        self._note_damage(context.original_exception)

    def _note_damage(self, error: BaseException) -> None:
        """What would be written to a damaged file from now on could be lost with it: nothing is."""
        if isinstance(find_refusal(error), DatabaseDamaged):
            self._damaged = True

    async def transact(self, work: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work)

    def _transact(self, work: Callable[[Connection], T]) -> T:
        # Here, for the one before may have met it while this one waited for the thread.
        if self._damaged:
            raise DatabaseDamaged
        if self._connection is None or self._connection.closed:
            self._connection = self._writer.connect()
        connection = self._connection
        driver: Any = connection.connection.driver_connection
        try:
            # A deferred BEGIN that reads first fails with BUSY_SNAPSHOT as soon as it writes, and no timeout helps.
            driver.execute("BEGIN IMMEDIATE")
            result = work(connection)
        except BaseException as error:
            # What `prepared` runs is not heard by `handle_error`.
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
            if getattr(error, "sqlite_errorcode", 0) in _UNWRITTEN:
                # What makes a transaction count is written last: where writing failed, it does not.
                raise
            raise CommitFailed(result) from error
        return result

    def _commit(self, connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        driver.commit()

    async def look(self, work: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._looking_thread, self._look, work)

    def _look(self, work: Callable[[Connection], T]) -> T:
        with self._looker.connect() as connection:
            try:
                return work(connection)
            except Exception as error:
                self._note_damage(error)
                raise

    async def close(self) -> None:
        await self.reader.dispose()
        await asyncio.get_running_loop().run_in_executor(self._looking_thread, self._looker.dispose)
        self._looking_thread.shutdown()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    def _close(self) -> None:
        if self._connection:
            self._connection.close()
        self._writer.dispose()


def _prepare_writer(connection: sqlite3.Connection, _: Any) -> None:
    _prepare(connection)
    connection.execute("PRAGMA journal_mode = WAL")
    # NORMAL loses acknowledged commits when the power goes.
    connection.execute("PRAGMA synchronous = FULL")
    # 40 MB, instead of 4: a page that a hundred batches have written is copied into the file once.
    connection.execute("PRAGMA wal_autocheckpoint = 10000")
    connection.execute("PRAGMA temp_store = MEMORY")
    # 64 MB, instead of 2: what every batch touches stays in memory.
    connection.execute("PRAGMA cache_size = -65536")


def _prepare_reader(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    _prepare(cursor)
    cursor.execute("PRAGMA wal_autocheckpoint = 0")
    cursor.execute("PRAGMA query_only = ON")
    cursor.close()
    connection.isolation_level = None


def _prepare(connection: Any) -> None:
    """The driver would begin its own transactions, and not where it should: BEGIN is ours."""
    if isinstance(connection, sqlite3.Connection):
        connection.isolation_level = None
    # A write and a look whether the database answers, one after the other, must both fit into a call.
    connection.execute("PRAGMA busy_timeout = 2000")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA trusted_schema = OFF")


class PostgresqlEngine:
    """A PostgreSQL that several replicas share."""

    locks_users = True
    is_shared = True

    def __init__(self, url: URL) -> None:
        self.name = url.set(query={}).render_as_string(hide_password=True)
        self.dialect: Dialect = PostgresqlDialect()
        async_url = url.set(drivername="postgresql+asyncpg")
        if "sslmode" in url.query:
            # libpq's name for it, which everybody has in their URLs.
            async_url = async_url.difference_update_query(["sslmode"]).update_query_dict({"ssl": url.query["sslmode"]})
        settings = {
            "application_name": "cart-grpc",
            "statement_timeout": "30s",
            "lock_timeout": "10s",
            "idle_in_transaction_session_timeout": "30s",
            # Compiling takes longer than these statements run.
            "jit": "off",
        }
        # To plan a batch anew takes 1 ms, half of what one call takes. A plan that is kept stays as it was made until
        # somebody analyses, maybe for empty tables: so what is kept must find its rows by an index, whatever was known
        # of the tables then. All else is planned anew.
        keeping = {**settings, "plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}
        # BEGIN and COMMIT are ours: what `prepared` runs on the driver itself would not make SQLAlchemy begin. Each
        # read is one statement, which needs no transaction around it, nor its two round trips.
        self._writer = _engine(async_url, 1, keeping)
        read_only = {"default_transaction_read_only": "on"}
        self._looker = _engine(async_url, 4, {**keeping, **read_only})
        self.reader = _engine(async_url, 4, {**settings, **read_only, "plan_cache_mode": "force_custom_plan"})

    async def transact(self, work: Callable[[Connection], T]) -> T:
        # A task of its own: a driver that is cancelled in mid-statement leaves a connection nobody can use.
        return await asyncio.shield(asyncio.create_task(self._transact(work)))

    async def _transact(self, work: Callable[[Connection], T]) -> T:
        async with self._writer.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            try:
                await driver.execute("BEGIN")
                result = await connection.run_sync(work)
            except BaseException as error:
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
        await_only(driver.execute("COMMIT"))

    async def look(self, work: Callable[[Connection], T]) -> T:
        async with self._looker.connect() as connection:
            try:
                return await connection.run_sync(work)
            except Exception as error:
                if find_refusal(error):
                    # What `prepared` runs is not heard by SQLAlchemy, which would take the next from the pool.
                    await connection.invalidate()
                raise

    async def close(self) -> None:
        await self.reader.dispose()
        await self._looker.dispose()
        await self._writer.dispose()


def _engine(url: URL, size: int, settings: dict[str, str]) -> AsyncEngine:
    """Up to `size` connections, each with `settings`, and without transactions of SQLAlchemy's."""
    connect_args = {"server_settings": settings, "timeout": 5}
    engine = create_async_engine(
        url, isolation_level="AUTOCOMMIT", pool_size=size, max_overflow=0, connect_args=connect_args
    )
    event.listen(engine.sync_engine, "connect", _notice_silence)
    return engine


async def _roll_back(connection: AsyncConnection, driver: asyncpg.Connection, error: BaseException) -> None:
    # A primary that became a standby keeps its connections; a new one may find the new primary.
    if driver.is_closed() or _sqlstate(error) == _READ_ONLY:
        await connection.invalidate()
        return
    try:
        await driver.execute("ROLLBACK")
    except Exception:  # noqa: BLE001 - what went wrong first is what is told
        await connection.invalidate()


# Idle for 10 s, a connection is asked three times; what was sent and is not acknowledged gives it 30 s. libpq's words.
_SILENCE: Final = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}


def _notice_silence(connection: Any, _: Any) -> None:
    """Break a connection whose wire swallows everything: the driver waits for an answer for ever."""
    transport = connection.driver_connection._transport  # noqa: SLF001 - asyncpg has no public way
    wire = transport.get_extra_info("socket")
    if wire.family == socket.AF_UNIX:
        return
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _SILENCE.items():
        # Not every system has them all.
        if option := getattr(socket, name, None):
            wire.setsockopt(socket.IPPROTO_TCP, option, value)


# SQLSTATE classes: connection, authorisation, no such database, out of resources, operator intervention, system error.
_UNAVAILABLE_CLASSES = ("08", "28", "3D", "53", "57", "58")
_READ_ONLY = "25006"
# A deadlock, a serialisation failure, a lock time-out, a session that was ended since it stood still.
_PASSING = {"40001", "40P01", "55P03", "25P03", _READ_ONLY}
_FULL = "53100"
_DAMAGED = {"XX001", "XX002"}
# The second where a connection was cut in mid-answer, and the driver has not noticed yet.
_ASYNCPG_BROKEN = asyncpg.InterfaceError | asyncpg.InternalClientError
_UNWRITTEN = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE}
_SQLITE_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def find_refusal(error: BaseException) -> DatabaseUnavailable | None:
    """The refusal where the database, rather than what was said to it, is the reason; None where it is not.

    DatabaseUnavailable itself may pass: the same transaction, run again, may succeed.
    """
    if isinstance(error, DatabaseUnavailable):
        return error
    if isinstance(error, OSError | TimeoutError | PoolTimeout):
        return DatabaseUnavailable()
    origin = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(origin, sqlite3.Error):
        return _find_sqlite_refusal(origin)
    state = _sqlstate(error)
    if not state and not isinstance(error, DBAPIError | _ASYNCPG_BROKEN):
        return None
    if state == _FULL:
        return DatabaseFull()
    if state in _DAMAGED:
        return DatabaseDamaged()
    if state in _PASSING or state.startswith(_UNAVAILABLE_CLASSES) or getattr(error, "connection_invalidated", False):
        return DatabaseUnavailable()
    if not state and isinstance(error, OperationalError | InterfaceError | _ASYNCPG_BROKEN):
        return DatabaseUnavailable()
    return None


@contextmanager
def refusing() -> Iterator[None]:
    """Raises DatabaseUnavailable for what says that the database does not answer."""
    try:
        yield
    except Exception as error:
        if refusal := find_refusal(error):
            raise refusal from error
        raise


def _find_sqlite_refusal(error: sqlite3.Error) -> DatabaseUnavailable | None:
    # The lowest byte is the kind, those above say more about it.
    kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if kind == sqlite3.SQLITE_FULL:
        return DatabaseFull()
    if kind in _SQLITE_DAMAGED:
        return DatabaseDamaged()
    return DatabaseUnavailable() if isinstance(error, sqlite3.OperationalError | sqlite3.InterfaceError) else None


def _sqlstate(error: BaseException) -> str:
    origin = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(origin, "sqlstate", None) or "")
