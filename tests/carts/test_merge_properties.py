"""Properties of every merge, whatever the states of the reservations, the prices and the limits."""

from collections.abc import Callable
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from cart_grpc.carts.adjustments import AdjustmentType
from cart_grpc.carts.calls import Change, Given, Limits, LoadedCart, MergeCarts
from cart_grpc.carts.model import Cart, Item, Line, Money, UserTotals, totals_of
from cart_grpc.carts.progress import held_quantity
from cart_grpc.carts.rules import decide
from cart_grpc.carts.sizes import RESERVATION_BYTES, item_bytes
from cart_grpc.carts.totals import recount, start_cart
from cart_grpc.names import CartKey, cart_key, item_id_of, user_key
from cart_grpc.protocol.reservation import Disposition, Observed, Reservation
from cart_grpc.protocol.transitions import claim, force_release, hold, merge_decision, release
from tests.carts.examples import NOW, SECOND, a_hold, decided, held, numbered_ids

USER, OTHER, GUEST = (cart_key(user_key(user), cart) for user, cart in (("a", "x"), ("a", "other"), ("guest", "x")))
LATER = NOW + 5 * SECOND


def _decided(state: Observed, granted: int = 0) -> Callable[[Reservation], Reservation]:
    return lambda row: merge_decision(row, decided(row, state, granted))._replace(due_time=None)


def _held(row: Reservation) -> Reservation:
    return merge_decision(row, held(row))._replace(due_time=LATER + 100 * SECOND)


# The states of a row whose item is in a cart.
STATES: dict[str, Callable[[Reservation], Reservation]] = {
    "pending": lambda row: row,
    "claimed": lambda row: claim(row, NOW, LATER),
    "held": _held,
    "held and renewed now": lambda row: claim(_held(row)._replace(due_time=NOW), NOW, LATER),
    "growing": lambda row: hold(_held(row)._replace(quantity=1, granted_quantity=1), row.quantity, NOW),
    "refused": _decided(Observed.REJECTED),
    "refused in part": _decided(Observed.REJECTED, 1),
    "expired": _decided(Observed.EXPIRED),
    "waiting": lambda row: row._replace(waiting=True, due_time=None),
    "set aside": lambda row: row._replace(due_time=None, set_aside_reason="poison"),
    "superseding": lambda row: row._replace(supersedes=True),
    "being released": lambda row: release(_held(row), NOW)._replace(seal_reason="RELEASED_BY_OPERATOR"),
    "ended by an operator": lambda row: force_release(row, NOW),
}


class Entry(NamedTuple):
    """One line: its sku, quantity, price, the time of its last change, and the state of its reservation."""

    sku: str
    quantity: int
    price: int | None
    changed: int
    state: str


ENTRIES = st.lists(
    st.builds(
        Entry, st.sampled_from("abcd"), st.integers(1, 6), st.sampled_from([None, 1, 7]), st.integers(0, 3),
        st.sampled_from(sorted(STATES)),
    ),
    max_size=4, unique_by=lambda entry: entry.sku,
)  # fmt: skip
LIMITS = st.builds(
    Limits,
    max_quantity_per_item=st.integers(1, 12),
    max_items_per_cart=st.integers(0, 6),
    max_cart_bytes=st.sampled_from([600, 1_800, 3_000, 1 << 18]),
    max_user_bytes=st.sampled_from([600, 3_000, 5_000, 8_000, 1 << 26]),
    max_carts_per_user=st.integers(0, 3),
    max_items_per_user=st.integers(0, 8),
    max_units_per_user=st.integers(0, 30),
)


