"""The progress of a reservation, as callers see it."""

import pytest

from cart_grpc.carts.progress import HOLD_MARGIN_US, Progress, ProgressState, progress
from cart_grpc.protocol.reservation import Disposition, Observed, Reservation
from cart_grpc.protocol.transitions import commit, hold, merge_decision, release
from tests.carts.examples import LATER, NOW, a_held, a_hold, decided, held, line_of


def seen(row: Reservation, quantity: int | None = None, now: int = NOW) -> Progress:
    return progress(line_of(row, quantity), now)


def in_checkout() -> Reservation:
    """A settled hold of a cart that is CHECKING_OUT."""
    return a_held(2)._replace(checkout_id="01a2222a-ef15-77cf-a670-fe33c9d0a8e4")


def test_a_reservation_without_an_answer_is_pending() -> None:
    assert seen(a_hold(2)) == Progress(ProgressState.PENDING, 0, None, "", "")


def test_the_message_of_a_failed_attempt_shows_only_its_code() -> None:
    told = seen(a_hold(last_error="UNAVAILABLE: connect to 10.0.0.7 failed")).message
    assert "UNAVAILABLE" in told
    assert "10.0.0.7" not in told


def test_a_reservation_that_waits_for_an_older_one_says_so() -> None:
    waiting = seen(a_hold(waiting=True, due_time=None))
    assert waiting.state is ProgressState.PENDING
    assert "earlier reservation" in waiting.message


def test_a_grant_that_covers_the_quantity_is_reserved_until_it_expires() -> None:
    assert seen(a_held(2)) == Progress(ProgressState.RESERVED, 2, LATER, "", "")


def test_an_item_that_grows_is_pending_and_shows_the_quantity_held_so_far() -> None:
    growing = seen(hold(a_held(2), 5, NOW))
    assert (growing.state, growing.reserved_quantity, growing.expire_time) == (ProgressState.PENDING, 2, LATER)


def test_an_item_that_shrinks_shows_at_most_the_quantity_intended_since() -> None:
    shrinking = seen(hold(a_held(5), 2, NOW))
    assert (shrinking.state, shrinking.reserved_quantity) == (ProgressState.RESERVED, 2)


def test_an_item_that_shrinks_and_grows_again_is_not_reserved_by_its_old_grant() -> None:
    there_and_back = seen(hold(hold(a_held(5), 2, NOW), 5, NOW))
    assert (there_and_back.state, there_and_back.reserved_quantity) == (ProgressState.PENDING, 2)


@pytest.mark.parametrize(("before", "state"), [(1, ProgressState.RESERVED), (0, ProgressState.EXPIRED)])
def test_within_the_margin_of_its_end_a_hold_is_expired(before: int, state: ProgressState) -> None:
    assert seen(a_held(2), now=LATER - HOLD_MARGIN_US - before).state is state


def test_a_hold_past_its_expire_time_is_expired_and_says_so() -> None:
    expired = seen(a_held(2), now=LATER)
    assert (expired.state, expired.reserved_quantity, expired.expire_time) == (ProgressState.EXPIRED, 0, None)
    assert expired.reason == "HOLD_EXPIRED"


def test_a_hold_that_the_api_reports_as_expired_is_expired() -> None:
    row = a_hold(2)
    assert seen(merge_decision(row, decided(row, Observed.EXPIRED))).state is ProgressState.EXPIRED


def test_a_rejection_shows_its_reason_and_the_quantity_still_held() -> None:
    grown = hold(a_held(3), 5, NOW)
    rejected = seen(merge_decision(grown, decided(grown, Observed.REJECTED, 3, reason="OUT_OF_STOCK")))
    assert (rejected.state, rejected.reason) == (ProgressState.REJECTED, "OUT_OF_STOCK")
    assert (rejected.reserved_quantity, rejected.expire_time) == (3, LATER)


def test_after_a_rejection_a_quantity_that_the_grant_covers_is_reserved() -> None:
    grown = hold(a_held(3), 5, NOW)
    rejected = merge_decision(grown, decided(grown, Observed.REJECTED, 3, reason="OUT_OF_STOCK"))
    assert seen(hold(rejected, 3, NOW)).state is ProgressState.RESERVED


def test_a_hold_that_the_api_answers_with_released_is_rejected() -> None:
    row = a_hold(2)
    assert seen(merge_decision(row, decided(row, Observed.RELEASED))).state is ProgressState.REJECTED


def test_an_item_of_a_checkout_is_committing_until_the_commit_is_answered_and_then_committed() -> None:
    committing = commit(in_checkout(), NOW)
    seen_before = seen(committing)
    assert (seen_before.state, seen_before.reserved_quantity) == (ProgressState.COMMITTING, 2)
    committed = seen(merge_decision(committing, decided(committing, Observed.COMMITTED, 2)))
    assert committed == Progress(ProgressState.COMMITTED, 2, None, "", "")


def test_a_commit_without_an_answer_shows_the_code_of_the_failure() -> None:
    failed = seen(commit(in_checkout(), NOW)._replace(last_error="UNAVAILABLE: connect to 10.0.0.7 failed"))
    assert failed.state is ProgressState.COMMITTING
    assert "UNAVAILABLE" in failed.message
    assert "10.0.0.7" not in failed.message


def test_a_refused_commit_is_rejected_with_the_reason_of_the_api() -> None:
    committing = commit(in_checkout(), NOW)
    refused = seen(merge_decision(committing, decided(committing, Observed.REJECTED, reason="OUT_OF_STOCK")))
    assert (refused.state, refused.reason, refused.reserved_quantity) == (ProgressState.REJECTED, "OUT_OF_STOCK", 0)


def test_an_item_that_a_cancelled_checkout_did_not_sell_is_releasing_and_then_rejected() -> None:
    committing = commit(in_checkout(), NOW)
    refused = merge_decision(committing, decided(committing, Observed.REJECTED, reason="OUT_OF_STOCK"))
    releasing = release(refused, NOW)
    assert seen(releasing).state is ProgressState.RELEASING
    released = seen(merge_decision(releasing, decided(releasing, Observed.RELEASED)))
    assert (released.state, released.reason) == (ProgressState.REJECTED, "RELEASED")
    assert "not sold" in released.message


def test_an_item_of_an_open_checkout_is_reserved_while_its_hold_is_extended() -> None:
    assert seen(in_checkout()._replace(revision=2)).state is ProgressState.RESERVED


def test_a_release_never_shows_a_reserved_quantity() -> None:
    row = a_hold(2)
    seen_late = merge_decision(
        row._replace(disposition=Disposition.RELEASE, revision=2, intent_revision=2, reserved_cap=0), held(row)
    )
    assert seen(seen_late).reserved_quantity == 0
