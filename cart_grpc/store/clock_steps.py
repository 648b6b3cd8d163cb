"""Steps of the database's clock: the rules by which a step back is noticed, as pure functions.

A row is due, and a hold has expired, by the database's clock. It may be set back by hours: an operator corrects it, or
another server takes over. Without a remedy, rows would wait for these hours, and callers would see an ended hold as
held. Therefore every process compares the database's time with its own monotonic clock, and, when it starts,
with the time of the last commit. After a step back, the stored times are moved back with the clock, a few slices per
transaction: see `database_clock`.

After a step forward, waiting rows are due early, and holds that seem to have expired are asked for again. Their times
must not move: a machine that was suspended looks the same, and its holds really have expired. But an attempt of the
`basic` contract may still take effect, so it is given its longest time again.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from cart_grpc.names import SLICES

# Smaller steps are ignored. Callers see a hold end two seconds early (HOLD_MARGIN_US), which is more.
TOLERANCE_US: Final = 1_000_000
# Every process looks at all shards in turn twice a second.
NOTICE_US: Final = 60_000_000
# The clock was set back while no process ran. Nobody knows how far, so every stored time counts as over.
UNKNOWN_US: Final = 1 << 60


class ClockReading(NamedTuple):
    """The database's time, which was read between two readings of this process's monotonic clock. In microseconds."""

    now: int
    before: int
    after: int


class SetBack(NamedTuple):
    """A step back that one process saw: at most `by_us`, and at most `ago_us` before the last reading."""

    by_us: int
    ago_us: int


class ClockRow(NamedTuple):
    """The row of the table `clock`: the last step back.

    `set_back_time` is when it was noticed, by the clock after the step. Stored times move back by `set_back_us`; those
    of the slices from `next_slice` on have yet to move.
    """

    slice: int
    set_back_time: int
    set_back_us: int
    next_slice: int

    @property
    def is_moving(self) -> bool:
        """Whether stored times have yet to move."""
        return self.next_slice < SLICES


# The row before the first step.
NO_STEP: Final = ClockRow(0, 0, 0, SLICES)


def is_applied_in_all(rows: Sequence[ClockRow], now: int) -> bool:
    """Whether the stored times of shards with these rows have moved after the last step back, in all or in none.

    If not, a reservation that passed from one to the other could keep its times from before the step. Shards on two
    nodes may have different steps. So one that has not noticed a step within NOTICE_US has none.
    """
    if any(row.is_moving for row in rows):
        return False
    latest = max(row.set_back_time for row in rows)
    is_recent = abs(now - latest) < NOTICE_US
    return not is_recent or all(latest - row.set_back_time < NOTICE_US for row in rows)


def find_set_back(last: ClockReading, this: ClockReading) -> SetBack | None:
    """The step back between two readings, or None if there was none of more than TOLERANCE_US.

    Whether there was a step is judged by the shortest time that can lie between the readings, how large it was by the
    longest: a step that is overrated only makes the service ask the Reservation API earlier.
    """
    if last.now + (this.before - last.after) - this.now <= TOLERANCE_US:
        return None
    ago_us = this.after - last.before
    return SetBack(last.now + ago_us - this.now, ago_us)


def find_set_forward(last: ClockReading, this: ClockReading) -> int | None:
    """By how much the clock was set forward between two readings at most. None if it was TOLERANCE_US or less."""
    if this.now - last.now - (this.after - last.before) <= TOLERANCE_US:
        return None
    return this.now - last.now - (this.before - last.after)


def find_set_back_since_commit(commit_time: int, now: int) -> SetBack | None:
    """The step back since the last commit of any process, or None if there was none that shows."""
    return SetBack(UNKNOWN_US, 0) if commit_time > now + TOLERANCE_US else None


def count(row: ClockRow, now: int, seen: SetBack) -> ClockRow:
    """The row after a process saw a step back at `now`. A step that another process saw first is not counted again."""
    if now - seen.ago_us - TOLERANCE_US <= row.set_back_time <= now:
        return row
    # If an earlier step is still being applied, some slices move too far. That is safe: see `find_set_back`.
    unfinished_us = row.set_back_us if row.is_moving else 0
    return ClockRow(row.slice, now, min(seen.by_us + unfinished_us, UNKNOWN_US), 0)
