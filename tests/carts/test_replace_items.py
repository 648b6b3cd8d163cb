"""ReplaceItems: the cart gets exactly the lines of the call, and only what differs changes."""

from dataclasses import replace

import pytest

from cart_grpc.carts.calls import Addition, CartUpdate, Change, CreateCart, DeleteCart, Given, LoadedCart, ReplaceItems
from cart_grpc.carts.model import CartState, Line, Money
from cart_grpc.carts.refusals import CurrencyMismatch, LimitExceeded
from cart_grpc.carts.rules import decide
from cart_grpc.protocol.reservation import Disposition, Observed
from tests.carts.examples import KEY, NOW, SKU, numbered_ids
from tests.carts.test_rules import (
    LATER,
    LIMITS,
    NO_CART,
    a_cart,
    add,
    an_addition,
    change_of,
    loaded_after,
    settled,
)

EUR, USD = Money("EUR", 5), Money("USD", 5)
LARGE = {"size": "L"}


def replace_with(loaded: LoadedCart, *additions: Addition) -> Change:
    return change_of(loaded, ReplaceItems(KEY, additions))


def by_sku(lines: tuple[Line, ...]) -> dict[str, Line]:
    return {line.item.sku: line for line in lines}


def test_unchanged_lines_keep_their_reservations_and_only_the_others_change() -> None:
    before = settled(a_cart(an_addition("same", 2), an_addition("more", 2), an_addition("gone", 3)))
    had = by_sku(tuple(before.lines.values()))
    change = replace_with(before, an_addition("new"), an_addition("more", 5), an_addition("same", 2))
    has = by_sku(change.lines)
    assert list(has) == ["same", "more", "new"]
    assert has["same"] is had["same"]
    more, old = has["more"].reservation, had["more"].reservation
    assert (more.reservation_id, more.quantity, more.revision) == (old.reservation_id, 5, old.revision + 1)
    assert (has["new"].reservation.revision, has["new"].reservation.due_time) == (1, LATER)
    [gone] = change.removed
    assert (gone.item.sku, gone.reservation.disposition) == ("gone", Disposition.RELEASE)
    assert (change.cart.item_count, change.cart.total_quantity, change.cart.revision) == (3, 8, 2)
    assert change.before[gone.item.item_id] is had["gone"]


def test_exactly_the_same_items_change_nothing() -> None:
    before = a_cart(an_addition("a", 2, EUR, labels={"x": "y"}), an_addition("b"))
    change = replace_with(before, an_addition("b"), an_addition("a", 2, EUR, labels={"x": "y"}))
    assert change.cart is before.cart
    assert all(line is before.lines[line.item.item_id] for line in change.lines)
    assert not change.removed


def test_a_rejected_line_that_is_the_same_is_not_asked_for_again() -> None:
    before = settled(a_cart(an_addition()), Observed.REJECTED)
    assert replace_with(before, an_addition()).cart is before.cart


def test_duplicates_are_summed() -> None:
    change = replace_with(a_cart(an_addition(quantity=2)), an_addition(quantity=3), an_addition(quantity=4))
    assert [line.item.quantity for line in change.lines] == [7]
    with pytest.raises(LimitExceeded) as refused:
        replace_with(NO_CART, an_addition(quantity=6), an_addition(quantity=5))
    assert refused.value.metadata["quota"] == "quantity_per_item"


def test_an_unset_price_and_labels_are_cleared() -> None:
    change = replace_with(a_cart(an_addition(price=EUR, labels={"x": "y"})), an_addition())
    [line] = change.lines
    assert (line.item.unit_price, line.item.labels, line.reservation.revision) == (None, {}, 1)
    assert (change.cart.currency_code, change.cart.subtotal, change.cart.priced_count) == ("", 0, 0)
    assert change.find_replaced_price(line) == EUR


