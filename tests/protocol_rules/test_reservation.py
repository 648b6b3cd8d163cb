"""The rules of `protocol.transitions`, one at a time."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from cart_grpc.carts.progress import ProgressState, progress
from cart_grpc.commands.record import RecordOutcome
from cart_grpc.commands.unit_of_work import UnitOfWork
from cart_grpc.protocol.reservation import Disposition, NoAnswer, Observed, PermanentFailure, Reservation, StaleRevision
from cart_grpc.protocol.transitions import (
    CLOCK_SKEW_US,
    claim,
    commit,
    find_alarm,
    hold,
    is_first_sent,
    limit_hold,
    merge_decision,
    next_intent,
    record_outcome,
    release,
    retry_now,
    stop_waiting,
)
from tests.carts.examples import LATER, NOW, SECOND, a_held, a_hold, decided, held, line_of

RETRY = NOW + 7 * SECOND
TIMEOUT = NoAnswer("DEADLINE_EXCEEDED", "no answer")


def test_a_new_reservation_sends_its_intent() -> None:
    intent = next_intent(a_hold(3))
    assert intent is not None
    assert (intent.reservation_id, intent.revision, intent.quantity) == ("r-1", 1, 3)
    assert intent.disposition is Disposition.HOLD


def test_a_settled_reservation_sends_nothing() -> None:
    assert next_intent(a_held()) is None


def test_five_changes_are_one_message_with_the_last_quantity() -> None:
    row = a_hold(1)
    for quantity in range(2, 7):
        row = hold(row, quantity, NOW)
    intent = next_intent(row)
    assert intent is not None
    assert (intent.revision, intent.quantity) == (6, 6)


def test_a_new_quantity_raises_the_revision_is_due_at_once_and_resets_the_attempts() -> None:
    changed = hold(a_held(2)._replace(attempt_count=9, seal_reason="NOT_FOUND"), 5, NOW)
    assert (changed.revision, changed.quantity, changed.due_time) == (2, 5, NOW)
    assert (changed.attempt_count, changed.seal_reason) == (0, "")
    assert (changed.state, changed.granted_quantity, changed.observed_revision) == (Observed.HELD, 2, 1)


def test_a_change_during_a_hanging_call_leaves_the_lease_alone() -> None:
    leased = a_hold()._replace(lease_epoch=1, lease_expire_time=NOW + SECOND, due_time=NOW + SECOND)
    assert hold(leased, 5, NOW).due_time == NOW + SECOND


def test_a_change_after_the_lease_expired_is_due_at_once() -> None:
    leased = a_hold()._replace(lease_epoch=1, lease_expire_time=NOW - SECOND, due_time=NOW + SECOND)
    assert hold(leased, 5, NOW).due_time == NOW


def test_a_changed_hold_keeps_waiting_for_the_older_release() -> None:
    waiting = hold(a_hold(waiting=True, due_time=None), 5, NOW)
    assert (waiting.waiting, waiting.due_time, waiting.quantity) == (True, None, 5)


def test_a_waiting_hold_is_due_once_it_stops_waiting() -> None:
    unblocked = stop_waiting(a_hold(waiting=True, due_time=None), NOW)
    assert (unblocked.waiting, unblocked.due_time) == (False, NOW)


@pytest.mark.parametrize(
    "closed",
    [
        release(a_hold(), NOW),
        a_held()._replace(state=Observed.RELEASED),
        a_held()._replace(state=Observed.COMMITTED),
        a_held()._replace(disposition=Disposition.COMMIT, revision=2),
    ],
)
def test_a_closed_or_frozen_reservation_cannot_be_held_again(closed: object) -> None:
    with pytest.raises(ValueError, match="cannot be held again"):
        hold(closed, 1, NOW)  # type: ignore[arg-type]


@pytest.mark.parametrize("before", [a_hold(), a_held(), a_hold(waiting=True, due_time=None)])
def test_a_release_is_due_at_once_in_every_state_of_the_hold(before: object) -> None:
    released = release(before, NOW)  # type: ignore[arg-type]
    intent = next_intent(released)
    assert intent is not None
    assert (intent.disposition, intent.revision) == (Disposition.RELEASE, 2)
    assert (released.due_time, released.waiting) == (NOW, False)


def test_a_release_is_due_during_a_hanging_call_and_ends_its_claim() -> None:
    leased = a_hold()._replace(lease_epoch=4, lease_expire_time=LATER, due_time=LATER)
    released = release(leased, NOW)
    assert (released.due_time, released.lease_expire_time, released.lease_epoch) == (NOW, None, 5)


def test_a_second_release_changes_nothing() -> None:
    released = release(a_hold(), NOW)
    assert release(released, NOW + SECOND) is released


def test_a_reservation_that_is_being_committed_cannot_be_released() -> None:
    committing = a_held()._replace(disposition=Disposition.COMMIT, revision=2)
    with pytest.raises(ValueError, match="being committed"):
        release(committing, NOW)


def test_a_commit_is_due_during_a_hanging_call_and_ends_its_claim() -> None:
    leased = a_held(2)._replace(
        lease_epoch=4, lease_expire_time=LATER, due_time=LATER, attempt_count=3, seal_reason="NOT_FOUND"
    )
    committing = commit(leased, NOW)
    intent = next_intent(committing)
    assert intent is not None
    assert (intent.disposition, intent.quantity, intent.revision) == (Disposition.COMMIT, 2, 2)
    assert (committing.due_time, committing.lease_expire_time, committing.lease_epoch) == (NOW, None, 5)
    assert (committing.attempt_count, committing.seal_reason, committing.reconciling) == (0, "", True)


def test_a_second_commit_changes_nothing_and_a_time_out_keeps_the_row_frozen() -> None:
    committing = commit(a_held(), NOW)
    assert commit(committing, NOW + SECOND) is committing
    assert record_outcome(committing, committing.lease_epoch, 2, TIMEOUT, NOW, RETRY).frozen


@pytest.mark.parametrize(
    "closed", [release(a_held(), NOW), a_held()._replace(state=Observed.COMMITTED), a_hold(waiting=True, due_time=None)]
)
def test_a_closed_or_waiting_reservation_cannot_be_committed(closed: Reservation) -> None:
    with pytest.raises(ValueError, match="cannot be committed"):
        commit(closed, NOW)


def test_a_rejected_commit_can_be_held_or_committed_again() -> None:
    committing = commit(a_held(2), NOW)
    rejected = merge_decision(committing, decided(committing, Observed.REJECTED))
    assert hold(rejected, 1, NOW).disposition is Disposition.HOLD
    assert commit(rejected, NOW).revision == 3


def test_a_decision_on_a_revision_that_we_never_issued_is_not_shown_as_reserved() -> None:
    row = a_held(2)
    forgotten = decided(row, Observed.HELD, 2, revision=5)
    raised = record_outcome(row, row.lease_epoch, 1, StaleRevision(forgotten), NOW, RETRY)
    assert (raised.revision, raised.due_time) == (6, NOW)
    for seen in (raised, merge_decision(raised, forgotten)):
        assert progress(line_of(seen), NOW).state is ProgressState.PENDING


def test_a_rejected_commit_can_be_released() -> None:
    committing = a_held()._replace(disposition=Disposition.COMMIT, revision=2)
    rejected = merge_decision(committing, decided(committing, Observed.REJECTED))
    assert release(rejected, NOW).disposition is Disposition.RELEASE


def test_a_decision_is_observed_at_the_revision_it_answers() -> None:
    row = hold(a_hold(2), 5, NOW)
    seen = merge_decision(row, decided(row, Observed.HELD, 2, revision=1))
    assert (seen.observed_revision, seen.granted_quantity, seen.settled) == (1, 2, False)
    assert next_intent(seen) == next_intent(row)


def test_an_answer_for_an_old_quantity_that_arrives_late_changes_nothing() -> None:
    row = hold(a_hold(2), 5, NOW)
    seen = merge_decision(row, held(row))
    assert merge_decision(seen, decided(row, Observed.HELD, 2, revision=1)) is seen


def test_the_same_answer_twice_changes_nothing() -> None:
    row = a_held()
    assert merge_decision(row, held(row)) is row


def test_a_decision_on_a_revision_that_we_never_issued_is_ignored_and_raises_an_alarm() -> None:
    row = a_hold()
    future = decided(row, Observed.HELD, 2, revision=2)
    assert merge_decision(row, future) is row
    assert "our latest is 1" in (find_alarm(row, future) or "")


def test_a_release_answered_committed_raises_an_alarm() -> None:
    released = release(a_held(), NOW)
    assert find_alarm(released, decided(released, Observed.COMMITTED, 2)) is not None


def test_a_hold_answered_committed_raises_an_alarm_and_a_commit_does_not() -> None:
    row = a_hold()
    assert find_alarm(row, decided(row, Observed.COMMITTED, 2)) is not None
    committing = commit(a_held(), NOW)
    assert find_alarm(committing, decided(committing, Observed.COMMITTED, 2)) is None


@pytest.mark.parametrize("outcome", [held(a_hold()), PermanentFailure("NOT_FOUND", ""), TIMEOUT])
def test_expected_outcomes_raise_no_alarm(outcome: object) -> None:
    assert find_alarm(a_hold(), outcome) is None  # type: ignore[arg-type]


def test_an_answer_settles_the_row_and_ends_its_claim() -> None:
    claimed = a_hold()._replace(lease_epoch=1, lease_expire_time=LATER, due_time=LATER, last_error="UNAVAILABLE: ")
    after = record_outcome(claimed, 1, 1, held(claimed), NOW, RETRY)
    assert after.settled
    assert (after.lease_expire_time, after.last_error) == (None, "")


def test_without_an_answer_the_same_intent_is_sent_again_later() -> None:
    claimed = a_hold()._replace(lease_epoch=1, lease_expire_time=LATER, due_time=LATER)
    after = record_outcome(claimed, 1, 1, TIMEOUT, NOW, RETRY)
    assert next_intent(after) == next_intent(claimed)
    assert (after.due_time, after.lease_expire_time, after.observed_revision) == (RETRY, None, 0)
    assert after.last_error == "DEADLINE_EXCEEDED: no answer"


def test_after_an_answer_to_an_older_intent_the_newer_intent_is_due_at_once() -> None:
    claimed = a_hold(2)._replace(lease_epoch=1, lease_expire_time=LATER, due_time=LATER)
    changed = hold(claimed, 5, NOW)
    after = record_outcome(changed, 1, 1, held(claimed), NOW, RETRY)
    assert (after.observed_revision, after.due_time, after.lease_expire_time) == (1, NOW, None)


def test_an_overtaken_claim_changes_no_bookkeeping_but_its_decision_is_merged() -> None:
    row = hold(a_hold(2)._replace(lease_epoch=2, lease_expire_time=LATER, due_time=LATER, attempt_count=2), 5, NOW)
    after = record_outcome(row, 1, 1, decided(row, Observed.HELD, 2, revision=1), NOW, RETRY)
    assert (after.observed_revision, after.granted_quantity) == (1, 2)
    assert (after.due_time, after.lease_expire_time, after.lease_epoch) == (LATER, LATER, 2)


def test_no_answer_under_an_overtaken_claim_changes_nothing() -> None:
    row = a_hold()._replace(lease_epoch=2, lease_expire_time=LATER, due_time=LATER)
    assert record_outcome(row, 1, 1, TIMEOUT, NOW, RETRY) == row


def test_the_latest_decision_settles_the_row_even_under_an_overtaken_claim() -> None:
    row = a_hold()._replace(lease_epoch=2, lease_expire_time=LATER, due_time=LATER)
    after = record_outcome(row, 1, 1, held(row), NOW, RETRY)
    assert (after.settled, after.lease_expire_time) == (True, None)


def test_aborted_by_our_own_newer_revision_records_nothing() -> None:
    row = hold(a_hold(2)._replace(lease_epoch=1), 5, NOW)
    outcome = StaleRevision(held(row))
    after = record_outcome(row, 1, 1, outcome, NOW, RETRY)
    assert (after.revision, after.observed_revision, after.state) == (2, 0, Observed.NOTHING)
    assert after.due_time == NOW
    assert find_alarm(row, outcome) is None


def test_aborted_by_a_revision_above_ours_raises_past_it_and_raises_an_alarm() -> None:
    row = a_hold()._replace(lease_epoch=1)
    outcome = StaleRevision(decided(row, Observed.HELD, 9, revision=41))
    after = record_outcome(row, 1, 1, outcome, NOW, RETRY)
    assert (after.revision, after.observed_revision, after.due_time) == (42, 0, NOW)
    assert find_alarm(row, outcome) is not None


def test_a_settled_row_raised_past_a_revision_of_the_api_is_due_even_under_an_overtaken_claim() -> None:
    row = a_held()._replace(lease_epoch=2)
    after = record_outcome(row, 1, 1, StaleRevision(decided(row, Observed.HELD, 9, revision=41)), NOW, RETRY)
    assert (after.revision, after.settled) == (42, False)
    assert after.due_time == NOW


def test_a_hold_is_renewed_after_half_to_three_quarters_of_its_remaining_time() -> None:
    claimed = a_hold()._replace(lease_epoch=1, lease_expire_time=LATER, due_time=LATER)
    left = LATER - NOW
    for jitter, share in ((0.0, 0.5), (1.0, 0.75)):
        after = record_outcome(claimed, 1, 1, held(claimed), NOW, RETRY, jitter)
        assert after.due_time == NOW + int(left * share)


@pytest.mark.parametrize("state", [Observed.REJECTED, Observed.RELEASED])
def test_a_reservation_that_holds_nothing_is_not_renewed(state: Observed) -> None:
    claimed = a_hold()._replace(lease_epoch=1, lease_expire_time=LATER, due_time=LATER)
    after = record_outcome(claimed, 1, 1, decided(claimed, state), NOW, RETRY)
    assert (after.settled, after.due_time) == (True, None)


def test_a_hold_that_expired_before_its_answer_came_is_due_after_the_backoff() -> None:
    claimed = a_hold()._replace(lease_epoch=1, lease_expire_time=LATER, due_time=LATER)
    answers = (replace(held(claimed), expire_time=NOW - SECOND), decided(claimed, Observed.EXPIRED))
    for answer in answers:
        assert record_outcome(claimed, 1, 1, answer, NOW, RETRY).due_time == RETRY


def test_a_renewal_does_not_change_the_intent() -> None:
    renewing = a_held()._replace(revision=2)
    assert (renewing.settled, renewing.reconciling) == (False, False)
    assert hold(renewing, 5, NOW).reconciling


def test_a_released_row_has_a_finish_time_and_a_held_row_has_none() -> None:
    claimed = a_hold()._replace(lease_epoch=1, lease_expire_time=LATER, due_time=LATER)
    assert record_outcome(claimed, 1, 1, held(claimed), NOW, RETRY).finish_time is None
    going = release(claimed, NOW)
    assert record_outcome(going, 2, 2, decided(going, Observed.RELEASED), NOW, RETRY).finish_time == NOW


def test_a_permanent_failure_of_a_release_or_commit_raises_an_alarm() -> None:
    assert find_alarm(release(a_held(), NOW), PermanentFailure("NOT_FOUND", "")) is not None
    assert "refuses to commit" in (find_alarm(commit(a_held(), NOW), PermanentFailure("NOT_FOUND", "")) or "")
    assert find_alarm(a_held(), PermanentFailure("NOT_FOUND", "")) is None


def test_a_hold_is_not_believed_to_last_longer_than_its_ttl() -> None:
    decision = decided(a_hold(), Observed.HELD, 2, expire_time=NOW + CLOCK_SKEW_US + 1)
    assert limit_hold(decision, NOW, NOW - 7) == replace(decision, expire_time=NOW - 7)


@pytest.mark.parametrize("expire_time", [None, 0, NOW - 1, NOW + CLOCK_SKEW_US])
def test_a_hold_that_ends_in_time_is_recorded_as_answered(expire_time: int | None) -> None:
    decision = decided(a_hold(), Observed.HELD, 2, expire_time=expire_time)
    assert limit_hold(decision, NOW, NOW - 7) == decision


def test_no_answer_has_no_hold_to_limit() -> None:
    assert limit_hold(TIMEOUT, NOW, NOW - 7) == TIMEOUT


HOUR = 3600 * 1_000_000


def recorded(claimed: Reservation) -> Reservation:
    """The row after an API whose clock is an hour ahead has granted the hold."""
    unit = UnitOfWork()
    unit.load_reservation(claimed)
    outcome = replace(held(claimed), expire_time=NOW + HOUR + claimed.ttl_us)
    return RecordOutcome(claimed, outcome, RETRY - NOW, claim_time=NOW - 5).run(unit, NOW, lambda: "").reservation


def test_a_hold_whose_revision_was_sent_once_is_believed_for_its_ttl_after_the_claim() -> None:
    first = claim(a_hold(due_time=NOW - 9), NOW - 5, LATER)
    after = recorded(first)
    assert (after.expire_time, after.attempt_count) == (NOW - 5 + first.ttl_us, 1)


@pytest.mark.parametrize(
    "again",
    [
        lambda lost: lost,
        lambda lost: record_outcome(lost, 1, 1, TIMEOUT, NOW, NOW)._replace(attempt_count=0),
        lambda lost: retry_now(lost, NOW),
    ],
    ids=["its claim expired", "it got no answer", "it was retried during the call"],
)
def test_a_hold_whose_revision_was_sent_before_is_not_believed_and_is_asked_for_again(
    again: Callable[[Reservation], Reservation],
) -> None:
    second = claim(again(claim(a_hold(due_time=NOW - 9), NOW - 9, NOW - 6))._replace(due_time=NOW - 5), NOW - 5, LATER)
    after = recorded(second)
    assert (after.expire_time, after.due_time) == (NOW, RETRY)
    # The next claim raises the revision, so its hold is believed.
    third = claim(after, RETRY, LATER)
    assert (third.revision, is_first_sent(third)) == (second.revision + 1, True)
