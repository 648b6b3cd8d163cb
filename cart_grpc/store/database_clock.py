"""Reads the database's clock, and after a step back moves the stored times: see `clock_steps` for the rules."""

from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from sqlalchemy import Connection

from cart_grpc.carts.refusals import DatabaseUnavailable
from cart_grpc.names import SLICES
from cart_grpc.store.clock_steps import (
    ClockReading,
    ClockRow,
    count,
    find_set_back,
    find_set_back_since_commit,
)
from cart_grpc.store.engine import Engine
from cart_grpc.store.failures import CommitFailed, translate_failures
from cart_grpc.store.queries import ClockQueries

T = TypeVar("T")
# A transaction locks the rows that it moves: a few thousand, if there are a hundred thousand.
SLICES_PER_MOVE: Final = 4


class Noticed(NamedTuple):
    """The row `clock` after this process looked for a step, its reading, and whether it was the first to see a step."""

    row: ClockRow
    reading: ClockReading
    is_first: bool


class DatabaseClock:
    """The clock of one database, as this process sees it. `monotonic` is this process's clock, in microseconds.

    Every method raises DatabaseUnavailable.
    """

    def __init__(self, engine: Engine, monotonic: Callable[[], int]) -> None:
        self._engine = engine
        self._queries = ClockQueries(engine.dialect)
        self._monotonic = monotonic

    async def read(self) -> ClockReading:
        """Read the database's time."""
        before = self._monotonic()
        with translate_failures():
            now = await self._engine.read(self._engine.dialect.read_now)
        return ClockReading(now, before, self._monotonic())

    async def notice(self, last: ClockReading | None) -> Noticed:
        """Look for a step back since `last`, or, if it is None, since the last commit. Write a step down."""
        before = self._monotonic()

        def work(connection: Connection) -> Noticed:
            row = self._queries.lock(connection)
            reading = ClockReading(self._engine.dialect.read_now(connection), before, self._monotonic())
            if last:
                seen = find_set_back(last, reading)
            else:
                seen = find_set_back_since_commit(self._queries.last_commit_time(connection), reading.now)
            after = count(row, reading.now, seen) if seen else row
            if after != row:
                self._queries.write(connection, after)
                # Another process that starts must not see the same step.
                self._queries.limit_commit_times(connection, reading.now)
            return Noticed(after, reading, after != row)

        return await self._transact(work)

    async def move(self, longest_attempt_us: int) -> bool:
        """Move the times of the next slices. Return whether there are more.

        An attempt that no answer has closed may take effect later, so its time moves only to the longest that an
        attempt can last: `longest_attempt_us` from now.
        """

        def work(connection: Connection) -> bool:
            row = self._queries.lock(connection)
            if not row.is_moving:
                return False
            end = row.next_slice + SLICES_PER_MOVE
            now = self._engine.dialect.read_now(connection)
            self._queries.move(connection, range(row.next_slice, end), row.set_back_us, now, now + longest_attempt_us)
            after = row._replace(next_slice=min(end, SLICES))
            self._queries.write(connection, after)
            return after.is_moving

        return await self._transact(work)

    async def _transact(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction. If it is unclear whether it was committed, it may run again later."""
        try:
            with translate_failures():
                return await self._engine.transact(work)
        except CommitFailed as failure:
            raise DatabaseUnavailable from failure
