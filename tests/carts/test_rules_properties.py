"""Properties of a cart after any sequence of calls."""

from collections.abc import Callable
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

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
    NewId,
    RemoveItem,
    ReplaceItems,
    UpdateCart,
    UpdateItem,
    addition,
)
from cart_grpc.carts.lines import sum_up
from cart_grpc.carts.model import ENDED, Cart, Line, Money
from cart_grpc.carts.refusals import CallRefused
from cart_grpc.carts.rules import decide
from cart_grpc.carts.sizes import CART_ROOM, entries_bytes, item_bytes
from cart_grpc.protocol.reservation import Disposition, Reservation
from tests.carts.examples import KEY, NOW, numbered_ids

LIMITS = Limits(max_quantity_per_item=6, max_items_per_cart=3, max_cart_bytes=1_800)
SKUS = st.sampled_from(["a", "b", "c", "d"])
PRICES = st.one_of(st.none(), st.builds(Money, st.sampled_from(["EUR", "EUR", "USD"]), st.integers(0, 9)))
LABELS = st.sampled_from([{}, {"x": "y"}, {"x": "ü" * 100}])
ADDITIONS = st.builds(
    addition, SKUS, st.sampled_from([{}, {"size": "L"}]), st.integers(1, 4), PRICES, st.one_of(st.none(), LABELS)
)
UPDATES = st.builds(
    ItemUpdate, st.sets(st.sampled_from(["quantity", "unit_price", "labels"])), st.integers(1, 7), PRICES, LABELS
)
CART_UPDATES = st.builds(
    CartUpdate,
    st.sets(st.sampled_from(["labels", "currency_code", "ttl"])),
    LABELS,
    st.sampled_from(["", "EUR", "USD"]),
)
# The call on one of a cart's items, by its position, or on an item that the cart does not have.
CallOnItem = Callable[[str], Call]
POSITIONS = st.integers(0, 2)
CALLS = st.lists(
    st.one_of(
        st.builds(AddItems, st.just(KEY), st.lists(ADDITIONS, min_size=1, max_size=4)),
        st.tuples(POSITIONS, st.builds(lambda update: lambda item_id: UpdateItem(KEY, item_id, update), UPDATES)),
        st.tuples(POSITIONS, st.just(lambda item_id: RemoveItem(KEY, item_id))),
        st.builds(ReplaceItems, st.just(KEY), st.lists(ADDITIONS, max_size=4)),
        st.just(ClearCart(KEY)),
        st.just(DeleteCart(KEY)),
        st.builds(CreateCart, st.just(KEY), CART_UPDATES),
        st.builds(UpdateCart, st.just(KEY), CART_UPDATES),
    ),
    max_size=12,
)
AnyCall = Call | tuple[int, CallOnItem]


class KeptCart:
    """One cart as a store keeps it: each call sees all of it, and its change is taken over."""

    def __init__(self) -> None:
        self.cart: Cart | None = None
        self.lines: dict[str, Line] = {}
        self.reservations: dict[str, Reservation] = {}

    def call(self, call: AnyCall, new_id: NewId) -> Change:
        """Raises CallRefused."""
        if isinstance(call, tuple):
            position, call_on = call
            call = call_on([*self.lines, "", "", ""][position])
        releasing = frozenset(row.sku for row in self.reservations.values() if row.releasing)
        loaded = LoadedCart(KEY, self.cart, dict(self.lines), releasing)
        change = decide(loaded, call, Given(LIMITS, NOW, new_id))
        self.cart = change.cart
        for line in change.removed:
            del self.lines[line.item.item_id]
        self.lines.update({line.item.item_id: line for line in change.lines})
        for line in (*change.lines, *change.removed):
            self.reservations[line.reservation.reservation_id] = line.reservation
        return change


