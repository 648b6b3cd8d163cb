"""What holds of a cart after any sequence of calls."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cart_grpc.carts import rules
from cart_grpc.carts.calls import CartUpdate, Change, ItemUpdate, Limits, LoadedCart, NewId, addition
from cart_grpc.carts.model import ENDED, Cart, Line, Money
from cart_grpc.carts.refusals import CallRefused
from cart_grpc.protocol.reservation import Disposition, Reservation
from tests.carts.examples import KEY, NOW, numbered_ids

TERMS = Limits(max_quantity_per_item=6, max_items_per_cart=3)
SKUS = st.sampled_from(["a", "b", "c", "d"])
PRICES = st.one_of(st.none(), st.builds(Money, st.sampled_from(["EUR", "EUR", "USD"]), st.integers(0, 9)))
ADDITIONS = st.builds(
    addition, SKUS, st.sampled_from([{}, {"size": "L"}]), st.integers(1, 4), PRICES, st.sampled_from([None, {"x": "y"}])
)
UPDATES = st.builds(
    ItemUpdate, st.sets(st.sampled_from(["quantity", "unit_price", "labels"])), st.integers(1, 7), PRICES
)
CART_UPDATES = st.builds(
    CartUpdate,
    st.sets(st.sampled_from(["labels", "currency_code", "ttl"])),
    st.just({"k": "v"}),
    st.sampled_from(["", "EUR", "USD"]),
)
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(ADDITIONS, min_size=1, max_size=4)),
        st.tuples(st.just("update"), st.integers(0, 2), UPDATES),
        st.tuples(st.just("remove"), st.integers(0, 2)),
        st.just(("clear",)),
        st.just(("delete",)),
        st.tuples(st.just("create"), CART_UPDATES),
        st.tuples(st.just("update_cart"), CART_UPDATES),
    ),
    max_size=12,
)


class Shelf:
    """One cart as a store would keep it: whole contents before each call, its change taken over after."""

    def __init__(self) -> None:
        self.cart: Cart | None = None
        self.lines: dict[str, Line] = {}
        self.reservations: dict[str, Reservation] = {}

    def call(self, call: tuple[object, ...], new_id: NewId) -> Change:
        """Raises CallRefused."""
        change = decide(LoadedCart(KEY, self.cart, dict(self.lines), frozenset()), call, new_id)
        self.cart = change.cart
        for line in change.removed:
            del self.lines[line.item.item_id]
        self.lines.update({line.item.item_id: line for line in change.lines})
        for line in (*change.lines, *change.removed):
            self.reservations[line.reservation.reservation_id] = line.reservation
        return change


def decide(contents: LoadedCart, call: tuple[object, ...], new_id: NewId) -> Change:
    item_ids = [*contents.lines, "", "", ""]
    match call:
        case ("add", list(additions)):
            return rules.add_items(contents, additions, "", TERMS, NOW, new_id)
        case ("update", int(index), ItemUpdate() as update):
            return rules.update_item(contents, item_ids[index], update, "", TERMS, NOW, new_id)
        case ("remove", int(index)):
            return rules.remove_item(contents, item_ids[index], "", NOW)
        case ("clear",):
            return rules.clear_cart(contents, "", NOW)
        case ("delete",):
            return rules.delete_cart(contents, "", NOW)
        case ("create", CartUpdate() as update):
            return rules.create_cart(contents, update, "", NOW, new_id)
        case ("update_cart", CartUpdate() as update):
            return rules.update_cart(contents, update, "", NOW)
    raise AssertionError(call)


@settings(max_examples=300)
@given(CALLS)
def test_totals_always_equal_the_fold_over_the_items(calls: list[tuple[object, ...]]) -> None:
    shelf, new_id = Shelf(), numbered_ids()
    for call in calls:
        try:
            shelf.call(call, new_id)
        except CallRefused:
            continue
        items = [line.item for line in shelf.lines.values()]
        assert shelf.cart is not None
        assert shelf.cart.item_count == len(items) <= TERMS.max_items_per_cart
        assert shelf.cart.total_quantity == sum(item.quantity for item in items)
        assert shelf.cart.subtotal == sum(item.quantity * (item.unit_price or 0) for item in items)
        assert all(item.quantity <= TERMS.max_quantity_per_item for item in items)
        assert shelf.cart.currency_code or all(item.unit_price is None for item in items)
        assert not (items and shelf.cart.state in ENDED)


@settings(max_examples=300)
@given(CALLS)
def test_a_cart_that_changed_has_a_higher_revision_and_another_etag(calls: list[tuple[object, ...]]) -> None:
    shelf, new_id = Shelf(), numbered_ids()
    for call in calls:
        before = shelf.cart
        try:
            shelf.call(call, new_id)
        except CallRefused:
            assert shelf.cart is before
            continue
        assert shelf.cart is not None
        if before is not None and shelf.cart is not before:
            assert shelf.cart.revision == before.revision + 1
            assert shelf.cart.etag != before.etag


@settings(max_examples=300)
@given(CALLS)
def test_every_item_has_a_reservation_of_its_quantity_and_every_other_reservation_is_to_be_released(
    calls: list[tuple[object, ...]],
) -> None:
    shelf, new_id = Shelf(), numbered_ids()
    for call in calls:
        try:
            shelf.call(call, new_id)
        except CallRefused:
            continue
        holding = {line.item.reservation_id: line.item.quantity for line in shelf.lines.values()}
        assert len(holding) == len(shelf.lines)
        for name, row in shelf.reservations.items():
            if name in holding:
                assert (row.disposition, row.quantity) == (Disposition.HOLD, holding[name])
            else:
                assert row.disposition is Disposition.RELEASE
