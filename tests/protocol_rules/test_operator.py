"""An operator can retry a reservation now or force its release; no late answer undoes that."""

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


@pytest.mark.parametrize(
    "row", [BACKING_OFF, CALLING, release(a_held(), NOW)], ids=["backing off", "calling", "releasing"]
)
def test_retry_now_makes_the_row_due_resets_its_attempts_and_keeps_its_intent(row: Reservation) -> None:
    retried = retry_now(row, NOW)
    assert (retried.due_time, retried.attempt_count, retried.lease_expire_time) == (NOW, 0, None)
    assert (retried.revision, retried.disposition) == (row.revision, row.disposition)


def test_a_call_overtaken_by_retry_now_delays_nothing_and_its_answer_counts() -> None:
    retried = retry_now(CALLING, NOW)
    late = NoAnswer("DEADLINE_EXCEEDED", "")
    assert record_outcome(retried, CALLING.lease_epoch, CALLING.revision, late, NOW, LATER).due_time == NOW
    assert record_outcome(retried, CALLING.lease_epoch, CALLING.revision, held(CALLING), NOW, LATER).settled


@pytest.mark.parametrize("row", [a_held(), a_hold(waiting=True, due_time=None)], ids=["settled", "waiting"])
def test_retry_now_leaves_settled_and_waiting_rows_alone(row: Reservation) -> None:
    assert retry_now(row, NOW) is row


HELD_AND_RELEASING = release(a_held(), NOW)


def late_answers(row: Reservation) -> list[Answer | NoAnswer]:
    """All outcomes that calls under way can have."""
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
def test_a_forced_release_is_finished_and_no_late_answer_changes_it(row: Reservation) -> None:
    forced = force_release(row, NOW)
    assert forced.settled
    assert (forced.state, forced.granted_quantity) == (Observed.RELEASED, 0)
    assert (forced.due_time, forced.lease_expire_time, forced.finish_time) == (None, None, NOW)
    for outcome in late_answers(row):
        for epoch in (row.lease_epoch, forced.lease_epoch):
            assert record_outcome(forced, epoch, row.revision, outcome, NOW + SECOND, LATER) == forced
    assert force_release(forced, LATER) is forced


def test_a_sale_answered_after_a_forced_release_raises_an_alarm() -> None:
    assert find_alarm(force_release(a_held(), NOW), decided(a_held(), Observed.COMMITTED, 2))


def test_a_frozen_reservation_cannot_be_force_released() -> None:
    committing = a_held()._replace(disposition=Disposition.COMMIT, revision=2, intent_revision=2)
    with pytest.raises(ValueError, match="committed"):
        force_release(committing, NOW)


def test_an_item_whose_hold_an_operator_released_is_pending_until_the_release_is_observed_and_then_rejected() -> None:
    released = release(a_held(), NOW)._replace(seal_reason=RELEASED_BY_OPERATOR)
    assert progress(line_of(released), NOW).state is ProgressState.PENDING
    assert progress(line_of(released), NOW).reserved_quantity == 0
    after = record_outcome(released, 0, released.revision, decided(released, Observed.RELEASED), NOW, NOW)
    for known in (after, force_release(released, NOW)):
        seen = progress(line_of(known), NOW)
        assert (seen.state, seen.reason) == (ProgressState.REJECTED, RELEASED_BY_OPERATOR)
        assert "operator" in seen.message
