"""The rules of the calls, one at a time."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from cart_grpc.carts.calls import (
    AddItems,
    Addition,
    Call,
    CartUpdate,
    Change,
    ClearCart,
    CreateCart,
    DeleteCart,
    Given,
    ItemUpdate,
    Limits,
    LoadedCart,
    MergeCarts,
    RemoveItem,
    ReplaceItems,
    RetryReservation,
    UpdateCart,
    UpdateItem,
    addition,
)
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
from cart_grpc.carts.rules import RULES, decide, expire_cart
from cart_grpc.carts.totals import start_cart
from cart_grpc.names import cart_key, user_key
from cart_grpc.protocol.reservation import Disposition, Observed
from cart_grpc.protocol.transitions import merge_decision, release
from tests.carts.examples import KEY, NOW, SECOND, SKU, decided, held, numbered_ids

LIMITS = Limits(max_quantity_per_add=100, max_quantity_per_item=10, max_items_per_cart=3, hold_ttl_us=600 * SECOND)
LATER = NOW + SECOND
OTHER_KEY = cart_key(user_key("bob"), "default")
NO_CART = LoadedCart(KEY, None, {}, frozenset())
SOME_ETAG = '"5bd0c1ae-1f"'
new_id = numbered_ids()
OTHER_CART = start_cart(OTHER_KEY, None, Given(LIMITS, NOW, new_id))


def an_addition(sku: str = SKU, quantity: int = 1, price: Money | None = None, **more: Any) -> Addition:
    return addition(sku, more.get("options", {}), quantity, price, more.get("labels"))


def change_of(loaded: LoadedCart, call: Call, now: int = LATER) -> Change:
    if isinstance(call, MergeCarts):
        loaded = loaded._replace(others=(LoadedCart(OTHER_KEY, OTHER_CART, {}, frozenset()),))
    return decide(loaded, call, Given(LIMITS, now, new_id))


def add(loaded: LoadedCart, *additions: Addition, etag: str = "", now: int = LATER) -> Change:
    return change_of(loaded, AddItems(KEY, additions, etag=etag), now)


def loaded_after(change: Change, releasing: Sequence[str] = ()) -> LoadedCart:
    lines = {line.item.item_id: line for line in change.lines}
    return LoadedCart(change.cart.key, change.cart, lines, frozenset(releasing))


def a_cart(*additions: Addition) -> LoadedCart:
    """A cart with `additions`, or with one item if there are none."""
    return loaded_after(add(NO_CART, *(additions or (an_addition(),)), now=NOW))


def settled(loaded: LoadedCart, state: Observed = Observed.HELD) -> LoadedCart:
    """The cart once the Reservation API has answered every reservation with `state`."""
    lines = {}
    for item_id, line in loaded.lines.items():
        row = line.reservation
        answer = held(row) if state is Observed.HELD else decided(row, state)
        lines[item_id] = line._replace(reservation=merge_decision(row, answer))
    return loaded._replace(lines=lines)


def only_id(loaded: LoadedCart) -> str:
    return next(iter(loaded.lines))


def test_the_first_item_starts_the_cart_and_its_reservation_is_due_at_once() -> None:
    change = add(NO_CART, an_addition(quantity=2))
    assert (change.cart.state, change.cart.revision, change.cart.etag_revision) == (CartState.ACTIVE, 1, 1)
    row = change.lines[0].reservation
    assert (row.quantity, row.revision, row.due_time, row.ttl_us) == (2, 1, LATER, LIMITS.hold_ttl_us)
    assert row.reservation_id == change.lines[0].item.reservation_id


def test_adding_the_same_line_again_adds_the_quantity_and_raises_the_revision_of_the_same_reservation() -> None:
    before = a_cart(an_addition(quantity=2))
    change = add(before, an_addition(quantity=3))
    assert (change.lines[0].item.quantity, change.cart.item_count, change.cart.total_quantity) == (5, 1, 5)
    assert change.lines[0].reservation.reservation_id == before.lines[only_id(before)].reservation.reservation_id
    assert (change.lines[0].reservation.quantity, change.lines[0].reservation.revision) == (5, 2)
    assert change.lines[0].item.create_time == NOW


def test_a_batch_sums_additions_to_the_same_line_before_it_applies_them() -> None:
    change = add(
        NO_CART,
        an_addition(quantity=2, labels={"a": "1"}),
        an_addition("filters"),
        an_addition(quantity=3, labels={"a": "2"}),
    )
    assert [(line.item.sku, line.item.quantity) for line in change.lines] == [(SKU, 5), ("filters", 1)]
    assert change.lines[0].item.labels == {"a": "2"}
    assert change.lines[0].reservation.revision == 1


def test_an_addition_without_price_and_labels_keeps_those_of_the_line() -> None:
    before = a_cart(an_addition(price=Money("EUR", 5), labels={"gift": "yes"}))
    item = add(before, an_addition()).lines[0].item
    assert (item.unit_price, item.labels) == (5, {"gift": "yes"})


def test_a_total_above_its_limit_is_refused() -> None:
    with pytest.raises(LimitExceeded) as refused:
        add(a_cart(an_addition(quantity=8)), an_addition(quantity=3))
    assert refused.value.metadata["quota"] == "quantity_per_item"
    with pytest.raises(LimitExceeded) as refused:
        add(a_cart(an_addition("a"), an_addition("b"), an_addition("c")), an_addition("d"))
    assert refused.value.metadata["quota"] == "items_per_cart"
    with pytest.raises(LimitExceeded):
        change_of(a_cart(), UpdateItem(KEY, only_id(a_cart()), ItemUpdate({"quantity"}, 11)))


def test_a_total_equal_to_its_limit_is_accepted() -> None:
    assert add(a_cart(an_addition("a"), an_addition("b")), an_addition("c", quantity=10)).cart.item_count == 3


def test_a_price_in_another_currency_is_refused() -> None:
    priced = a_cart(an_addition(price=Money("EUR", 5)))
    with pytest.raises(CurrencyMismatch):
        add(priced, an_addition("filters", price=Money("USD", 5)))
    with pytest.raises(CurrencyMismatch):
        change_of(priced, UpdateCart(KEY, CartUpdate({"currency_code"}, currency_code="USD")))


EUR, USD = Money("EUR", 5), Money("USD", 5)


def open_again() -> list[tuple[str, Change]]:
    """Every change that takes the last price out of a cart whose currency came from that price."""
    before = a_cart(an_addition(price=USD), an_addition("filters"))
    unpriced = ItemUpdate({"unit_price"})
    expired = expire_cart(before, LATER + LIMITS.cart_ttl_us)
    assert expired
    return [
        ("ClearCart", change_of(before, ClearCart(KEY))),
        ("RemoveItem", change_of(before, RemoveItem(KEY, only_id(before)))),
        ("UpdateItem", change_of(before, UpdateItem(KEY, only_id(before), unpriced))),
        ("DeleteCart", change_of(before, DeleteCart(KEY))),
        ("ReplaceItems", change_of(before, ReplaceItems(KEY, (an_addition("filters"),)))),
        ("Expire", expired),
    ]


@pytest.mark.parametrize(("name", "change"), open_again(), ids=[name for name, _ in open_again()])
def test_the_currency_that_came_from_prices_is_open_again_after_the_last_price(name: str, change: Change) -> None:
    assert change.cart.currency_code == ""
    assert add(LoadedCart(KEY, change.cart, {}, frozenset()), an_addition("tea", price=EUR)).cart.currency_code == "EUR"


def test_a_currency_that_a_caller_set_stays_when_the_last_price_goes() -> None:
    made = change_of(NO_CART, CreateCart(KEY, CartUpdate(set(), {}, "USD")))
    later = change_of(a_cart(an_addition(price=USD)), UpdateCart(KEY, CartUpdate({"currency_code"}, {}, "USD")))
    for start in (loaded_after(made), loaded_after(later)):
        emptied = loaded_after(change_of(loaded_after(add(start, an_addition(price=USD))), ClearCart(KEY)))
        assert emptied.cart is not None
        assert emptied.cart.currency_code == "USD"
        with pytest.raises(CurrencyMismatch):
            add(emptied, an_addition(price=EUR))


def test_a_currency_that_a_caller_clears_comes_from_the_prices_again() -> None:
    made = loaded_after(change_of(NO_CART, CreateCart(KEY, CartUpdate(set(), {}, "USD"))))
    cleared = loaded_after(change_of(made, UpdateCart(KEY, CartUpdate({"currency_code"}))))
    assert add(cleared, an_addition(price=EUR)).cart.currency_code == "EUR"


def test_a_currency_that_a_caller_clears_stays_as_long_as_an_item_has_a_price() -> None:
    made = loaded_after(change_of(NO_CART, CreateCart(KEY, CartUpdate(set(), {}, "USD"))))
    priced = loaded_after(add(made, an_addition(price=USD)))
    cleared = loaded_after(change_of(priced, UpdateCart(KEY, CartUpdate({"currency_code"}))))
    assert cleared.cart
    assert (cleared.cart.currency_code, cleared.cart.owns_currency) == ("USD", False)
    emptied = change_of(cleared._replace(lines=priced.lines), ClearCart(KEY))
    assert emptied.cart.currency_code == ""


def test_the_only_price_may_change_its_currency() -> None:
    before = a_cart(an_addition(quantity=2, price=USD), an_addition("filters"))
    updated = change_of(before, UpdateItem(KEY, only_id(before), ItemUpdate({"unit_price"}, 0, EUR)))
    added = add(before, an_addition(price=EUR), an_addition("filters", price=EUR))
    assert (updated.cart.currency_code, updated.cart.subtotal, updated.cart.priced_count) == ("EUR", 10, 1)
    assert (added.cart.currency_code, added.cart.subtotal, added.cart.priced_count) == ("EUR", 25, 2)
    assert updated.cart.revision == 2


def test_one_price_of_several_cannot_change_its_currency() -> None:
    before = a_cart(an_addition(price=USD), an_addition("filters", price=USD))
    with pytest.raises(CurrencyMismatch):
        change_of(before, UpdateItem(KEY, only_id(before), ItemUpdate({"unit_price"}, 0, EUR)))
    with pytest.raises(CurrencyMismatch):
        add(before, an_addition(price=EUR))


def roomy(size: int) -> Given:
    """Limits that leave `size` bytes for a cart."""
    return Given(replace(LIMITS, max_cart_bytes=size), LATER, new_id)


FAT = {"note": "\U0001f375" * 200}
GROWING: dict[str, Callable[[LoadedCart], Call]] = {
    "AddItem": lambda _: AddItems(KEY, (an_addition("tea"),)),
    "AddItem, labels": lambda _: AddItems(KEY, (an_addition(labels=FAT),)),
    "BatchAddItems": lambda _: AddItems(KEY, (an_addition("tea"), an_addition("milk"))),
    "UpdateItem": lambda cart: UpdateItem(KEY, only_id(cart), ItemUpdate({"labels"}, labels=FAT)),
    "UpdateCart": lambda _: UpdateCart(KEY, CartUpdate({"labels"}, FAT)),
}


@pytest.mark.parametrize("call_on", GROWING.values(), ids=GROWING)
def test_a_call_that_makes_a_cart_too_long_is_refused_and_one_that_fills_it_is_not(
    call_on: Callable[[LoadedCart], Call],
) -> None:
    before = a_cart()
    call = call_on(before)
    full = decide(before, call, Given(LIMITS, LATER, new_id)).cart.byte_size
    assert before.cart is not None
    assert full > before.cart.byte_size
    assert decide(before, call, roomy(full)).cart.byte_size == full
    with pytest.raises(LimitExceeded) as refused:
        decide(before, call, roomy(full - 1))
    assert refused.value.metadata == {
        "subject": KEY.name, "quota": "bytes_per_cart", "limit": str(full - 1), "value": str(full)
    }  # fmt: skip


def test_create_cart_counts_its_labels() -> None:
    call = CreateCart(KEY, CartUpdate(set(), FAT))
    full = change_of(NO_CART, call).cart.byte_size
    assert decide(NO_CART, call, roomy(full)).cart.labels == FAT
    with pytest.raises(LimitExceeded):
        decide(NO_CART, call, roomy(full - 1))


def test_a_removed_item_makes_room_for_another_of_its_length() -> None:
    before = a_cart(an_addition("coffee"))
    assert before.cart is not None
    full = roomy(before.cart.byte_size)
    with pytest.raises(LimitExceeded):
        decide(before, AddItems(KEY, (an_addition("cocoa!"),)), full)
    emptied = loaded_after(decide(before, RemoveItem(KEY, only_id(before)), full))
    assert decide(emptied, AddItems(KEY, (an_addition("cocoa!"),)), full).cart.item_count == 1


def test_a_cart_beyond_a_lowered_limit_may_change_unless_it_grows() -> None:
    before = a_cart(an_addition(labels=FAT))
    low = roomy(1_000)
    shorter = UpdateItem(KEY, only_id(before), ItemUpdate({"quantity", "labels"}, 9, labels={"note": "short"}))
    assert decide(before, shorter, low).lines[0].item.quantity == 9
    assert decide(before, AddItems(KEY, (an_addition(),)), low).lines[0].item.quantity == 2
    with pytest.raises(LimitExceeded):
        decide(before, UpdateCart(KEY, CartUpdate({"labels"}, {"a": "b"})), low)


def test_removing_an_item_takes_it_out_at_once_and_intends_the_release_of_its_reservation() -> None:
    before = a_cart(an_addition(quantity=2, price=Money("EUR", 5)))
    change = change_of(before, RemoveItem(KEY, only_id(before)))
    assert (change.cart.item_count, change.cart.total_quantity, change.cart.subtotal) == (0, 0, 0)
    assert change.removed[0].reservation.disposition is Disposition.RELEASE
    assert change.cart.state is CartState.ACTIVE


def test_a_removed_item_that_is_added_again_gets_a_new_reservation_that_waits_for_the_release_of_the_old_one() -> None:
    before = a_cart(an_addition(quantity=2))
    removed = change_of(before, RemoveItem(KEY, only_id(before)))
    again = add(loaded_after(removed)._replace(releasing=frozenset({SKU})), an_addition())
    row = again.lines[0].reservation
    assert row.reservation_id != removed.removed[0].reservation.reservation_id
    assert (row.waiting, row.due_time, row.revision) == (True, None, 1)


def test_a_reservation_does_not_wait_for_the_release_of_another_sku() -> None:
    row = add(NO_CART._replace(releasing=frozenset({"filters"})), an_addition()).lines[0].reservation
    assert (row.waiting, row.due_time) == (False, LATER)


def test_a_change_beside_a_release_of_the_same_sku_asks_once_more_if_it_is_refused() -> None:
    before = settled(a_cart(an_addition(quantity=2)))
    for releasing in (frozenset({SKU}), frozenset({"filters"})):
        row = add(before._replace(releasing=releasing), an_addition()).lines[0].reservation
        assert (row.revision, row.supersedes) == (2, SKU in releasing)


@pytest.mark.parametrize("confirmed", [True, False])
def test_an_item_whose_reservation_is_closed_gets_a_new_one(confirmed: bool) -> None:
    before = a_cart(an_addition(quantity=2))
    line = before.lines[only_id(before)]
    row = release(line.reservation, NOW)
    if confirmed:
        row = merge_decision(row, decided(row, Observed.RELEASED))
    after = add(before._replace(lines={only_id(before): line._replace(reservation=row)}), an_addition()).lines[0]
    assert after.item.reservation_id == after.reservation.reservation_id != row.reservation_id
    assert after.reservation.quantity == 3
    assert after.reservation.waiting is not confirmed


def test_clear_cart_and_delete_cart_release_every_item() -> None:
    before = a_cart(an_addition("a"), an_addition("b"))
    for change, state in (
        (change_of(before, ClearCart(KEY)), CartState.ACTIVE),
        (change_of(before, DeleteCart(KEY)), CartState.DELETED),
    ):
        assert [line.reservation.disposition for line in change.removed] == [Disposition.RELEASE] * 2
        assert (change.cart.state, change.cart.item_count, change.cart.revision) == (state, 0, 2)


def test_clearing_an_empty_cart_changes_nothing() -> None:
    made = loaded_after(change_of(NO_CART, CreateCart(KEY, CartUpdate(set()))))
    assert change_of(made, ClearCart(KEY)).cart is made.cart


def test_an_ended_cart_refuses_changes_but_its_name_starts_a_new_cart_with_a_higher_revision() -> None:
    before = a_cart()
    ended = loaded_after(change_of(before, DeleteCart(KEY)))
    with pytest.raises(CartClosed):
        change_of(ended, ClearCart(KEY))
    with pytest.raises(CartClosed):
        change_of(ended, RemoveItem(KEY, only_id(before)))
    added = add(ended, an_addition()).cart
    made = change_of(ended, CreateCart(KEY, CartUpdate(set()))).cart
    assert ended.cart is not None
    for anew in (added, made):
        assert anew.uid != ended.cart.uid
        assert (anew.state, anew.revision) == (CartState.ACTIVE, 3)


def test_a_new_cart_under_an_old_name_inherits_no_labels_currency_or_ttl() -> None:
    made = change_of(NO_CART, CreateCart(KEY, CartUpdate(set(), {"a": "b"}, "EUR", 60 * SECOND)))
    anew = add(loaded_after(change_of(loaded_after(made), DeleteCart(KEY))), an_addition()).cart
    assert (anew.labels, anew.currency_code, anew.ttl_us) == ({}, "", LIMITS.cart_ttl_us)


def test_create_cart_refuses_a_name_with_an_open_cart() -> None:
    with pytest.raises(AlreadyExists):
        change_of(a_cart(), CreateCart(KEY, CartUpdate(set())))


def test_a_missing_cart_or_item_is_not_found() -> None:
    with pytest.raises(CartNotFound):
        change_of(NO_CART, ClearCart(KEY))
    with pytest.raises(ItemNotFound):
        change_of(a_cart(), RemoveItem(KEY, "0" * 32))


def test_an_etag_matches_until_a_caller_changes_the_cart() -> None:
    before = a_cart()
    assert before.cart is not None
    after = loaded_after(add(before, an_addition(), etag=before.cart.etag))
    with pytest.raises(EtagMismatch):
        add(after, an_addition(), etag=before.cart.etag)
    with pytest.raises(EtagMismatch):
        add(NO_CART, an_addition(), etag=before.cart.etag)


def test_a_change_by_the_reconciler_does_not_invalidate_an_etag() -> None:
    before = a_cart()
    assert before.cart is not None
    reconciled = before.cart._replace(revision=before.cart.revision + 5)
    assert add(before._replace(cart=reconciled), an_addition(), etag=before.cart.etag).cart.revision == 7


@pytest.mark.parametrize(
    "update",
    [ItemUpdate({"quantity"}, 1), ItemUpdate({"labels"}), ItemUpdate({"unit_price"}), ItemUpdate(frozenset())],
)
def test_an_update_to_the_current_values_changes_nothing(update: ItemUpdate) -> None:
    before = a_cart()
    change = change_of(before, UpdateItem(KEY, only_id(before), update))
    assert change.cart is before.cart
    assert change.lines[0] is before.lines[only_id(before)]


def test_a_new_price_changes_the_subtotal_but_not_the_reservation() -> None:
    before = a_cart(an_addition(quantity=3))
    update = ItemUpdate({"unit_price"}, unit_price=Money("EUR", 7))
    change = change_of(before, UpdateItem(KEY, only_id(before), update))
    assert (change.cart.subtotal, change.cart.currency_code) == (21, "EUR")
    assert change.lines[0].reservation is before.lines[only_id(before)].reservation


@pytest.mark.parametrize("state", [Observed.REJECTED, Observed.EXPIRED])
def test_a_retry_of_a_rejected_or_expired_item_raises_the_revision(state: Observed) -> None:
    before = settled(a_cart(an_addition(quantity=2)), state)
    row = change_of(before, RetryReservation(KEY, only_id(before))).lines[0].reservation
    assert (row.revision, row.quantity, row.due_time) == (2, 2, LATER)


@pytest.mark.parametrize("is_settled", [True, False])
def test_a_retry_of_a_reserved_or_pending_item_changes_nothing(is_settled: bool) -> None:
    before = settled(a_cart()) if is_settled else a_cart()
    change = change_of(before, RetryReservation(KEY, only_id(before)))
    assert change.cart is before.cart
    assert change.lines[0] is before.lines[only_id(before)]


EVERY_CALL: list[Call] = [
    AddItems(KEY, (an_addition(),), etag=SOME_ETAG),
    ReplaceItems(KEY, (an_addition(),), etag=SOME_ETAG),
    UpdateItem(KEY, "0" * 32, ItemUpdate({"quantity"}, 1), etag=SOME_ETAG),
    RemoveItem(KEY, "0" * 32, etag=SOME_ETAG),
    ClearCart(KEY, etag=SOME_ETAG),
    DeleteCart(KEY, etag=SOME_ETAG),
    CreateCart(KEY, CartUpdate(set()), etag=SOME_ETAG),
    UpdateCart(KEY, CartUpdate({"labels"}), etag=SOME_ETAG),
    RetryReservation(KEY, "0" * 32, etag=SOME_ETAG),
    MergeCarts(KEY, OTHER_KEY, etag=SOME_ETAG),
]
STARTS_A_CART = (AddItems, CreateCart, ReplaceItems, MergeCarts)
every_call = pytest.mark.parametrize("call", EVERY_CALL, ids=[type(call).__name__ for call in EVERY_CALL])


def test_these_are_all_the_calls_that_have_a_rule() -> None:
    assert {type(call) for call in EVERY_CALL} == set(RULES)


@every_call
def test_a_missing_cart_is_not_found_even_with_an_etag_unless_the_call_would_start_it(call: Call) -> None:
    with pytest.raises(EtagMismatch if isinstance(call, STARTS_A_CART) else CartNotFound):
        change_of(NO_CART, call)


@every_call
@pytest.mark.parametrize("has_ended", [False, True], ids=["open", "ended"])
def test_an_etag_mismatch_is_refused_before_the_state_of_the_cart_is(call: Call, has_ended: bool) -> None:
    loaded = loaded_after(change_of(a_cart(), DeleteCart(KEY))) if has_ended else a_cart()
    with pytest.raises(EtagMismatch):
        change_of(loaded, call)


@every_call
def test_an_ended_cart_is_closed_to_every_call_that_does_not_start_a_new_one(call: Call) -> None:
    ended = loaded_after(change_of(a_cart(), DeleteCart(KEY)))
    assert ended.cart is not None
    matching = replace(call, etag=ended.cart.etag)
    if isinstance(call, STARTS_A_CART):
        assert change_of(ended, matching).cart.state is CartState.ACTIVE
    else:
        with pytest.raises(CartClosed):
            change_of(ended, matching)