def test_an_empty_list_empties_the_cart() -> None:
    change = replace_with(a_cart(an_addition("a"), an_addition("b", price=EUR)))
    assert [line.item.sku for line in change.removed] == ["a", "b"]
    assert (change.cart.state, change.cart.item_count, change.cart.currency_code) == (CartState.ACTIVE, 0, "")
    emptied = loaded_after(change)
    assert replace_with(emptied).cart is emptied.cart


@pytest.mark.parametrize("additions", [(), (an_addition(),)], ids=["empty", "one item"])
def test_a_missing_or_ended_cart_is_started(additions: tuple[Addition, ...]) -> None:
    assert (replace_with(NO_CART, *additions).cart.revision, NO_CART.cart) == (1, None)
    ended = loaded_after(change_of(a_cart(), DeleteCart(KEY)))
    assert ended.cart
    started = replace_with(ended, *additions).cart
    assert (started.state, started.revision, started.item_count) == (CartState.ACTIVE, 3, len(additions))
    assert started.uid != ended.cart.uid


def test_a_cart_changes_its_currency_in_one_call_unless_a_caller_set_it() -> None:
    before = a_cart(an_addition("a", price=USD), an_addition("b", price=USD))
    change = replace_with(before, an_addition("a", price=EUR), an_addition("b", 2, EUR))
    assert (change.cart.currency_code, change.cart.subtotal) == ("EUR", 15)
    lines = by_sku(change.lines)
    assert [change.find_replaced_price(line) for line in lines.values()] == [USD, USD]
    # Only the currency differs, so the reservation stays.
    assert lines["a"].reservation is before.lines[lines["a"].item.item_id].reservation
    assert lines["a"].item.update_time == LATER
    # In the same microsecond, the items are equal.
    at_once = ReplaceItems(KEY, (an_addition("a", price=EUR), an_addition("b", price=EUR)))
    assert change_of(before, at_once, NOW).cart.currency_code == "EUR"
    owned = loaded_after(change_of(NO_CART, CreateCart(KEY, CartUpdate(set(), {}, "USD"))))
    with pytest.raises(CurrencyMismatch):
        replace_with(owned, an_addition(price=EUR))
    with pytest.raises(CurrencyMismatch):
        replace_with(before, an_addition("a", price=EUR), an_addition("b", price=USD))


def test_a_new_line_waits_for_the_release_of_a_removed_line_of_the_same_sku() -> None:
    change = replace_with(a_cart(an_addition(), an_addition("b")), an_addition(options=LARGE), an_addition("c"))
    large, other = change.lines
    assert (large.item.sku, large.reservation.waiting, large.reservation.due_time) == (SKU, True, None)
    assert not other.reservation.waiting


def test_too_many_items_are_refused_unless_the_cart_had_more_before() -> None:
    most = LIMITS.max_items_per_cart
    with pytest.raises(LimitExceeded) as refused:
        replace_with(a_cart(), *(an_addition(f"sku-{number}") for number in range(most + 1)))
    assert refused.value.metadata["quota"] == "items_per_cart"
    lowered = Given(replace(LIMITS, max_items_per_cart=1), LATER, numbered_ids())
    call = ReplaceItems(KEY, (an_addition("a", 2), an_addition("d")))
    assert decide(a_cart(an_addition("a"), an_addition("b")), call, lowered).cart.item_count == 2


def test_a_line_that_is_added_again_has_the_newest_price_and_the_reply_has_the_old_one() -> None:
    before = a_cart(an_addition("a", price=EUR), an_addition("b", price=EUR), an_addition("c"))
    new = Money("EUR", 7)
    change = add(before, an_addition("a", price=new), an_addition("b", price=EUR), an_addition("c", price=new))
    found = {line.item.sku: (line.item.unit_price, change.find_replaced_price(line)) for line in change.lines}
    assert found == {"a": (7, EUR), "b": (5, None), "c": (7, None)}
    kept = add(before, an_addition("a"))
    assert kept.find_replaced_price(kept.lines[0]) is None
