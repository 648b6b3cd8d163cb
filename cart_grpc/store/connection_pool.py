"""A pool of PostgreSQL connections that uses what the database grants, and replaces connections that are dead."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Protocol, TypeVar

import asyncpg
from sqlalchemy import Connection, NullPool
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.store.failures import find_refusal, get_sqlstate, is_dead, show_cause
from cart_grpc.store.pool_usage import PoolUsage
from cart_grpc.store.postgresql_session import Sessions, Settings

T = TypeVar("T")
log = Log(__name__)
# How long to wait for a connection, and how long before trying again to open more than the database granted.
WAIT_SECONDS: Final = 30.0
REST_SECONDS: Final = 60.0
# How long to wait for the end of an own connection whose place the next one needs.
_PLACE_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 0.05
# How long the end of all connections may take to be noticed.
_OUTAGE_SECONDS: Final = 0.5
_TOO_MANY: Final = "53300"
_GENERATION: Final = "generation"


class Spare(Protocol):
    """A session beside the pools."""

    @property
    def is_open(self) -> bool: ...

    async def give_up(self) -> None:
        """End it for a while."""
        ...


class Shortage:
    """The connections that the pools of one process want together, and whether the log already names a shortage.

    `spare` is a session that no call needs.
    """

    def __init__(self, sessions: Sessions) -> None:
        self.spare: Spare | None = None
        self._sessions = sessions
        self._is_noted = False
        self.pools: list[ConnectionPool] = []

    async def make_room(self) -> bool:
        """Close a connection that another pool can spare. Return whether there was one."""
        if self.spare and self.spare.is_open:
            await self.spare.give_up()
            return True
        richest = max(self.pools, key=lambda pool: pool.usable)
        return await richest.give_up_one()

    def note_refused(self, error: Exception) -> None:
        """Log once that the database grants no more connections. In an outage, the others end within a moment, too."""
        if not self._is_noted:
            self._is_noted = True
            asyncio.get_running_loop().call_later(_OUTAGE_SECONDS, self._log_refusal, error)

    def _log_refusal(self, error: Exception) -> None:
        had = self._sessions.count()
        self._is_noted = 0 < had < self._wanted
        if self._is_noted:
            line = "the database grants %d of %d connections; calls wait for these: %s"
            log(events.CONNECTIONS_SHORT, line, had, self._wanted, show_cause(error))

    def note_granted(self) -> None:
        """Log the end of a shortage."""
        if self._is_noted and self._sessions.count() == self._wanted:
            log(events.CONNECTIONS_GRANTED, "the database grants all %d connections", self._wanted)
            self._is_noted = False

    @property
    def _wanted(self) -> int:
        return sum(pool.size for pool in self.pools) + bool(self.spare and self.spare.is_open)


class ConnectionPool:
    """Up to `size` connections with `settings`, in AUTOCOMMIT mode; fewer while the database grants fewer.

    We send BEGIN and COMMIT: SQLAlchemy would not begin a transaction for statements that `prepared` runs on the
    driver. Each read is one statement, so a transaction around it would only add two round trips. `on_open` is called
    for each new connection.
    """

    def __init__(
        self,
        sessions: Sessions,
        shortage: Shortage,
        size: int,
        settings: Settings,
        on_open: Callable[[], None] = lambda: None,
    ) -> None:
        self._sessions = sessions
        self._shortage = shortage
        self._on_open = on_open
        self._generation = 0
        self.size = self._most = size
        shortage.pools.append(self)
        self._idle: list[AsyncConnection] = []
        # Those that are lent, idle or being opened.
        self._open = 0
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_closed = False
        self.engine = create_async_engine(
            # SQLAlchemy keeps as many statements as the driver does.
            f"postgresql+asyncpg://?prepared_statement_cache_size={sessions.statement_cache_size}",
            async_creator=partial(sessions.open, settings),
            isolation_level="AUTOCOMMIT",
            poolclass=NullPool,
        )

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection. Waits up to WAIT_SECONDS while all are in use. Raises the database's errors.

        A connection that is invalid or closed when it comes back is replaced.
        """
        async with asyncio.timeout(WAIT_SECONDS):
            connection = await self._take()
        try:
            yield connection
        except Exception as error:
            self._sessions.note_error(error)
            raise
        finally:
            await self._give_back(connection)

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which only reads. If its connection turns out dead, run it again on another one."""
        # Each dead connection is discarded, so the last of these is new.
        for is_last in (*[False] * self.size, True):
            async with self.connect() as connection:
                try:
                    return await connection.run_sync(work)
                except Exception as error:
                    self._sessions.note_error(error)
                    if find_refusal(error):
                        # SQLAlchemy does not see errors of statements that `prepared` runs on the driver.
                        await connection.invalidate()
                    if is_last or not is_dead(error):
                        raise
        raise AssertionError("unreachable")

    def replace_all(self) -> None:
        """Replace every connection when it is next used."""
        self._generation += 1

    def widen(self, size: int) -> None:
        """Allow `size` connections if there were fewer so far."""
        if size > self.size:
            self.size = self._most = size
            self._open_more()

    @property
    def usable(self) -> int:
        """The number of connections that are lent or idle."""
        return self._open - len(self._opening)

    def usage(self, name: str) -> PoolUsage:
        """Return how much of the pool is in use."""
        idle = len(self._idle)
        return PoolUsage(name, idle, max(0, self.usable - idle), self.size, len(self._waiting))

    async def give_up_one(self) -> bool:
        """Close a connection, now or when it comes back, if there are several. Return whether there are."""
        if self.usable < 2:
            return False
        self._limit(self.usable - 1)
        if self._idle:
            await self._discard(self._idle.pop())
        return True

    async def close(self) -> None:
        """Close every connection; one that is in use, when it comes back."""
        self._is_closed = True
        for opening in self._opening:
            opening.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        while self._idle:
            await self._discard(self._idle.pop())
        await self.engine.dispose()

    async def _take(self) -> AsyncConnection:
        has_waited = False
        while True:
            while self._idle:
                # The one that was used last, so that the database can end those that a quiet hour does not need.
                connection = self._idle.pop()
                if not self._is_dead(connection):
                    return connection
                await self._discard(connection)
            change = asyncio.Future[None]()
            # The longest waiting is first, also if another call was quicker than it.
            (self._waiting.appendleft if has_waited else self._waiting.append)(change)
            has_waited = True
            self._open_more()
            try:
                await change
            except asyncio.CancelledError:
                if change in self._waiting:
                    self._waiting.remove(change)
                elif not change.cancelled() and not change.exception():
                    # The next one gets what this call was woken for.
                    self._wake_next()
                raise

    def _open_more(self) -> None:
        """Open a connection for each call that waits. A call takes the first that is free, new or not."""
        while len(self._opening) < len(self._waiting) and self._open < self._most and not self._is_closed:
            self._open += 1
            self._opening.add(asyncio.create_task(self._open_one(), name="open-connection"))

    async def _open_one(self) -> None:
        opened: AsyncConnection | Exception
        try:
            opened = await self._connect()
        except Exception as error:  # noqa: BLE001 - the calls that wait raise it
            opened = error
        # Before anybody else runs: the next call that waits may need another one.
        self._opening = {each for each in self._opening if each is not asyncio.current_task()}
        if isinstance(opened, AsyncConnection):
            opened.info[_GENERATION] = self._generation
            self._on_open()
            self._idle.append(opened)
            self._wake_next()
            self._shortage.note_granted()
        else:
            self._open -= 1
            self._note_failure(opened)

    def _note_failure(self, error: Exception) -> None:
        """Make do with the usable connections; if none is left or being opened, raise `error` from all that wait."""
        if find_refusal(error) and self.usable:
            self._limit(self.usable)
            self._shortage.note_refused(error)
        elif not self._open or not find_refusal(error):
            while change := self._pop_waiting():
                change.set_exception(error)

    async def _connect(self) -> AsyncConnection:
        deadline = None
        while True:
            try:
                return await self.engine.connect()
            except Exception as error:
                if self._open > 1 or not find_refusal(error):
                    raise
                now = asyncio.get_running_loop().time()
                deadline = deadline or now + _PLACE_SECONDS
                # The database may not have noticed yet that our last connection is gone.
                is_short = await self._shortage.make_room() or get_sqlstate(error) == _TOO_MANY
                if not is_short or now > deadline:
                    raise
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _give_back(self, connection: AsyncConnection) -> None:
        if self._is_closed or self.usable > self._most or self._is_dead(connection):
            await self._discard(connection)
        else:
            self._idle.append(connection)
        self._wake_next()

    async def _discard(self, connection: AsyncConnection) -> None:
        self._open -= 1
        if not self._open:
            # The database was away, so it may grant another number now.
            self._most = self.size
        await connection.invalidate()
        await connection.close()

    def _is_dead(self, connection: AsyncConnection) -> bool:
        if connection.invalidated or connection.closed or find_driver(connection).is_closed():
            return True
        return bool(connection.info[_GENERATION] != self._generation)

    def _limit(self, most: int) -> None:
        """Open no more than `most` connections for a minute."""
        self._most = most
        asyncio.get_running_loop().call_later(REST_SECONDS, self._grow)

    def _grow(self) -> None:
        self._most = self.size
        self._open_more()

    def _wake_next(self) -> None:
        if change := self._pop_waiting():
            change.set_result(None)

    def _pop_waiting(self) -> asyncio.Future[None] | None:
        while self._waiting:
            change = self._waiting.popleft()
            # One that was cancelled a moment ago is still here.
            if not change.done():
                return change
        return None


def find_driver(connection: AsyncConnection) -> asyncpg.Connection:
    """Return the driver's own connection."""
    driver: asyncpg.Connection = connection.sync_connection.connection.driver_connection  # type: ignore[union-attr, assignment]
    return driver
