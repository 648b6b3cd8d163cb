"""The clocks of a simulation: the database's, which may be set to another time, and the Reservation API's."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cart_grpc.names import SLICES
from cart_grpc.store.clock_steps import TOLERANCE_US, ClockRow

EPOCH: Final = 1_800_000_000_000_000
"""The start of every simulation, in microseconds since the Unix epoch."""


class SimulatedClock:
    """The database's clock is `skew` microseconds ahead of virtual time; so is the API's if it `follows`.

    Each shard has its own rows, whose times must move after a step back.
    `is_step_open`: the clock was set back after rows were written, and their times have not all moved. `move_count`:
    how many transactions have moved some.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, follows: bool) -> None:
        self.skew = 0
        self.move_count = 0
        self._loop = loop
        self._follows = follows
        self._shards: defaultdict[int, _ShardClock] = defaultdict(_ShardClock)
        self._applied_at = 0.0

    def now(self) -> int:
        """The database's time."""
        return self._true_now() + self.skew

    def api_now(self) -> int:
        """The Reservation API's time."""
        return self._true_now() + (self.skew if self._follows else 0)

    @property
    def is_step_open(self) -> bool:
        return any(shard.is_step_open for shard in self._shards.values())

    @property
    def is_behind(self) -> bool:
        """Whether the database's clock is behind the API's."""
        return self.now() < self.api_now() - TOLERANCE_US

    @property
    def is_ahead(self) -> bool:
        """Whether the database's clock is ahead of the API's."""
        return self.now() > self.api_now() + 2 * TOLERANCE_US

    @property
    def is_step_applied(self) -> bool:
        """Whether the last step back was applied five seconds ago, so that no read from before is still under way."""
        return not self.is_step_open and self._loop.time() - self._applied_at > 5

    def set_to(self, skew: int) -> None:
        """Set the database's clock. A step by a second or two need not be noticed."""
        self.skew = skew
        for shard in self._shards.values():
            if shard.written_skew - skew > 60 * TOLERANCE_US:
                shard.is_step_open, shard.is_seen = True, False

    def note_write(self, numbers: Iterable[int]) -> None:
        """Note that rows of these shards were written by the clock as it is."""
        for number in numbers:
            self._shards[number].written_skew = self.skew

    def note_rows(self, rows: Mapping[int, ClockRow]) -> bool:
        """Note, after each commit, what each shard knows about the last step back. Return whether times moved."""
        moves = [self._note_row(number, row) for number, row in rows.items()]
        return any(moves)

    def _note_row(self, number: int, row: ClockRow) -> bool:
        shard = self._shards[number]
        is_move = row.set_back_time != shard.set_back_time or row.next_slice > shard.next_slice
        shard.next_slice = row.next_slice
        self.move_count += is_move
        if row.set_back_time != shard.set_back_time:
            shard.set_back_time, shard.is_seen = row.set_back_time, True
        if shard.is_step_open and shard.is_seen and not row.is_moving:
            shard.is_step_open = False
            self._applied_at = self._loop.time()
            shard.written_skew = self.skew
        return is_move

    def _true_now(self) -> int:
        return EPOCH + int(self._loop.time() * 1_000_000)


@dataclass(slots=True)
class _ShardClock:
    """The row `clock` of a shard, by how much the clock was ahead at its last write, and the state of the last step."""

    set_back_time: int = 0
    next_slice: int = SLICES
    written_skew: int = 0
    is_step_open: bool = False
    is_seen: bool = False