def a_cart(key: CartKey, entries: list[Entry], currency: str, new_id: Callable[[], str]) -> LoadedCart:
    """A cart with these lines. A superseding reservation has superseded another one, a waiting one waits for one."""
    cart: Cart = start_cart(key, None, Given(Limits(), NOW, new_id))
    lines: dict[str, Line] = {}
    itemless = []
    for entry in entries:
        row = a_hold(entry.quantity, reservation_id=new_id(), cart=key, sku=entry.sku)
        row = STATES[entry.state](row._replace(item_id=item_id_of(entry.sku, {})))
        item = Item(
            key, row.item_id, new_id(), entry.sku, {}, entry.quantity, entry.price, {}, row.reservation_id, NOW,
            NOW + entry.changed,
        )  # fmt: skip
        lines[row.item_id] = Line(item, row)
        if entry.price is not None:
            cart = cart._replace(currency_code=currency)
        cart = recount(cart, None, lines[row.item_id])
        old = _held(row._replace(reservation_id=new_id(), disposition=Disposition.HOLD, waiting=False))
        if entry.state == "superseding":
            itemless.append(old._replace(supersedes=False, superseded_by=row.reservation_id))
        if entry.state == "waiting":
            itemless.append(release(old, NOW))
    rows = [*(line.reservation for line in lines.values()), *itemless]
    releasing = frozenset(row.sku for row in rows if row.releasing)
    rest = UserTotals(RESERVATION_BYTES * len(rows))
    return LoadedCart(key, cart, lines, releasing, rest_of_user=rest, itemless=tuple(itemless))


class Merged(NamedTuple):
    """The two carts before a merge, its limits, and the change."""

    target: LoadedCart
    source: LoadedCart
    limits: Limits
    change: Change

    @property
    def rows_before(self) -> dict[str, Reservation]:
        carts = (self.target, self.source)
        rows = [line.reservation for cart in carts for line in cart.lines.values()]
        return {row.reservation_id: row for row in (*rows, *(row for cart in carts for row in cart.itemless))}

    @property
    def rows_after(self) -> dict[str, Reservation]:
        change, (source,) = self.change, self.change.others
        rows = (*(line.reservation for line in (*source.removed, *change.lines)), *change.itemless)
        return {**self.rows_before, **{row.reservation_id: row for row in rows}}


@st.composite
def merges(draw: st.DrawFn) -> Merged:
    new_id = numbered_ids()
    target = a_cart(USER, draw(ENTRIES), "EUR", new_id)
    key = draw(st.sampled_from([GUEST, OTHER]))
    source = a_cart(key, draw(ENTRIES), draw(st.sampled_from(["EUR", "USD"])), new_id)
    if key == OTHER:
        rest = target.rest_of_user.plus(source.rest_of_user)
        target = target._replace(rest_of_user=rest.plus(totals_of(source.cart)))
        source = source._replace(rest_of_user=rest.plus(totals_of(target.cart)))
    if not target.lines and draw(st.booleans()):
        target = target._replace(cart=None)
    limits = draw(LIMITS)
    change = decide(target._replace(others=(source,)), MergeCarts(USER, key), Given(limits, LATER, new_id))
    return Merged(target, source, limits, change)


@settings(max_examples=80)
@given(merges())
def test_every_unit_and_price_of_the_source_is_in_the_target_or_listed(merged: Merged) -> None:
    after = {line.item.item_id: line for line in merged.change.lines}
    listed = {(one.line.item.item_id, one.type): one for one in merged.change.adjustments}
    assert len(listed) == len(merged.change.adjustments)
    for item_id, line in merged.source.lines.items():
        before = merged.target.lines.get(item_id)
        whole = line.item.quantity + (before.item.quantity if before else 0)
        found = after.get(item_id)
        dropped = listed.get((item_id, AdjustmentType.DROPPED))
        clamped = listed.get((item_id, AdjustmentType.QUANTITY_CLAMPED))
        assert (found is None) == (dropped is not None)
        if found is None:
            continue
        assert found.item.quantity >= (before.item.quantity if before else 1)
        assert (found.item.quantity < whole) == (clamped is not None)
        assert clamped is None or (clamped.quantity == found.item.quantity and clamped.quota)
        prices = {found.item.unit_price, *(one.lost_price.minor_units for key, one in listed.items()
                                           if key[0] == item_id and one.lost_price)}  # fmt: skip
        assert {line.item.unit_price, before.item.unit_price if before else None} - {None} <= prices
    kept = {item_id for item_id in merged.target.lines if item_id not in merged.source.lines}
    assert all(
        after[item_id] is merged.target.lines[item_id] or after[item_id].reservation.due_time for item_id in kept
    )


