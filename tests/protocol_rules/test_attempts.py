"""Attempts of the `basic` contract: one at a time, recorded, closed by their own answer, and looked up again later."""

from dataclasses import replace

import pytest

from cart_grpc.carts.progress import Progress, ProgressState, progress
from cart_grpc.protocol.attempts import DAY_US, count_duplicates, is_uncertain, open_attempt, update_attempt
from cart_grpc.protocol.reservation import (
    Answer,
    Decision,
    Disposition,
    NoAnswer,
    Observed,
    PermanentFailure,
    Reservation,
)
from cart_grpc.protocol.transitions import hold, record_outcome, release
from tests.carts.examples import NOW, SECOND, a_held, a_hold, decided, held, line_of

RETRY = NOW + SECOND
WINDOW = 180 * SECOND
GRACE = 60 * SECOND
TIMEOUT = NoAnswer("DEADLINE_EXCEEDED", "")


def claimed(row: Reservation) -> Reservation:
    return row._replace(lease_epoch=row.lease_epoch + 1, lease_expire_time=NOW + SECOND, due_time=NOW + SECOND)


def attempted(row: Reservation) -> Reservation:
    """`row`, claimed, with an open attempt."""
    opened = open_attempt(claimed(row), claimed(row), WINDOW, NOW)
    assert opened is not None
    return opened


def ended(
    row: Reservation, outcome: Answer | NoAnswer, *, sent: Reservation | None = None, now: int = NOW
) -> Reservation:
    """`row` after the call that opened its attempt ended with `outcome`. The call sent the intent of `sent`."""
    sent = sent or row
    after = record_outcome(row, sent.lease_epoch, sent.revision, outcome, now, now + SECOND)
    return update_attempt(after, outcome, sent.uncertain_until, now, GRACE)


def held_for_good(row: Reservation) -> Decision:
    return replace(held(row), expire_time=None)


def a_basic_held(quantity: int = 2) -> Reservation:
    row = attempted(a_hold(quantity))
    return ended(row, held_for_good(row))


def seen(row: Reservation) -> Progress:
    return progress(line_of(row), NOW)


def test_an_attempt_is_open_until_its_window_ends() -> None:
    assert attempted(a_hold()).uncertain_until == NOW + WINDOW


def test_no_second_attempt_opens_while_the_first_may_be_open() -> None:
    first = attempted(a_hold())
    again = claimed(first)
    assert open_attempt(again, again, WINDOW, NOW + WINDOW - 1) is None
    second = open_attempt(again, again, WINDOW, NOW + WINDOW)
    assert second is not None
    assert second.uncertain_until == NOW + 2 * WINDOW


def test_an_overtaken_claim_cannot_open_an_attempt() -> None:
    zombie = claimed(a_hold())
    assert open_attempt(claimed(zombie), zombie, WINDOW, NOW) is None


@pytest.mark.parametrize("change", ["another quantity", "removal"])
def test_an_attempt_is_not_opened_for_an_old_intent(change: str) -> None:
    before = claimed(a_hold(2))
    after = hold(before, 3, NOW) if change == "another quantity" else release(before, NOW)
    assert open_attempt(after, before, WINDOW, NOW) is None


def test_an_attempt_without_an_answer_stays_open_and_the_row_is_not_due_before_its_end() -> None:
    row = ended(attempted(a_hold()), TIMEOUT)
    assert (row.uncertain_until, row.due_time, row.lease_expire_time) == (NOW + WINDOW, NOW + WINDOW, None)


def test_after_the_window_the_row_is_due_at_its_retry_time() -> None:
    row = ended(attempted(a_hold()), TIMEOUT)._replace(lease_epoch=9, lease_expire_time=None)
    later = NOW + WINDOW
    again = update_attempt(record_outcome(row, 9, 1, TIMEOUT, later, later + SECOND), TIMEOUT, None, later, GRACE)
    assert again.due_time == later + SECOND


def test_an_answer_closes_the_attempt_and_schedules_a_look_up() -> None:
    row = attempted(a_hold())
    after = ended(row, held_for_good(row))
    assert (after.state, after.settled) == (Observed.HELD, True)
    assert (after.uncertain_until, after.due_time) == (NOW, NOW + GRACE)


def test_the_answer_to_another_attempt_closes_nothing() -> None:
    row = attempted(a_hold())
    late = update_attempt(row, held_for_good(row), NOW + WINDOW - 1, NOW, GRACE)
    assert late.uncertain_until == NOW + WINDOW


def test_a_removal_keeps_the_attempt_open_and_is_due_once_the_attempt_is_answered() -> None:
    sent = attempted(a_hold())
    removed = release(sent, NOW)
    assert removed.uncertain_until == NOW + WINDOW
    waiting = update_attempt(
        record_outcome(removed, removed.lease_epoch, 2, TIMEOUT, NOW, RETRY), TIMEOUT, None, NOW, GRACE
    )
    assert waiting.due_time == NOW + WINDOW
    answered = ended(waiting, held_for_good(sent), sent=sent)
    assert (answered.uncertain_until, answered.due_time) == (NOW, NOW)


