"""What an operator may do to a reservation, and what no late answer can undo."""

import pytest

from cart_grpc.carts.progress import ProgressState, progress
from cart_grpc.protocol.reservation import (
    RELEASED_BY_OPERATOR,
    Answer,
    Disposition,
    NoAnswer,
    Observed,
    PermanentFailure,
    Reservation,
    StaleRevision,
)
from cart_grpc.protocol.transitions import find_alarm, force_release, record_outcome, release, retry_now
from tests.carts.examples import LATER, NOW, SECOND, a_held, a_hold, decided, held, line_of

BACKING_OFF = a_hold(attempt_count=7, due_time=LATER, last_error="UNAVAILABLE: down", lease_epoch=7)
CALLING = a_hold(attempt_count=1, due_time=NOW + 15 * SECOND, lease_epoch=1, lease_expire_time=NOW + 15 * SECOND)


@pytest.mark.parametrize("row", [BACKING_OFF, CALLING, release(a_held(), NOW)], ids=["put off", "calling", "releasing"])
def test_what_is_hurried_is_due_at_once_with_its_attempts_forgotten_and_the_same_thing_to_say(row: Reservation) -> None:
    hurried = retry_now(row, NOW)
    assert (hurried.due_time, hurried.attempt_count, hurried.lease_expire_time) == (NOW, 0, None)
    assert (hurried.revision, hurried.disposition) == (row.revision, row.disposition)


def test_a_call_that_is_overtaken_by_a_hurry_delays_nothing_and_its_answer_counts() -> None:
    hurried = retry_now(CALLING, NOW)
    late = NoAnswer("DEADLINE_EXCEEDED", "")
    assert record_outcome(hurried, CALLING.lease_epoch, CALLING.revision, late, NOW, LATER).due_time == NOW
    assert record_outcome(hurried, CALLING.lease_epoch, CALLING.revision, held(CALLING), NOW, LATER).settled


@pytest.mark.parametrize("row", [a_held(), a_hold(waiting=True, due_time=None)], ids=["settled", "waiting"])
def test_what_has_nothing_to_say_or_must_wait_is_not_hurried(row: Reservation) -> None:
    assert retry_now(row, NOW) is row


HELD_AND_RELEASING = release(a_held(), NOW)


def late_answers(row: Reservation) -> list[Answer | NoAnswer]:
    """Whatever the calls that were under way may bring."""
    return [
        held(row),
        decided(row, Observed.RELEASED),
        decided(row, Observed.COMMITTED, row.quantity),
        decided(row, Observed.REJECTED),
        decided(row, Observed.HELD, row.quantity, revision=row.revision + 5),
        StaleRevision(decided(row, Observed.HELD, row.quantity, revision=row.revision + 5)),
        PermanentFailure("INVALID", "never"),
        NoAnswer("DEADLINE_EXCEEDED", ""),
    ]


@pytest.mark.parametrize("row", [a_hold(), CALLING, a_held(), HELD_AND_RELEASING, BACKING_OFF])
def test_what_is_abandoned_is_finished_and_no_late_answer_changes_it(row: Reservation) -> None:
    abandoned = force_release(row, NOW)
    assert abandoned.settled
    assert (abandoned.state, abandoned.granted_quantity) == (Observed.RELEASED, 0)
    assert (abandoned.due_time, abandoned.lease_expire_time, abandoned.finish_time) == (None, None, NOW)
    for outcome in late_answers(row):
        for epoch in (row.lease_epoch, abandoned.lease_epoch):
            assert record_outcome(abandoned, epoch, row.revision, outcome, NOW + SECOND, LATER) == abandoned
    assert force_release(abandoned, LATER) is abandoned


def test_a_sale_that_is_answered_after_an_abandonment_is_alarmed() -> None:
    assert find_alarm(force_release(a_held(), NOW), decided(a_held(), Observed.COMMITTED, 2))


def test_what_is_being_committed_cannot_be_abandoned() -> None:
    committing = a_held()._replace(disposition=Disposition.COMMIT, revision=2, intent_revision=2)
    with pytest.raises(ValueError, match="committed"):
        force_release(committing, NOW)


def test_an_item_whose_hold_an_operator_gave_back_is_pending_until_that_is_known_and_then_rejected() -> None:
    released = release(a_held(), NOW)._replace(seal_reason=RELEASED_BY_OPERATOR)
    assert progress(line_of(released), NOW).state is ProgressState.PENDING
    assert progress(line_of(released), NOW).reserved_quantity == 0
    after = record_outcome(released, 0, released.revision, decided(released, Observed.RELEASED), NOW, NOW)
    for known in (after, force_release(released, NOW)):
        seen = progress(line_of(known), NOW)
        assert (seen.state, seen.reason) == (ProgressState.REJECTED, RELEASED_BY_OPERATOR)
        assert "operator" in seen.message
