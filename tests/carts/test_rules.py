"""What each call does to a cart, one rule at a time."""

from collections.abc import Sequence
from typing import Any

import pytest

from cart_grpc.carts import rules
from cart_grpc.carts.calls import Addition, CartUpdate, Change, ItemUpdate, Limits, LoadedCart, addition
from cart_grpc.carts.model import CartState, Money
from cart_grpc.carts.refusals import (
    AlreadyExists,
    CartClosed,
    CartNotFound,
    CurrencyMismatch,
    EtagMismatch,
    ItemNotFound,
    LimitExceeded,
)
from cart_grpc.protocol.reservation import Disposition, Observed
from cart_grpc.protocol.transitions import merge_decision, release
from tests.carts.examples import KEY, NOW, SECOND, SKU, decided, held, numbered_ids

TERMS = Limits(max_quantity_per_add=100, max_quantity_per_item=10, max_items_per_cart=3, hold_ttl_us=600 * SECOND)
LATER = NOW + SECOND
NOTHING = LoadedCart(KEY, None, {}, frozenset())
new_id = numbered_ids()


def some(sku: str = SKU, quantity: int = 1, price: Money | None = None, **more: Any) -> Addition:
    return addition(sku, more.get("options", {}), quantity, price, more.get("labels"))


def add(contents: LoadedCart, *additions: Addition, etag: str = "", now: int = LATER) -> Change:
    return rules.add_items(contents, additions, etag, TERMS, now, new_id)


def contents_of(change: Change, releasing: Sequence[str] = ()) -> LoadedCart:
    lines = {line.item.item_id: line for line in change.lines}
    return LoadedCart(change.cart.key, change.cart, lines, frozenset(releasing))


def a_cart(*additions: Addition) -> LoadedCart:
    """The contents of a cart to which `additions` were made."""
    return contents_of(rules.add_items(NOTHING, additions or (some(),), "", TERMS, NOW, new_id))


def settled(contents: LoadedCart, state: Observed = Observed.HELD) -> LoadedCart:
    """The contents once every reservation was answered with `state`."""
    lines = {}
    for item_id, line in contents.lines.items():
        row = line.reservation
        answer = held(row) if state is Observed.HELD else decided(row, state)
        lines[item_id] = line._replace(reservation=merge_decision(row, answer))
    return contents._replace(lines=lines)


def the_id(contents: LoadedCart) -> str:
    return next(iter(contents.lines))


def test_the_first_item_starts_the_cart_and_is_due_to_be_reserved() -> None:
    change = add(NOTHING, some(quantity=2))
    assert (change.cart.state, change.cart.revision, change.cart.etag_revision) == (CartState.ACTIVE, 1, 1)
    row = change.lines[0].reservation
    assert (row.quantity, row.revision, row.due_time, row.ttl_us) == (2, 1, LATER, TERMS.hold_ttl_us)
    assert row.reservation_id == change.lines[0].item.reservation_id


def test_adding_the_same_line_again_sums_and_raises_the_intent_of_the_same_reservation() -> None:
    before = a_cart(some(quantity=2))
    change = add(before, some(quantity=3))
    assert (change.lines[0].item.quantity, change.cart.item_count, change.cart.total_quantity) == (5, 1, 5)
    assert change.lines[0].reservation.reservation_id == before.lines[the_id(before)].reservation.reservation_id
    assert (change.lines[0].reservation.quantity, change.lines[0].reservation.revision) == (5, 2)
    assert change.lines[0].item.create_time == NOW


def test_duplicates_within_a_batch_are_summed_first() -> None:
    change = add(NOTHING, some(quantity=2, labels={"a": "1"}), some("filters"), some(quantity=3, labels={"a": "2"}))
    assert [(line.item.sku, line.item.quantity) for line in change.lines] == [(SKU, 5), ("filters", 1)]
    assert change.lines[0].item.labels == {"a": "2"}
    assert change.lines[0].reservation.revision == 1


