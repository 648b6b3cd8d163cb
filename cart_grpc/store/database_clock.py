"""Reads the database's clock, and after a step back moves the stored times: see `clock_steps` for the rules."""

from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from sqlalchemy import Connection

from cart_grpc.carts.refusals import DatabaseUnavailable
from cart_grpc.store.clock_queries import ClockQueries
from cart_grpc.store.clock_steps import (
    ClockReading,
    ClockRow,
    count,
    find_set_back,
    find_set_back_since_commit,
)
from cart_grpc.store.engine import Engine
from cart_grpc.store.failures import CommitFailed, translate_failures

T = TypeVar("T")
# A transaction that moves times locks their rows, so it ends soon. Without much to move, it moves everything.
MOVE_US: Final = 100_000
SLICES_PER_STATEMENT: Final = 16


class Noticed(NamedTuple):
    """The row `clock` after this process looked for a step, its reading, and whether it was the first to see a step."""

    row: ClockRow
    reading: ClockReading
    is_first: bool


class DatabaseClock:
    """The clock of one database, as this process sees it. All its shards have the same clock.

    `monotonic` is this process's clock, in microseconds. `longest_attempt_us`: for how long a request of the `basic`
    contract may take effect after it was sent. An attempt that no answer has closed is over after that time at the
    latest, whatever the clock does. `begin_era` is called when times may have moved.

    Every method raises DatabaseUnavailable.
    """

    def __init__(
        self, engine: Engine, monotonic: Callable[[], int], longest_attempt_us: int, begin_era: Callable[[], None]
    ) -> None:
        self._engine = engine
        self._queries = ClockQueries(engine.dialect)
        self._monotonic = monotonic
        self._longest_attempt_us = longest_attempt_us
        self._begin_era = begin_era

    async def read(self) -> ClockReading:
        """Read the database's time."""
        before = self._monotonic()
        with translate_failures():
            now = await self._engine.read(self._engine.dialect.read_now)
        return ClockReading(now, before, self._monotonic())

    async def notice(self, last: ClockReading | None) -> Noticed:
        """Look for a step back since `last`, or, if it is None, since the last commit. Begin to move the times."""
        return max([await self._notice(shard, last) for shard in self._engine.shards], key=_urgency)

    async def _notice(self, shard: Engine, last: ClockReading | None) -> Noticed:
        before = self._monotonic()

        def work(connection: Connection) -> Noticed:
            row = self._queries.lock(connection)
            reading = ClockReading(self._engine.dialect.read_now(connection), before, self._monotonic())
            if last:
                seen = find_set_back(last, reading)
            else:
                seen = find_set_back_since_commit(self._queries.last_commit_time(connection), reading.now)
            counted = count(row, reading.now, seen) if seen else row
            if counted != row:
                self._queries.write(connection, counted)
            moved = self._move_some(connection, counted)
            if counted != row:
                # Another process that starts must not see the same step. Last: a batch locks reservations first, too,
                # and then its commit marker.
                self._queries.limit_commit_times(connection, reading.now)
            return Noticed(moved, reading, counted != row)

        return await self._transact(shard, work)

    async def move(self) -> ClockRow:
        """Move some of the times that have yet to move after a step back, and return the row `clock`.

        With several shards, that of a shard which has times to move, if there is one.
        """

        def work(connection: Connection) -> ClockRow:
            return self._move_some(connection, self._queries.lock(connection))

        rows = [await self._transact(shard, work) for shard in self._engine.shards]
        return max(rows, key=lambda row: row.is_moving)

    async def extend_attempts(self, by_us: int) -> None:
        """After a step forward by `by_us`: give the attempts that were open before it their longest time again."""

        def work(connection: Connection) -> None:
            now = self._engine.dialect.read_now(connection)
            self._queries.extend_attempts(connection, now - by_us, now + self._longest_attempt_us)

        for shard in self._engine.shards:
            await self._transact(shard, work)

    def _move_some(self, connection: Connection, row: ClockRow) -> ClockRow:
        before, end = row, self._monotonic() + MOVE_US
        while row.is_moving and (row == before or self._monotonic() < end):
            now, after = self._engine.dialect.read_now(connection), row.next_slice + SLICES_PER_STATEMENT
            latest = now + self._longest_attempt_us
            self._queries.move(connection, range(row.next_slice, after), row.set_back_us, now, latest)
            row = row._replace(next_slice=after)
        if row != before:
            self._queries.write(connection, row)
        return row

    async def _transact(self, shard: Engine, work: Callable[[Connection], T]) -> T:
        """Run `work`, which may move times, in a transaction. If its outcome is unclear, it may run again later."""
        try:
            with translate_failures():
                return await shard.transact(work)
        except CommitFailed as failure:
            raise DatabaseUnavailable from failure
        finally:
            self._begin_era()


def _urgency(noticed: Noticed) -> tuple[bool, bool]:
    return noticed.row.is_moving, noticed.is_first
