"""The API does not remember a permanent failure, so the row is sealed before callers see REJECTED."""

import pytest

from cart_grpc.carts.progress import ProgressState, progress
from cart_grpc.protocol.reservation import Disposition, Observed, PermanentFailure, Reservation
from cart_grpc.protocol.transitions import hold, merge_decision, next_intent, record_outcome, release, seal
from tests.carts.examples import LATER, NOW, SECOND, a_held, a_hold, decided, held, line_of

FAILURE = PermanentFailure("NOT_FOUND", "no such sku")
RETRY = NOW + 7 * SECOND


def fail(row: Reservation, sent: int | None = None) -> Reservation:
    """The row after a permanent failure of revision `sent`, or of its latest revision."""
    return record_outcome(row, row.lease_epoch, row.revision if sent is None else sent, FAILURE, NOW, RETRY)


def shown(row: Reservation, quantity: int) -> ProgressState:
    return progress(line_of(row, quantity), NOW).state


def test_without_a_grant_a_failure_is_sealed_by_a_release_and_shown_once_the_release_is_observed() -> None:
    sealed = fail(a_hold(2))
    assert (sealed.disposition, sealed.revision, sealed.due_time) == (Disposition.RELEASE, 2, NOW)
    assert shown(sealed, 2) is ProgressState.PENDING
    after = record_outcome(sealed, sealed.lease_epoch, 2, decided(sealed, Observed.RELEASED), NOW, RETRY)
    seen = progress(line_of(after, 2), NOW)
    assert (seen.state, seen.reason, seen.reserved_quantity) == (ProgressState.REJECTED, "NOT_FOUND", 0)


def test_with_a_grant_a_failure_is_sealed_by_a_hold_of_the_granted_quantity() -> None:
    sealed = fail(hold(a_held(2), 5, NOW))
    intent = next_intent(sealed)
    assert intent is not None
    assert (intent.disposition, intent.quantity, intent.revision) == (Disposition.HOLD, 2, 3)
    assert (shown(sealed, 5), sealed.due_time) == (ProgressState.PENDING, NOW)
    seen = progress(line_of(merge_decision(sealed, held(sealed)), 5), NOW)
    assert (seen.state, seen.reason, seen.reserved_quantity) == (ProgressState.REJECTED, "NOT_FOUND", 2)


def test_a_seal_keeps_the_grant_that_a_rejection_left() -> None:
    grown = hold(a_held(3), 5, NOW)
    rejected = merge_decision(grown, decided(grown, Observed.REJECTED, 3, reason="OUT_OF_STOCK"))
    sealed = fail(hold(rejected, 6, NOW))
    assert (sealed.disposition, sealed.quantity) == (Disposition.HOLD, 3)


def test_an_expired_grant_is_sealed_by_a_release() -> None:
    lapsed = hold(a_held(2), 5, NOW)._replace(expire_time=NOW)
    assert fail(lapsed).disposition is Disposition.RELEASE


def test_a_seal_that_fails_ends_in_a_release_and_keeps_the_first_reason() -> None:
    sealed = fail(hold(a_held(2), 5, NOW))
    again = record_outcome(sealed, sealed.lease_epoch, 3, PermanentFailure("INVALID_ARGUMENT", ""), NOW, RETRY)
    assert (again.disposition, again.revision, again.seal_reason) == (Disposition.RELEASE, 4, "NOT_FOUND")
    assert shown(again, 5) is ProgressState.PENDING


def test_a_failed_release_is_retried_under_the_same_revision() -> None:
    released = release(a_held(2), NOW)
    after = fail(released)
    assert next_intent(after) == next_intent(released)
    assert (after.due_time, after.settled) == (RETRY, False)
    assert after.last_error == "NOT_FOUND: no such sku"


def test_a_failure_of_an_old_revision_seals_nothing_and_the_new_revision_is_due_at_once() -> None:
    changed = hold(a_hold(2), 5, NOW)
    after = fail(changed, sent=1)
    assert next_intent(after) == next_intent(changed)
    assert (after.seal_reason, after.due_time) == ("", NOW)


def test_a_failure_that_arrives_after_the_decision_seals_nothing() -> None:
    settled = a_held(2)
    assert fail(settled) == settled


def test_a_failed_commit_is_not_undone() -> None:
    committing = a_held(2)._replace(disposition=Disposition.COMMIT, revision=2)
    after = fail(committing)
    assert (after.disposition, after.revision, after.due_time) == (Disposition.COMMIT, 2, RETRY)


def test_a_seal_ends_the_lease_of_the_failed_call() -> None:
    leased = hold(a_held(2), 5, NOW)._replace(lease_epoch=3, lease_expire_time=LATER, due_time=LATER)
    sealed = seal(leased, "NOT_FOUND", NOW)
    assert (sealed.lease_expire_time, sealed.due_time) == (None, NOW)


def test_a_new_quantity_after_a_seal_starts_afresh() -> None:
    sealed = fail(hold(a_held(2), 5, NOW))
    again = hold(merge_decision(sealed, held(sealed)), 4, NOW)
    assert again.seal_reason == ""
    assert shown(merge_decision(again, held(again)), 4) is ProgressState.RESERVED


@pytest.mark.parametrize("quantity", [1, 2])
def test_a_failed_decrease_still_covers_the_smaller_quantity(quantity: int) -> None:
    sealed = fail(hold(a_held(5), quantity, NOW))
    assert progress(line_of(sealed, quantity), NOW).reserved_quantity == quantity
    assert shown(merge_decision(sealed, held(sealed)), quantity) is ProgressState.RESERVED


def test_a_failed_renewal_of_a_sealed_hold_keeps_the_hold() -> None:
    wanted = hold(a_held(2), 5, NOW)
    sealed = fail(wanted)
    settled = merge_decision(sealed, held(sealed))
    renewing = settled._replace(revision=settled.revision + 1)
    again = fail(renewing)
    assert (again.disposition, again.quantity) == (Disposition.HOLD, 2)


def test_a_failed_decrease_is_sealed_at_the_wanted_quantity_not_at_the_held_one() -> None:
    shrunk = hold(a_held(5), 3, NOW)
    sealed = fail(shrunk)
    assert (sealed.disposition, sealed.quantity) == (Disposition.HOLD, 3)