def test_adding_more_leaves_price_and_labels_that_are_not_given() -> None:
    before = a_cart(some(price=Money("EUR", 5), labels={"gift": "yes"}))
    item = add(before, some()).lines[0].item
    assert (item.unit_price, item.labels) == (5, {"gift": "yes"})


def test_a_total_past_its_limit_is_refused() -> None:
    with pytest.raises(LimitExceeded) as refused:
        add(a_cart(some(quantity=8)), some(quantity=3))
    assert refused.value.metadata["quota"] == "quantity_per_item"
    with pytest.raises(LimitExceeded) as refused:
        add(a_cart(some("a"), some("b"), some("c")), some("d"))
    assert refused.value.metadata["quota"] == "items_per_cart"
    with pytest.raises(LimitExceeded):
        rules.update_item(a_cart(), the_id(a_cart()), ItemUpdate({"quantity"}, 11), "", TERMS, NOW, new_id)


def test_limits_are_reached_exactly() -> None:
    assert add(a_cart(some("a"), some("b")), some("c", quantity=10)).cart.item_count == 3


def test_a_price_in_another_currency_is_refused() -> None:
    priced = a_cart(some(price=Money("EUR", 5)))
    with pytest.raises(CurrencyMismatch):
        add(priced, some("filters", price=Money("USD", 5)))
    with pytest.raises(CurrencyMismatch):
        rules.update_cart(priced, CartUpdate({"currency_code"}, currency_code="USD"), "", NOW)


def test_a_removed_item_is_gone_at_once_and_its_reservation_is_to_be_released() -> None:
    before = a_cart(some(quantity=2, price=Money("EUR", 5)))
    change = rules.remove_item(before, the_id(before), "", LATER)
    assert (change.cart.item_count, change.cart.total_quantity, change.cart.subtotal) == (0, 0, 0)
    assert change.removed[0].reservation.disposition is Disposition.RELEASE
    assert change.cart.state is CartState.ACTIVE


def test_an_item_added_again_gets_a_new_reservation_that_waits_for_the_release_of_the_old_one() -> None:
    before = a_cart(some(quantity=2))
    removed = rules.remove_item(before, the_id(before), "", LATER)
    again = add(contents_of(removed)._replace(releasing=frozenset({SKU})), some())
    row = again.lines[0].reservation
    assert row.reservation_id != removed.removed[0].reservation.reservation_id
    assert (row.waiting, row.due_time, row.revision) == (True, None, 1)


def test_a_release_of_another_sku_keeps_nobody_waiting() -> None:
    row = add(NOTHING._replace(releasing=frozenset({"filters"})), some()).lines[0].reservation
    assert (row.waiting, row.due_time) == (False, LATER)


@pytest.mark.parametrize("confirmed", [True, False])
def test_an_item_whose_reservation_is_over_goes_on_under_a_new_one(confirmed: bool) -> None:
    before = a_cart(some(quantity=2))
    line = before.lines[the_id(before)]
    row = release(line.reservation, NOW)
    if confirmed:
        row = merge_decision(row, decided(row, Observed.RELEASED))
    after = add(before._replace(lines={the_id(before): line._replace(reservation=row)}), some()).lines[0]
    assert after.item.reservation_id == after.reservation.reservation_id != row.reservation_id
    assert after.reservation.quantity == 3
    assert after.reservation.waiting is not confirmed


def test_clear_and_delete_release_everything() -> None:
    before = a_cart(some("a"), some("b"))
    for change, state in (
        (rules.clear_cart(before, "", LATER), CartState.ACTIVE),
        (rules.delete_cart(before, "", LATER), CartState.DELETED),
    ):
        assert [line.reservation.disposition for line in change.removed] == [Disposition.RELEASE] * 2
        assert (change.cart.state, change.cart.item_count, change.cart.revision) == (state, 0, 2)


def test_clearing_an_empty_cart_changes_nothing() -> None:
    made = contents_of(rules.create_cart(NOTHING, CartUpdate(set()), "", NOW, new_id))
    assert rules.clear_cart(made, "", LATER).cart is made.cart