@settings(max_examples=300)
@given(CALLS)
def test_a_carts_totals_equal_the_sums_over_its_items(calls: list[AnyCall]) -> None:
    kept, new_id = KeptCart(), numbered_ids()
    for call in calls:
        try:
            kept.call(call, new_id)
        except CallRefused:
            continue
        items = [line.item for line in kept.lines.values()]
        assert kept.cart is not None
        assert kept.cart.item_count == len(items) <= LIMITS.max_items_per_cart
        assert kept.cart.total_quantity == sum(item.quantity for item in items)
        assert kept.cart.subtotal == sum(item.quantity * (item.unit_price or 0) for item in items)
        assert all(item.quantity <= LIMITS.max_quantity_per_item for item in items)
        assert kept.cart.priced_count == sum(item.unit_price is not None for item in items)
        assert bool(kept.cart.currency_code) == (kept.cart.owns_currency or kept.cart.priced_count > 0)
        fixed = CART_ROOM + len(KEY.name) + entries_bytes(kept.cart.labels)
        assert kept.cart.byte_size == fixed + sum(map(item_bytes, items)) <= LIMITS.max_cart_bytes
        assert not (items and kept.cart.state in ENDED)


@settings(max_examples=300)
@given(CALLS)
def test_a_cart_that_changed_has_a_higher_revision_and_another_etag(calls: list[AnyCall]) -> None:
    kept, new_id = KeptCart(), numbered_ids()
    for call in calls:
        before = kept.cart
        try:
            kept.call(call, new_id)
        except CallRefused:
            assert kept.cart is before
            continue
        assert kept.cart is not None
        if before is not None and kept.cart is not before:
            assert kept.cart.revision == before.revision + 1
            assert kept.cart.etag != before.etag


@settings(max_examples=300)
@given(CALLS)
def test_every_item_has_a_hold_of_its_quantity_and_every_other_reservation_is_a_release(
    calls: list[AnyCall],
) -> None:
    kept, new_id = KeptCart(), numbered_ids()
    for call in calls:
        try:
            kept.call(call, new_id)
        except CallRefused:
            continue
        holding = {line.item.reservation_id: line.item.quantity for line in kept.lines.values()}
        assert len(holding) == len(kept.lines)
        for name, row in kept.reservations.items():
            if name in holding:
                assert (row.disposition, row.quantity) == (Disposition.HOLD, holding[name])
            else:
                assert row.disposition is Disposition.RELEASE


@settings(max_examples=300)
@given(CALLS)
def test_a_new_reservation_waits_exactly_if_an_older_one_of_its_sku_is_being_released(calls: list[AnyCall]) -> None:
    kept, new_id = KeptCart(), numbered_ids()
    for call in calls:
        known = set(kept.reservations)
        try:
            change = kept.call(call, new_id)
        except CallRefused:
            continue
        releasing = {row.sku for row in kept.reservations.values() if row.releasing}
        for line in change.lines:
            if line.reservation.reservation_id not in known:
                assert line.reservation.waiting == (line.item.sku in releasing)


@settings(max_examples=300)
@given(CALLS, st.lists(ADDITIONS, max_size=4))
def test_replace_items_leaves_exactly_its_lines_and_changes_nothing_the_second_time(
    calls: list[AnyCall], additions: list[Addition]
) -> None:
    kept, new_id = KeptCart(), numbered_ids()
    for call in calls:
        with suppress(CallRefused):
            kept.call(call, new_id)
    try:
        kept.call(ReplaceItems(KEY, additions), new_id)
    except CallRefused:
        return
    wanted = {one.item_id: (one.quantity, one.unit_price, one.labels or {}) for one in sum_up(additions)}
    assert kept.cart is not None
    assert wanted == {
        item_id: (
            line.item.quantity,
            None if line.item.unit_price is None else Money(kept.cart.currency_code, line.item.unit_price),
            line.item.labels,
        )
        for item_id, line in kept.lines.items()
    }
    before, lines = kept.cart, dict(kept.lines)
    again = kept.call(ReplaceItems(KEY, list(reversed(additions))), new_id) if len(wanted) == len(additions) else None
    if again:
        assert again.cart is before
        assert all(line is lines[line.item.item_id] for line in again.lines)