@settings(max_examples=80)
@given(merges())
def test_every_reservation_belongs_to_an_item_or_is_superseded_or_released(merged: Merged) -> None:
    rows = merged.rows_after
    of_items = {line.item.reservation_id: line for line in merged.change.lines}
    assert len(of_items) == len(merged.change.lines)
    for reservation_id, row in rows.items():
        if reservation_id in of_items:
            item = of_items[reservation_id].item
            assert (row.cart, row.item_id) == (USER, item.item_id)
            assert row.is_closed or row.quantity == item.quantity
        elif row.superseded_by:
            # The release of the taker finds it.
            taker = rows[row.superseded_by]
            assert taker.supersedes
            assert (taker.cart, taker.sku) == (row.cart, row.sku)
        else:
            assert row.is_closed
        if row.waiting and row.cart == USER:
            assert any(other.releasing and (other.cart, other.sku) == (USER, row.sku) for other in rows.values())


@settings(max_examples=80)
@given(merges())
def test_no_hold_of_an_item_shrinks_below_the_larger_of_both(merged: Merged) -> None:
    without_room = {one.item_name for one in merged.change.adjustments if one.quota == "bytes_per_user"}
    for line in merged.change.lines:
        item_id = line.item.item_id
        rows = [cart.lines[item_id].reservation for cart in (merged.target, merged.source) if item_id in cart.lines]
        if line.item.name in without_room or all(row.is_closed for row in rows):
            continue
        most = max(held_quantity(row, LATER) for row in rows if not row.is_closed)
        assert held_quantity(line.reservation, LATER) >= min(most, line.item.quantity)


@settings(max_examples=80)
@given(merges())
def test_a_row_never_falls_back_and_a_claim_of_a_row_that_moves_ends(merged: Merged) -> None:
    before = merged.rows_before
    for reservation_id, row in merged.rows_after.items():
        old = before.get(reservation_id)
        if old is None:
            continue
        assert row.revision >= old.revision
        assert row.observed_revision == old.observed_revision
        if row.cart != old.cart and old.lease_expire_time is not None:
            assert (row.lease_expire_time, row.lease_epoch > old.lease_epoch) == (None, True)
        is_asleep = row.due_time is None and not row.settled
        assert not is_asleep or row.waiting or row.set_aside_reason


@settings(max_examples=80)
@given(merges())
def test_the_totals_are_exact_and_within_the_limits_unless_they_were_beyond_before(merged: Merged) -> None:
    change, limits = merged.change, merged.limits
    cart, (source,) = change.cart, change.others
    items = [line.item for line in change.lines]
    assert (cart.item_count, cart.total_quantity) == (len(items), sum(item.quantity for item in items))
    assert cart.subtotal == sum(item.quantity * (item.unit_price or 0) for item in items)
    assert cart.priced_count == sum(item.unit_price is not None for item in items)
    fixed = cart.byte_size - sum(map(item_bytes, items))
    assert fixed == start_cart(USER, None, Given(limits, NOW, str)).byte_size
    assert (source.cart.item_count, source.cart.total_quantity, source.cart.subtotal) == (0, 0, 0)
    before = merged.target.cart
    grown = [item for item in items if item.item_id in merged.source.lines]
    assert all(
        item.quantity <= max(limits.max_quantity_per_item, _quantity(merged.target, item.item_id)) for item in grown
    )
    assert cart.item_count <= max(limits.max_items_per_cart, before.item_count if before else 0)
    total = merged.target.rest_of_user.plus(totals_of(before))
    others = merged.target.rest_of_user
    if merged.source.key.user == USER.user:
        others = others.minus(totals_of(merged.source.cart))
    assert others.item_count + cart.item_count <= max(limits.max_items_per_user, total.item_count)
    assert others.unit_count + cart.total_quantity <= max(limits.max_units_per_user, total.unit_count)


def _quantity(cart: LoadedCart, item_id: str) -> int:
    return cart.lines[item_id].item.quantity if item_id in cart.lines else 0


def test_a_lost_price_names_the_sources_currency() -> None:
    new_id = numbered_ids()
    target = a_cart(USER, [Entry("a", 1, 7, 0, "held")], "EUR", new_id)
    source = a_cart(GUEST, [Entry("a", 1, 1, 0, "held")], "USD", new_id)
    change = decide(target._replace(others=(source,)), MergeCarts(USER, GUEST), Given(Limits(), LATER, new_id))
    assert [one.lost_price for one in change.adjustments] == [Money("USD", 1)]