def test_an_ended_cart_takes_no_changes_but_its_name_starts_another_whose_revision_goes_on() -> None:
    before = a_cart()
    ended = contents_of(rules.delete_cart(before, "", LATER))
    with pytest.raises(CartClosed):
        rules.clear_cart(ended, "", LATER)
    with pytest.raises(CartClosed):
        rules.remove_item(ended, the_id(before), "", LATER)
    added = add(ended, some()).cart
    made = rules.create_cart(ended, CartUpdate(set()), "", LATER, new_id).cart
    assert ended.cart is not None
    for anew in (added, made):
        assert anew.uid != ended.cart.uid
        assert (anew.state, anew.revision) == (CartState.ACTIVE, 3)


def test_a_new_cart_under_an_old_name_has_nothing_of_the_old_one() -> None:
    made = rules.create_cart(NOTHING, CartUpdate(set(), {"a": "b"}, "EUR", 60 * SECOND), "", NOW, new_id)
    anew = add(contents_of(rules.delete_cart(contents_of(made), "", LATER)), some()).cart
    assert (anew.labels, anew.currency_code, anew.ttl_us) == ({}, "", TERMS.cart_ttl_us)


def test_a_cart_that_is_there_is_not_created_again() -> None:
    with pytest.raises(AlreadyExists):
        rules.create_cart(a_cart(), CartUpdate(set()), "", NOW, new_id)


def test_what_is_not_there_is_not_found() -> None:
    with pytest.raises(CartNotFound):
        rules.clear_cart(NOTHING, "", NOW)
    with pytest.raises(ItemNotFound):
        rules.remove_item(a_cart(), "0" * 32, "", NOW)


def test_an_etag_is_good_until_a_caller_changes_the_cart() -> None:
    before = a_cart()
    assert before.cart is not None
    after = contents_of(add(before, some(), etag=before.cart.etag))
    with pytest.raises(EtagMismatch):
        add(after, some(), etag=before.cart.etag)
    with pytest.raises(EtagMismatch):
        add(NOTHING, some(), etag=before.cart.etag)


def test_the_reconciler_never_makes_an_etag_fail() -> None:
    before = a_cart()
    assert before.cart is not None
    reconciled = before.cart._replace(revision=before.cart.revision + 5)
    assert add(before._replace(cart=reconciled), some(), etag=before.cart.etag).cart.revision == 7


@pytest.mark.parametrize(
    "update",
    [ItemUpdate({"quantity"}, 1), ItemUpdate({"labels"}), ItemUpdate({"unit_price"}), ItemUpdate(frozenset())],
)
def test_an_update_to_what_is_there_already_changes_nothing(update: ItemUpdate) -> None:
    before = a_cart()
    change = rules.update_item(before, the_id(before), update, "", TERMS, LATER, new_id)
    assert change.cart is before.cart
    assert change.lines[0] is before.lines[the_id(before)]


def test_a_new_price_changes_the_subtotal_and_not_the_reservation() -> None:
    before = a_cart(some(quantity=3))
    update = ItemUpdate({"unit_price"}, unit_price=Money("EUR", 7))
    change = rules.update_item(before, the_id(before), update, "", TERMS, LATER, new_id)
    assert (change.cart.subtotal, change.cart.currency_code) == (21, "EUR")
    assert change.lines[0].reservation is before.lines[the_id(before)].reservation


@pytest.mark.parametrize("state", [Observed.REJECTED, Observed.EXPIRED])
def test_a_retry_asks_again_under_a_higher_revision(state: Observed) -> None:
    before = settled(a_cart(some(quantity=2)), state)
    row = rules.retry_reservation(before, the_id(before), "", TERMS, LATER, new_id).lines[0].reservation
    assert (row.revision, row.quantity, row.due_time) == (2, 2, LATER)


@pytest.mark.parametrize("is_settled", [True, False])
def test_a_retry_of_what_is_reserved_or_under_way_changes_nothing(is_settled: bool) -> None:
    before = settled(a_cart()) if is_settled else a_cart()
    change = rules.retry_reservation(before, the_id(before), "", TERMS, LATER, new_id)
    assert change.cart is before.cart
    assert change.lines[0] is before.lines[the_id(before)]
