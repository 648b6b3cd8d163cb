"""The clocks of a simulation: the database's, which may be set to another time, and the Reservation API's."""

import asyncio
from typing import Final

from cart_grpc.names import SLICES
from cart_grpc.store.clock_steps import TOLERANCE_US, ClockRow

EPOCH: Final = 1_800_000_000_000_000
"""The start of every simulation, in microseconds since the Unix epoch."""


class SimulatedClock:
    """The database's clock is `skew` microseconds ahead of virtual time; so is the API's if it `follows`.

    `is_step_open`: the clock was set back after rows were written, and their times have not all moved. `move_count`:
    how many transactions have moved some.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, follows: bool) -> None:
        self.skew = 0
        self.is_step_open = False
        self.move_count = 0
        self._loop = loop
        self._follows = follows
        self._set_back_time = 0
        self._is_seen = False
        self._written_skew = 0
        self._applied_at = 0.0
        self._next_slice = SLICES

    def now(self) -> int:
        """The database's time."""
        return self._true_now() + self.skew

    def api_now(self) -> int:
        """The Reservation API's time."""
        return self._true_now() + (self.skew if self._follows else 0)

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
        if self._written_skew - skew > 60 * TOLERANCE_US:
            self.is_step_open, self._is_seen = True, False

    def note_write(self) -> None:
        """Note that rows were written by the clock as it is."""
        self._written_skew = self.skew

    def note_row(self, row: ClockRow | None) -> bool:
        """Note, after each commit, what the database knows about the last step back. Return whether times moved."""
        if row is None:
            return False
        is_move = row.set_back_time != self._set_back_time or row.next_slice > self._next_slice
        self._next_slice = row.next_slice
        self.move_count += is_move
        if row.set_back_time != self._set_back_time:
            self._set_back_time, self._is_seen = row.set_back_time, True
        if self.is_step_open and self._is_seen and not row.is_moving:
            self.is_step_open = False
            self._applied_at = self._loop.time()
            self.note_write()
        return is_move

    def _true_now(self) -> int:
        return EPOCH + int(self._loop.time() * 1_000_000)
