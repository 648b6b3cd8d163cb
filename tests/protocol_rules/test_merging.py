"""The rules for reservations of merged carts, one at a time."""

import pytest

from cart_grpc.names import cart_key, user_key
from cart_grpc.protocol.merging import (
    ask_beside_release,
    finish_take_over,
    has_taken_over,
    may_hold_stock,
    move,
)
from cart_grpc.protocol.reservation import Disposition, Observed
from cart_grpc.protocol.transitions import (
    claim,
    force_release,
    hold,
    merge_decision,
    record_outcome,
    release,
    stop_waiting,
)
from tests.carts.examples import LATER, NOW, SECOND, a_held, a_hold, decided, held

OTHER = cart_key(user_key("bob"), "default")


def test_a_move_ends_a_claim_and_makes_the_row_due() -> None:
    claimed = claim(a_hold(), NOW, LATER)
    moved = move(claimed, OTHER, NOW + 1)
    assert (moved.cart, moved.lease_expire_time, moved.due_time) == (OTHER, None, NOW + 1)
    assert moved.lease_epoch == claimed.lease_epoch + 1
    assert moved.revision == claimed.revision


def test_a_move_of_a_row_that_nobody_has_claimed_changes_only_its_cart() -> None:
    for row in (a_held()._replace(due_time=LATER), a_hold(waiting=True, due_time=None), release(a_held(), NOW)):
        assert move(row, OTHER, NOW) == row._replace(cart=OTHER)


def test_only_an_answer_shows_that_no_stock_is_held() -> None:
    refused = merge_decision(a_hold(), decided(a_hold(), Observed.REJECTED))
    expired = merge_decision(a_hold(), decided(a_hold(), Observed.EXPIRED))
    for row in (refused, expired, force_release(a_hold(), NOW)):
        assert not may_hold_stock(row)
    for row in (a_hold(), a_held(), release(refused, NOW), hold(refused, 1, NOW)):
        assert may_hold_stock(row)


@pytest.mark.parametrize("waits", [True, False])
def test_after_a_refusal_the_row_asks_once_more(waits: bool) -> None:
    growing = hold(a_held(2), 5, NOW)._replace(supersedes=True)
    assert not has_taken_over(growing)
    answer = decided(growing, Observed.REJECTED, 2)
    refused = record_outcome(growing, growing.lease_epoch, growing.revision, answer, NOW, NOW)
    assert has_taken_over(refused)
    again = finish_take_over(refused, NOW + 1, waits=waits)
    assert (again.revision, again.quantity, again.waiting) == (refused.revision + 1, 5, waits)
    assert again.due_time == (refused.due_time if waits else NOW + 1)
    assert not again.supersedes


def test_a_row_that_is_granted_sealed_sold_or_released_asks_for_nothing_more() -> None:
    granted = merge_decision(a_hold(5), held(a_hold(5)))
    short = merge_decision(a_hold(5), decided(a_hold(5), Observed.REJECTED, 2))
    for row in (
        granted,
        short._replace(seal_reason="TOO_MANY"),
        short._replace(disposition=Disposition.COMMIT),
        release(short, NOW),
    ):
        assert finish_take_over(row._replace(supersedes=True), NOW, waits=True) == row


def test_a_release_of_any_kind_ends_the_link_to_the_row_that_has_taken_over() -> None:
    superseded = a_held()._replace(superseded_by="r-2")
    released = merge_decision(superseded, decided(superseded, Observed.RELEASED))._replace(observed_revision=0)
    final = record_outcome(released, 0, 1, decided(released, Observed.RELEASED), NOW, NOW)
    for row in (release(superseded, NOW), force_release(superseded, NOW), final):
        assert row.superseded_by == ""


def test_a_waiting_row_that_needs_no_more_than_it_holds_is_due() -> None:
    waiting = hold(a_held(2), 5, NOW)._replace(waiting=True, due_time=NOW + SECOND)
    assert (hold(waiting, 6, NOW).waiting, hold(waiting, 6, NOW).due_time) == (True, NOW + SECOND)
    assert (hold(waiting, 2, NOW).waiting, hold(waiting, 2, NOW).due_time) == (False, NOW)


def test_a_renewal_that_is_refused_meanwhile_leaves_the_row_waiting() -> None:
    waiting = hold(a_held(2), 5, NOW)._replace(waiting=True, due_time=NOW)
    renewing = claim(waiting, NOW, LATER)
    answer = decided(renewing, Observed.REJECTED, 2)
    refused = record_outcome(renewing, renewing.lease_epoch, renewing.revision, answer, NOW, NOW)
    assert (refused.waiting, refused.settled, refused.quantity) == (True, False, 5)
    assert refused.due_time is not None
    assert NOW < refused.due_time < LATER


def test_a_renewal_that_is_granted_meanwhile_ends_the_wait() -> None:
    renewing = claim(hold(a_held(2), 5, NOW)._replace(waiting=True, due_time=NOW), NOW, LATER)
    granted = record_outcome(renewing, renewing.lease_epoch, renewing.revision, held(renewing), NOW, NOW)
    assert (granted.waiting, granted.settled, granted.granted_quantity) == (False, True, 5)


def test_a_row_that_waits_and_may_have_been_renewed_is_due_under_a_new_revision() -> None:
    # The answer to the old revision may be a refusal that the older reservation caused.
    renewed = claim(hold(a_held(2), 5, NOW)._replace(waiting=True, due_time=NOW), NOW, LATER)
    for waiting, more in ((renewed, 1), (a_hold(waiting=True, due_time=None), 0)):
        due = stop_waiting(waiting, NOW)
        assert (due.waiting, due.quantity, due.revision) == (False, waiting.quantity, waiting.revision + more)


def test_a_row_beside_a_release_asks_once_more_if_it_is_refused() -> None:
    growing = hold(a_held(2), 5, NOW)
    assert ask_beside_release(growing) == growing._replace(supersedes=True)
    refused = merge_decision(a_hold(), decided(a_hold(), Observed.REJECTED))
    for row in (a_held(), refused, release(a_held(), NOW), a_hold(waiting=True, due_time=None)):
        assert ask_beside_release(row) == row
