"""What callers see of a reservation."""

import pytest

from cart_grpc.carts.progress import HOLD_MARGIN_US, Progress, ProgressState, progress
from cart_grpc.protocol.reservation import Disposition, Observed, Reservation
from cart_grpc.protocol.transitions import hold, merge_decision
from tests.carts.examples import LATER, NOW, a_held, a_hold, decided, held, line_of


def seen(row: Reservation, quantity: int | None = None, now: int = NOW) -> Progress:
    return progress(line_of(row, quantity), now)


def test_what_was_never_answered_is_pending() -> None:
    assert seen(a_hold(2)) == Progress(ProgressState.PENDING, 0, None, "", "")


def test_a_failed_attempt_is_told_by_its_code_alone() -> None:
    told = seen(a_hold(last_error="UNAVAILABLE: connect to 10.0.0.7 failed")).message
    assert "UNAVAILABLE" in told
    assert "10.0.0.7" not in told


def test_what_waits_for_an_older_reservation_says_so() -> None:
    waiting = seen(a_hold(waiting=True, due_time=None))
    assert waiting.state is ProgressState.PENDING
    assert "earlier reservation" in waiting.message


def test_a_grant_that_covers_the_quantity_is_reserved_until_it_expires() -> None:
    assert seen(a_held(2)) == Progress(ProgressState.RESERVED, 2, LATER, "", "")


def test_an_item_that_grows_is_pending_with_what_is_held_already() -> None:
    growing = seen(hold(a_held(2), 5, NOW))
    assert (growing.state, growing.reserved_quantity, growing.expire_time) == (ProgressState.PENDING, 2, LATER)


def test_an_item_that_shrinks_never_shows_more_than_it_has_intended_since() -> None:
    shrinking = seen(hold(a_held(5), 2, NOW))
    assert (shrinking.state, shrinking.reserved_quantity) == (ProgressState.RESERVED, 2)


def test_an_item_that_shrinks_and_grows_again_is_not_reserved_on_the_strength_of_the_old_grant() -> None:
    there_and_back = seen(hold(hold(a_held(5), 2, NOW), 5, NOW))
    assert (there_and_back.state, there_and_back.reserved_quantity) == (ProgressState.PENDING, 2)


@pytest.mark.parametrize(("before", "state"), [(1, ProgressState.RESERVED), (0, ProgressState.EXPIRED)])
def test_a_hold_is_not_shown_as_held_within_the_margin_of_its_end(before: int, state: ProgressState) -> None:
    assert seen(a_held(2), now=LATER - HOLD_MARGIN_US - before).state is state


def test_a_hold_that_ran_out_is_expired_and_says_so() -> None:
    expired = seen(a_held(2), now=LATER)
    assert (expired.state, expired.reserved_quantity, expired.expire_time) == (ProgressState.EXPIRED, 0, None)
    assert expired.reason == "HOLD_EXPIRED"


def test_what_the_api_says_has_expired_is_expired() -> None:
    row = a_hold(2)
    assert seen(merge_decision(row, decided(row, Observed.EXPIRED))).state is ProgressState.EXPIRED


def test_a_rejection_is_shown_with_its_reason_and_what_is_still_held() -> None:
    grown = hold(a_held(3), 5, NOW)
    rejected = seen(merge_decision(grown, decided(grown, Observed.REJECTED, 3, reason="OUT_OF_STOCK")))
    assert (rejected.state, rejected.reason) == (ProgressState.REJECTED, "OUT_OF_STOCK")
    assert (rejected.reserved_quantity, rejected.expire_time) == (3, LATER)


def test_after_a_rejection_a_quantity_that_the_grant_covers_is_reserved() -> None:
    grown = hold(a_held(3), 5, NOW)
    rejected = merge_decision(grown, decided(grown, Observed.REJECTED, 3, reason="OUT_OF_STOCK"))
    assert seen(hold(rejected, 3, NOW)).state is ProgressState.RESERVED


def test_a_hold_that_is_answered_released_is_rejected() -> None:
    row = a_hold(2)
    assert seen(merge_decision(row, decided(row, Observed.RELEASED))).state is ProgressState.REJECTED


def test_a_commit_under_way_is_pending_and_then_committed() -> None:
    committing = a_held(2)._replace(disposition=Disposition.COMMIT, revision=2, intent_revision=2)
    assert seen(committing).state is ProgressState.PENDING
    committed = seen(merge_decision(committing, decided(committing, Observed.COMMITTED, 2)))
    assert committed == Progress(ProgressState.COMMITTED, 2, None, "", "")


def test_a_release_is_never_shown_as_reserved() -> None:
    row = a_hold(2)
    seen_late = merge_decision(
        row._replace(disposition=Disposition.RELEASE, revision=2, intent_revision=2, reserved_cap=0), held(row)
    )
    assert seen(seen_late).reserved_quantity == 0
