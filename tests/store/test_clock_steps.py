"""The rules about steps of the database's clock."""

import pytest

from cart_grpc.names import SLICES
from cart_grpc.store.clock_steps import (
    NO_STEP,
    NOTICE_US,
    UNKNOWN_US,
    ClockReading,
    ClockRow,
    SetBack,
    count,
    find_set_back,
    find_set_back_since_commit,
    find_set_forward,
    is_applied_in_all,
)

SECOND = 1_000_000
HOUR = 3600 * SECOND
NOW = 1_800_000_000 * SECOND
# The last reading took 20 ms, and the next one, a second later, 10 ms.
LAST = ClockReading(NOW, 500_000, 520_000)


def reading(now: int) -> ClockReading:
    return ClockReading(now, 1_520_000, 1_530_000)


@pytest.mark.parametrize("step", [0, -SECOND // 2, SECOND, HOUR])
def test_a_clock_that_goes_on_or_was_set_forward_needs_nothing(step: int) -> None:
    assert find_set_back(LAST, reading(NOW + SECOND + step)) is None


@pytest.mark.parametrize("step", [-HOUR, -SECOND, 0, SECOND])
def test_only_a_clock_that_was_set_forward_gives_attempts_more_time(step: int) -> None:
    assert find_set_forward(LAST, reading(NOW + SECOND + step)) is None


def test_a_step_forward_is_never_underrated() -> None:
    by_us = find_set_forward(LAST, reading(NOW + SECOND + HOUR))
    assert by_us is not None
    assert HOUR <= by_us <= HOUR + 30_000


def test_a_step_back_is_never_underrated() -> None:
    seen = find_set_back(LAST, reading(NOW + SECOND - HOUR))
    assert seen is not None
    # Between the readings are 1 s at least and 1.03 s at most.
    assert HOUR <= seen.by_us <= HOUR + 30_000
    assert seen.ago_us == 1_030_000


def test_a_suspended_process_sees_no_step_back() -> None:
    assert find_set_back(LAST, ClockReading(NOW + HOUR, 520_000 + HOUR, 530_000 + HOUR)) is None


def test_a_commit_in_the_future_shows_a_step_back_of_unknown_size() -> None:
    assert find_set_back_since_commit(NOW + HOUR, NOW) == SetBack(UNKNOWN_US, 0)
    assert find_set_back_since_commit(NOW - HOUR, NOW) is None
    assert find_set_back_since_commit(0, NOW) is None


def test_a_step_moves_the_times_of_all_slices() -> None:
    row = count(NO_STEP, NOW, SetBack(HOUR, SECOND))
    assert row == ClockRow(0, NOW, HOUR, 0)
    assert row.is_moving
    assert not row._replace(next_slice=SLICES).is_moving


def test_a_step_that_two_processes_see_counts_once() -> None:
    row = count(NO_STEP, NOW, SetBack(HOUR, SECOND))._replace(next_slice=SLICES)
    assert count(row, NOW + SECOND // 2, SetBack(HOUR, SECOND)) == row


def test_another_step_counts_whether_it_is_later_or_further_back() -> None:
    row = count(NO_STEP, NOW, SetBack(HOUR, SECOND))._replace(next_slice=SLICES)
    assert count(row, NOW + 60 * SECOND, SetBack(HOUR, SECOND)).set_back_us == HOUR
    assert count(row, NOW - HOUR, SetBack(HOUR, SECOND)).set_back_time == NOW - HOUR


def test_a_step_before_all_times_have_moved_adds_up() -> None:
    row = count(NO_STEP, NOW, SetBack(HOUR, SECOND))._replace(next_slice=100)
    assert count(row, NOW - HOUR, SetBack(HOUR, SECOND)) == ClockRow(0, NOW - HOUR, 2 * HOUR, 0)
    unknown = count(row, NOW - HOUR, SetBack(UNKNOWN_US, SECOND))
    assert unknown.set_back_us == UNKNOWN_US


def stepped(ago: int, next_slice: int = SLICES) -> ClockRow:
    """The row of a shard that noticed a step so long ago."""
    return ClockRow(0, NOW - ago, HOUR, next_slice)


@pytest.mark.parametrize(
    ("one", "other", "is_applied"),
    [
        (NO_STEP, NO_STEP, True),
        (stepped(SECOND), stepped(SECOND), True),
        (stepped(SECOND), stepped(2 * SECOND), True),
        (stepped(SECOND), stepped(SECOND, next_slice=0), False),
        (stepped(SECOND), NO_STEP, False),
        (stepped(SECOND), stepped(HOUR), False),
        # The other one is on a node whose clock was not set.
        (stepped(NOTICE_US), NO_STEP, True),
        (stepped(HOUR), stepped(2 * HOUR), True),
        # A second step, which none has noticed yet.
        (stepped(-HOUR), stepped(-HOUR), True),
    ],
)
def test_rows_pass_between_shards_if_a_step_is_applied_in_both_or_in_none(
    one: ClockRow, other: ClockRow, is_applied: bool
) -> None:
    assert is_applied_in_all([one, other], NOW) is is_applied
    assert is_applied_in_all([other, one], NOW) is is_applied
