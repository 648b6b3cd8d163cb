"""A pool of PostgreSQL connections that uses what the database grants, and replaces connections that are dead."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

import asyncpg
from sqlalchemy import Connection, NullPool
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from cart_grpc.store.failures import find_refusal, get_sqlstate, is_dead
from cart_grpc.store.postgresql_session import Sessions, Settings

T = TypeVar("T")
log = logging.getLogger(__name__)
# How long to wait for a connection, and how long before trying again to open more than the database granted.
WAIT_SECONDS: Final = 30.0
REST_SECONDS: Final = 60.0
# How long to wait for the end of an own connection whose place the next one needs.
_PLACE_SECONDS: Final = 2.0
_TOO_MANY: Final = "53300"


class Shortage:
    """What the pools of one process want together, and whether the log already says that they have less."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._is_logged = False
        self.wanted = 0

    def note_refused(self, error: Exception) -> None:
        """Log once that the database grants no more connections."""
        if not self._is_logged:
            had, cause = self._sessions.count(), getattr(error, "orig", None) or error
            log.warning(
                "the database grants %d of %d connections; calls wait for these: %s", had, self.wanted, str(cause)[:200]
            )
        self._is_logged = True

    def note_granted(self) -> None:
        """Log the end of a shortage."""
        if self._is_logged and self._sessions.count() == self.wanted:
            log.info("the database grants all %d connections", self.wanted)
            self._is_logged = False


class ConnectionPool:
    """Up to `size` connections with `settings`, in AUTOCOMMIT mode; fewer while the database grants fewer.

    We send BEGIN and COMMIT: SQLAlchemy would not begin a transaction for statements that `prepared` runs on the
    driver. Each read is one statement, so a transaction around it would only add two round trips.
    """

    def __init__(self, sessions: Sessions, shortage: Shortage, size: int, settings: Settings) -> None:
        self._shortage = shortage
        self._size = self._most = size
        shortage.wanted += size
        # Connections that are idle, and the number of those that are open or being opened.
        self._idle: list[AsyncConnection] = []
        self._open = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_closed = False
        self.engine = create_async_engine(
            "postgresql+asyncpg://",
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
        finally:
            await self._give_back(connection)

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which only reads. If its connection turns out dead, run it again on another one."""
        # Each dead connection is discarded, so the last of these is new.
        for is_last in (*[False] * self._size, True):
            async with self.connect() as connection:
                try:
                    return await connection.run_sync(work)
                except Exception as error:
                    if find_refusal(error):
                        # SQLAlchemy does not see errors of statements that `prepared` runs on the driver.
                        await connection.invalidate()
                    if is_last or not is_dead(error):
                        raise
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """Close every connection; one that is in use, when it comes back."""
        self._is_closed = True
        while self._idle:
            await self._discard(self._idle.pop())
        await self.engine.dispose()

    async def _take(self) -> AsyncConnection:
        has_waited = False
        while True:
            while self._idle:
                # The one that was used last, so that the database can end those that a quiet hour does not need.
                connection = self._idle.pop()
                if not _is_dead(connection):
                    return connection
                await self._discard(connection)
            if self._open < self._most:
                try:
                    return await self._open_one()
                except Exception as error:
                    if not find_refusal(error) or not self._open:
                        raise
                    self._most = self._open
                    self._shortage.note_refused(error)
                    asyncio.get_running_loop().call_later(REST_SECONDS, self._grow)
                    continue
            change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            # The longest waiting is first, also if another call was quicker than it.
            (self._waiting.appendleft if has_waited else self._waiting.append)(change)
            has_waited = True
            try:
                await change
            except BaseException:
                # The wake-up that this call got is the next one's.
                if change.done() and not change.cancelled():
                    self._wake_next()
                raise

    async def _open_one(self) -> AsyncConnection:
        self._open += 1
        deadline = asyncio.get_running_loop().time() + _PLACE_SECONDS
        try:
            while True:
                try:
                    connection = await self.engine.connect()
                except Exception as error:
                    # The database may not have noticed yet that our last connection is gone.
                    if self._open > 1 or get_sqlstate(error) != _TOO_MANY:
                        raise
                    if asyncio.get_running_loop().time() > deadline:
                        raise
                    await asyncio.sleep(0.05)
                else:
                    self._shortage.note_granted()
                    return connection
        except BaseException:
            self._open -= 1
            self._wake_next()
            raise

    async def _give_back(self, connection: AsyncConnection) -> None:
        if self._is_closed or _is_dead(connection):
            await self._discard(connection)
        else:
            self._idle.append(connection)
        self._wake_next()

    async def _discard(self, connection: AsyncConnection) -> None:
        self._open -= 1
        await connection.invalidate()
        await connection.close()

    def _grow(self) -> None:
        self._most = self._size
        self._wake_next()

    def _wake_next(self) -> None:
        while self._waiting:
            change = self._waiting.popleft()
            if not change.done():
                change.set_result(None)
                return


def _is_dead(connection: AsyncConnection) -> bool:
    return connection.invalidated or connection.closed or find_driver(connection).is_closed()


def find_driver(connection: AsyncConnection) -> asyncpg.Connection:
    """Return the driver's own connection."""
    driver: asyncpg.Connection = connection.sync_connection.connection.driver_connection  # type: ignore[union-attr, assignment]
    return driver
