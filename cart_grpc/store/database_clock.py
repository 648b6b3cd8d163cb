"""Reads the database's clock, and after a step back moves the stored times: see `clock_steps` for the rules.

On a distributed PostgreSQL each node has a clock. The times of a shard are those of its node, so its clock is read, and
its times are moved, through its tables.
"""

from collections.abc import Callable, Sequence
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
from cart_grpc.store.shard_nodes import ShardNodes

T = TypeVar("T")
# A transaction that moves times locks their rows, so it ends soon. Without much to move, it moves everything.
MOVE_US: Final = 100_000
SLICES_PER_STATEMENT: Final = 16


class Noticed(NamedTuple):
    """The row `clock` of a shard after this process looked for a step, its reading, and whether it was the first to see
    a step.
    """

    row: ClockRow
    reading: ClockReading
    is_first: bool


class DatabaseClock:
    """The clocks of one database, as this process sees them. A shard is named by its number, as in `shards`.

    `monotonic` is this process's clock, in microseconds. `longest_attempt_us`: for how long a request of the `basic`
    contract may take effect after it was sent. An attempt that no answer has closed is over after that time at the
    latest, whatever the clock does. `begin_era` is called when times may have moved.

    Every method raises DatabaseUnavailable.
    """

    def __init__(
        self, engine: Engine, monotonic: Callable[[], int], longest_attempt_us: int, begin_era: Callable[[], None]
    ) -> None:
        self.shard_count = len(engine.shards)
        self._shards = engine.shards
        self._nodes = ShardNodes(engine)
        self._dialect = engine.dialect
        self._queries = ClockQueries(engine.dialect)
        self._monotonic = monotonic
        self._longest_attempt_us = longest_attempt_us
        self._begin_era = begin_era

    async def find_nodes(self) -> Sequence[Sequence[int]]:
        """Return the shards of each node. They have the same clock."""
        with translate_failures():
            return await self._nodes.find()

    async def read(self, shard: int) -> ClockReading:
        """Read the time of a shard's node."""
        before = self._monotonic()
        with translate_failures():
            now = await self._shards[shard].read(self._dialect.read_now)
        return ClockReading(now, before, self._monotonic())

    async def last_commit_time(self) -> int:
        """Return the time of the last commit in any shard, 0 if there was none."""
        with translate_failures():
            return max([await shard.query(self._queries.last_commit_time) for shard in self._shards])

    async def notice(self, shard: int, last: ClockReading | None, since: int = 0) -> Noticed:
        """Look for a step back since `last`, or, if it is None, since the last commit in the shard, or since `since`.

        Begins to move its times.
        """
        before = self._monotonic()

        def work(connection: Connection) -> Noticed:
            row = self._queries.lock(connection)
            reading = ClockReading(self._dialect.read_now(connection), before, self._monotonic())
            if last:
                seen = find_set_back(last, reading)
            else:
                commit_time = max(since, self._queries.last_commit_time(connection))
                seen = find_set_back_since_commit(commit_time, reading.now)
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

    async def move(self, shard: int) -> ClockRow:
        """Move some of a shard's times that have yet to move after a step back, and return its row `clock`."""

        def work(connection: Connection) -> ClockRow:
            return self._move_some(connection, self._queries.lock(connection))

        return await self._transact(shard, work)

    async def extend_attempts(self, shard: int, by_us: int) -> None:
        """After a step forward by `by_us`: give the attempts that were open before it their longest time again."""

        def work(connection: Connection) -> None:
            now = self._dialect.read_now(connection)
            self._queries.extend_attempts(connection, now - by_us, now + self._longest_attempt_us)

        await self._transact(shard, work)

    def _move_some(self, connection: Connection, row: ClockRow) -> ClockRow:
        before, end = row, self._monotonic() + MOVE_US
        while row.is_moving and (row == before or self._monotonic() < end):
            now, after = self._dialect.read_now(connection), row.next_slice + SLICES_PER_STATEMENT
            latest = now + self._longest_attempt_us
            self._queries.move(connection, range(row.next_slice, after), row.set_back_us, now, latest)
            row = row._replace(next_slice=after)
        if row != before:
            self._queries.write(connection, row)
        return row

    async def _transact(self, shard: int, work: Callable[[Connection], T]) -> T:
        """Run `work`, which may move times, in a transaction. If its outcome is unclear, it may run again later."""
        try:
            with translate_failures():
                return await self._shards[shard].transact(work)
        except CommitFailed as failure:
            raise DatabaseUnavailable from failure
        finally:
            self._begin_era()