def test_a_settled_row_is_looked_up_after_the_grace_ten_times_the_grace_and_a_day() -> None:
    row, checks = a_basic_held(), []
    while row.due_time is not None:
        checks.append(row.due_time - NOW)
        again = row._replace(revision=row.revision + 1)
        answer = replace(held_for_good(again), revision=again.revision)
        row = update_attempt(
            record_outcome(again, 1, again.revision, answer, row.due_time, 0), answer, None, row.due_time, GRACE
        )
    assert checks == [GRACE, 10 * GRACE, DAY_US]


def test_a_released_row_is_not_finished_before_its_last_look_up() -> None:
    row = release(a_basic_held(), NOW)
    answer = decided(row, Observed.RELEASED)
    watched = update_attempt(record_outcome(row, 0, row.revision, answer, NOW, RETRY), answer, None, NOW, GRACE)
    assert (watched.finish_time, watched.due_time) == (None, NOW + GRACE)
    again = watched._replace(revision=watched.revision + 1)
    last = replace(answer, revision=again.revision)
    over = update_attempt(
        record_outcome(again, 0, again.revision, last, NOW + DAY_US, RETRY), last, None, NOW + DAY_US, GRACE
    )
    assert (over.finish_time, over.due_time) == (NOW + DAY_US, None)


def test_a_rejected_row_is_not_looked_up_again() -> None:
    row = attempted(a_hold())._replace(disposition=Disposition.COMMIT)
    assert ended(row, decided(row, Observed.REJECTED)).due_time is None


def test_other_contracts_schedule_no_look_up() -> None:
    row = claimed(a_hold())
    after = record_outcome(row, row.lease_epoch, 1, held(row), NOW, RETRY)
    assert update_attempt(after, held(row), None, NOW, GRACE) is after


def test_a_later_look_up_keeps_no_new_hold_waiting() -> None:
    released = release(a_basic_held(), NOW)._replace(state=Observed.RELEASED)
    assert not released._replace(observed_revision=released.revision, revision=released.revision + 1).releasing


def test_an_unanswered_attempt_is_shown_as_uncertain() -> None:
    row = attempted(a_hold())
    assert seen(row).state is ProgressState.PENDING
    told = seen(ended(row, TIMEOUT))
    assert (told.state, told.reserved_quantity) == (ProgressState.UNCERTAIN, 0)
    assert "DEADLINE_EXCEEDED" in told.message


def test_a_failed_look_up_before_any_attempt_is_pending() -> None:
    row = claimed(hold(a_basic_held(), 3, NOW))
    failed = update_attempt(record_outcome(row, 2, row.revision, TIMEOUT, NOW, RETRY), TIMEOUT, None, NOW, GRACE)
    assert (seen(failed).state, seen(failed).reserved_quantity) == (ProgressState.PENDING, 2)


def test_a_hold_that_never_expires_is_reserved_without_an_expire_time() -> None:
    assert seen(a_basic_held(2)) == Progress(ProgressState.RESERVED, 2, None, "", "")


def test_nothing_is_shown_as_reserved_while_an_attempt_may_have_released_it() -> None:
    growing = attempted(hold(a_basic_held(2), 3, NOW))
    assert seen(growing).reserved_quantity == 0
    shrinking = attempted(hold(a_basic_held(2), 1, NOW))
    assert seen(shrinking).reserved_quantity == 0


def test_callers_do_not_see_a_repair_of_a_settled_hold() -> None:
    again = a_basic_held(2)._replace(revision=2)
    repairing = attempted(again)
    assert seen(repairing) == seen(again)
    assert not is_uncertain(ended(repairing, TIMEOUT))
    assert seen(ended(repairing, TIMEOUT)).state is ProgressState.RESERVED


def test_an_answer_for_an_older_quantity_is_shown_as_reserved() -> None:
    sent = attempted(a_hold(2))
    grown = hold(sent, 5, NOW)
    after = ended(grown, held_for_good(sent), sent=sent)
    assert (seen(after).state, seen(after).reserved_quantity) == (ProgressState.PENDING, 2)
    assert after.last_error == ""


def test_after_a_permanent_failure_the_granted_quantity_is_held_again() -> None:
    growing = attempted(hold(a_basic_held(2), 5, NOW))
    sealing = ended(growing, PermanentFailure("OUT_OF_STOCK", ""))
    assert (sealing.disposition, sealing.quantity, sealing.due_time) == (Disposition.HOLD, 2, NOW)
    assert seen(sealing).reserved_quantity == 0
    restored = ended(attempted(sealing), held_for_good(sealing))
    told = progress(line_of(restored, 5), NOW)
    assert (told.state, told.reserved_quantity, told.reason) == (ProgressState.REJECTED, 2, "OUT_OF_STOCK")


@pytest.mark.parametrize(
    ("before", "live_count", "duplicates"),
    [
        (a_hold(), 0, 0),
        (a_hold(), 1, 0),
        (a_hold(), 3, 2),
        (release(a_held(), NOW), 1, 0),
        (release(a_held(), NOW), 2, 1),
        (release(a_held(), NOW)._replace(state=Observed.RELEASED), 1, 1),
        (release(a_held(), NOW)._replace(state=Observed.RELEASED), 0, 0),
    ],
)
def test_surplus_live_reservations_are_counted(before: Reservation, live_count: int, duplicates: int) -> None:
    assert count_duplicates(before, replace(decided(before, Observed.HELD), live_count=live_count)) == duplicates


def test_no_answer_counts_no_duplicates() -> None:
    assert count_duplicates(a_hold(), TIMEOUT) == 0
