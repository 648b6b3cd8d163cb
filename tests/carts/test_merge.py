"""The rule of MergeCarts, one case at a time."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from cart_grpc.carts.adjustments import AdjustmentType
from cart_grpc.carts.calls import AddItems, Change, DeleteCart, Given, Limits, LoadedCart, MergeCarts, addition
from cart_grpc.carts.checkout_refusals import CartFrozen
from cart_grpc.carts.model import CartState, Money, UserTotals, totals_of
from cart_grpc.carts.progress import ProgressState, progress
from cart_grpc.carts.refusals import CartClosed, CartNotFound, EtagMismatch
from cart_grpc.carts.rules import decide
from cart_grpc.carts.sizes import RESERVATION_BYTES
from cart_grpc.names import CartKey, cart_key, user_key
from cart_grpc.protocol.reservation import Disposition, Observed, Reservation
from cart_grpc.protocol.transitions import merge_decision, release
from tests.carts.examples import NOW, SECOND, SKU, decided, held, numbered_ids

USER = cart_key(user_key("alice"), "default")
GUEST = cart_key(user_key("guest"), "default")
LIMITS = Limits(max_quantity_per_item=10, max_items_per_cart=3)
LATER = NOW + 5 * SECOND
new_id = numbered_ids()


def a_cart(key: CartKey, *skus: str, quantity: int = 2, price: Money | None = None, now: int = NOW) -> LoadedCart:
    """An open cart with these skus, all pending."""
    additions = tuple(addition(sku, {}, quantity, price, None) for sku in skus)
    no_cart = LoadedCart(key, None, {}, frozenset())
    change = decide(no_cart, AddItems(key, additions), Given(Limits(), now, new_id))
    return LoadedCart(key, change.cart, {line.item.item_id: line for line in change.lines}, frozenset())


def with_row(loaded: LoadedCart, change: Any) -> LoadedCart:
    """The cart with each reservation as `change` makes it."""
    lines = {item_id: line._replace(reservation=change(line.reservation)) for item_id, line in loaded.lines.items()}
    return loaded._replace(lines=lines)


def reserved(loaded: LoadedCart) -> LoadedCart:
    return with_row(loaded, lambda row: merge_decision(row, held(row))._replace(due_time=LATER + 60 * SECOND))


def refused(loaded: LoadedCart) -> LoadedCart:
    return with_row(loaded, lambda row: merge_decision(row, decided(row, Observed.REJECTED))._replace(due_time=None))


def released_by_operator(loaded: LoadedCart) -> LoadedCart:
    return with_row(loaded, lambda row: release(row, NOW)._replace(seal_reason="RELEASED_BY_OPERATOR"))


def merge(target: LoadedCart, source: LoadedCart, limits: Limits = LIMITS, **more: Any) -> Change:
    loaded = target._replace(others=(source,))
    return decide(loaded, MergeCarts(target.key, source.key, **more), Given(limits, LATER, new_id))


def adjustments(change: Change) -> Sequence[tuple[AdjustmentType, str, int, str]]:
    return [(one.type, one.line.item.sku, one.quantity, one.quota) for one in change.adjustments]


def rows_of(change: Change) -> dict[str, Reservation]:
    """Every reservation that the change names, by id."""
    (source,) = change.others
    return {
        row.reservation_id: row
        for row in (
            *(line.reservation for line in (*change.lines, *source.removed)),
            *change.itemless,
        )
    }


NO_TARGET = LoadedCart(USER, None, {}, frozenset())


def test_an_item_of_the_source_moves_with_its_reservation() -> None:
    source = reserved(a_cart(GUEST, "a", "b"))
    change = merge(a_cart(USER, "c", now=NOW - SECOND), source)
    assert change.lines[0].item.sku == "c"
    for line in change.lines[1:]:
        before = source.lines[line.item.item_id]
        assert line.reservation == before.reservation._replace(cart=USER)
        assert line.item == before.item._replace(cart=USER)
    assert change.cart.item_count == 3
    assert change.adjustments == ()


def test_the_source_ends_as_merged_and_without_items() -> None:
    source = a_cart(GUEST, "a", "b")
    change = merge(a_cart(USER, "c"), source)
    (ended,) = change.others
    assert (ended.cart.state, ended.cart.merged_into) == (CartState.MERGED, USER.name)
    assert (ended.cart.item_count, ended.cart.total_quantity, ended.cart.subtotal) == (0, 0, 0)
    assert {line.item.sku for line in ended.removed} == {"a", "b"}
    assert source.cart is not None
    assert ended.cart.revision == source.cart.revision + 1


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_missing_or_ended_target_is_started(has_ended: bool) -> None:
    target = NO_TARGET
    if has_ended:
        ended = decide(a_cart(USER, "c"), DeleteCart(USER), Given(LIMITS, NOW, new_id))
        target = NO_TARGET._replace(cart=ended.cart)
    change = merge(target, a_cart(GUEST, "a"))
    assert (change.cart.state, change.cart.total_quantity) == (CartState.ACTIVE, 2)


def test_a_source_that_is_missing_or_has_ended_is_refused() -> None:
    with pytest.raises(CartNotFound):
        merge(a_cart(USER, "a"), LoadedCart(GUEST, None, {}, frozenset()))
    ended = decide(a_cart(GUEST, "c"), DeleteCart(GUEST), Given(LIMITS, NOW, new_id)).cart
    elsewhere = ended._replace(state=CartState.MERGED, merged_into="users/bob/carts/default")
    for cart in (ended, elsewhere):
        with pytest.raises(CartClosed):
            merge(a_cart(USER, "a"), LoadedCart(GUEST, cart, {}, frozenset()))


@pytest.mark.parametrize("target_state", [CartState.ACTIVE, CartState.CHECKING_OUT, CartState.DELETED])
def test_a_repeated_merge_returns_the_target_as_it_is(target_state: CartState) -> None:
    first = merge(a_cart(USER, "a"), a_cart(GUEST, "b"))
    lines = {line.item.item_id: line for line in first.lines}
    target = LoadedCart(USER, first.cart._replace(state=target_state), lines, frozenset())
    source = LoadedCart(GUEST, first.others[0].cart, {}, frozenset())
    again = merge(target, source)
    assert again.cart is target.cart
    assert (again.lines, again.adjustments, again.others) == (first.lines, (), ())
    with pytest.raises(EtagMismatch):
        merge(target, source, etag='"5bd0c1ae-1f"')


@pytest.mark.parametrize("which", ["target", "source"])
def test_a_cart_with_an_open_checkout_is_frozen_on_either_side(which: str) -> None:
    carts = {"target": a_cart(USER, "a"), "source": a_cart(GUEST, "b")}
    cart = carts[which].cart
    assert cart is not None
    frozen = cart._replace(state=CartState.CHECKING_OUT, checkout_id="some")
    carts[which] = carts[which]._replace(cart=frozen)
    with pytest.raises(CartFrozen) as refused:
        merge(carts["target"], carts["source"])
    assert refused.value.metadata["subject"] == cart.key.name


def test_an_empty_source_changes_nothing_in_the_target() -> None:
    target = a_cart(USER, "a")
    change = merge(target, a_cart(GUEST))
    assert change.cart is target.cart
    assert change.others[0].cart.state is CartState.MERGED


class TestAnItemThatBothCartsHave:
    def test_both_reserved_the_targets_reservation_takes_over_and_the_sources_stays_held_until_then(self) -> None:
        target, source = reserved(a_cart(USER, SKU, quantity=3)), reserved(a_cart(GUEST, SKU, quantity=2))
        change = merge(target, source)
        (line,), (other,) = change.lines, change.itemless
        assert (line.item.quantity, line.reservation.quantity, line.reservation.supersedes) == (5, 5, True)
        assert progress(line, LATER).state is ProgressState.PENDING
        assert progress(line, LATER).reserved_quantity == 3
        (before,) = source.lines.values()
        assert other == before.reservation._replace(cart=USER, superseded_by=line.reservation.reservation_id)

    def test_the_reservation_that_holds_more_is_kept(self) -> None:
        target, source = refused(a_cart(USER, SKU, quantity=3)), reserved(a_cart(GUEST, SKU, quantity=2))
        change = merge(target, source)
        (line,), (other,) = change.lines, change.itemless
        (before,) = source.lines.values()
        assert line.item.reservation_id == line.reservation.reservation_id == before.item.reservation_id
        assert progress(line, LATER).reserved_quantity == 2
        # The target's reservation is known to hold nothing.
        assert (other.disposition, line.reservation.supersedes) == (Disposition.RELEASE, False)

    def test_a_reservation_that_holds_nothing_for_certain_is_released_at_once(self) -> None:
        target, source = reserved(a_cart(USER, SKU)), a_cart(GUEST, SKU)
        (line,), (other,) = (change := merge(target, source)).lines, change.itemless
        assert (other.disposition, other.cart, other.superseded_by) == (Disposition.RELEASE, USER, "")
        # Its hold may be under way: it could be the reason for a refusal.
        assert line.reservation.supersedes
        assert SKU in change.releasing

    def test_a_quantity_that_is_held_already_needs_no_further_call(self) -> None:
        target, source = reserved(a_cart(USER, SKU, quantity=10)), reserved(a_cart(GUEST, SKU, quantity=2))
        (line,), (other,) = (change := merge(target, source)).lines, change.itemless
        assert line.reservation is next(iter(target.lines.values())).reservation
        assert other.disposition is Disposition.RELEASE
        # Nothing else changes in the target, but it has one more reservation that is being released.
        assert target.cart is not None
        assert change.cart.revision == target.cart.revision + 1
        assert adjustments(change) == [(AdjustmentType.QUANTITY_CLAMPED, SKU, 10, "quantity_per_item")]

    def test_a_closed_reservation_is_replaced_by_the_other_one(self) -> None:
        target, source = released_by_operator(a_cart(USER, SKU)), a_cart(GUEST, SKU)
        change = merge(target, source)
        (line,) = change.lines
        (before,) = source.lines.values()
        assert line.reservation.reservation_id == before.item.reservation_id
        assert (line.reservation.quantity, line.reservation.supersedes) == (4, True)

    def test_two_closed_reservations_are_replaced_by_a_new_one_that_waits_for_their_release(self) -> None:
        target, source = released_by_operator(a_cart(USER, SKU)), released_by_operator(a_cart(GUEST, SKU))
        change = merge(target, source)
        (line,) = change.lines
        assert (line.reservation.quantity, line.reservation.waiting, line.reservation.revision) == (4, True, 1)
        assert {row.cart for row in change.itemless} == {USER}
        assert all(row.releasing for row in change.itemless)

    def test_a_finished_reservation_stays_with_the_source(self) -> None:
        finished = with_row(
            released_by_operator(a_cart(GUEST, SKU)),
            lambda row: merge_decision(row, decided(row, Observed.RELEASED))._replace(due_time=None, finish_time=NOW),
        )
        change = merge(reserved(a_cart(USER, SKU)), finished)
        (line,), (source,) = change.lines, change.others
        assert (line.reservation.quantity, line.reservation.supersedes) == (4, False)
        assert change.itemless == ()
        assert source.removed[0].reservation.cart == GUEST


class TestPrices:
    def test_the_price_that_was_set_later_wins_and_the_other_one_is_listed(self) -> None:
        for older, newer in ((USER, GUEST), (GUEST, USER)):
            carts = {
                older: a_cart(older, SKU, price=Money("EUR", 300)),
                newer: a_cart(newer, SKU, price=Money("EUR", 250), now=NOW + SECOND),
            }
            change = merge(carts[USER], carts[GUEST])
            assert change.lines[0].item.unit_price == 250
            assert change.cart.subtotal == 1000
            (one,) = change.adjustments
            assert (one.type, one.lost_price) == (AdjustmentType.PRICE_REPLACED, Money("EUR", 300))

    def test_a_price_in_another_currency_is_dropped_and_listed(self) -> None:
        target = a_cart(USER, "a", "b", price=Money("EUR", 300))
        change = merge(target, a_cart(GUEST, "b", "c", price=Money("USD", 5)))
        assert {line.item.sku: line.item.unit_price for line in change.lines} == {"a": 300, "b": 300, "c": None}
        assert [(one.type, one.lost_price) for one in change.adjustments] == [
            (AdjustmentType.PRICE_DROPPED, Money("USD", 5))
        ] * 2
        assert (change.cart.currency_code, change.cart.subtotal) == ("EUR", 4 * 300 + 2 * 300)

    def test_a_target_without_a_currency_takes_the_sources(self) -> None:
        change = merge(a_cart(USER, "a"), a_cart(GUEST, "a", "b", price=Money("USD", 5)))
        assert (change.cart.currency_code, change.cart.subtotal) == ("USD", 4 * 5 + 2 * 5)
        assert change.adjustments == ()


class TestLimits:
    def test_items_beyond_the_limit_of_the_cart_are_dropped_in_their_order_and_released(self) -> None:
        source = reserved(a_cart(GUEST, "c", "d", "e"))
        change = merge(a_cart(USER, "a", "b"), source)
        assert {line.item.sku for line in change.lines} == {"a", "b", "c"}
        assert adjustments(change) == [
            (AdjustmentType.DROPPED, "d", 0, "items_per_cart"),
            (AdjustmentType.DROPPED, "e", 0, "items_per_cart"),
        ]
        assert [one.item_name for one in change.adjustments] == ["", ""]
        dropped = [line for line in change.others[0].removed if line.item.sku != "c"]
        assert {(line.reservation.cart, line.reservation.disposition) for line in dropped} == {
            (GUEST, Disposition.RELEASE)
        }

    def test_bytes_beyond_the_limit_of_the_cart_are_dropped(self) -> None:
        target = a_cart(USER, "a")
        assert target.cart is not None
        limits = replace(LIMITS, max_cart_bytes=target.cart.byte_size + 700)
        change = merge(target, a_cart(GUEST, "b", "c"), limits)
        assert adjustments(change) == [(AdjustmentType.DROPPED, "c", 0, "bytes_per_cart")]
        assert change.cart.byte_size <= limits.max_cart_bytes

    @pytest.mark.parametrize(
        ("limits", "expected"),
        [
            ({"max_units_per_user": 103}, [(AdjustmentType.QUANTITY_CLAMPED, "b", 1, "units_per_user"),
                                           (AdjustmentType.DROPPED, "c", 0, "units_per_user")]),
            ({"max_items_per_user": 51}, [(AdjustmentType.DROPPED, "b", 0, "items_per_user"),
                                          (AdjustmentType.DROPPED, "c", 0, "items_per_user")]),
            ({"max_items_per_user": 52}, [(AdjustmentType.DROPPED, "c", 0, "items_per_user")]),
        ],
    )  # fmt: skip
    def test_the_limits_of_the_user_clamp(self, limits: Any, expected: Any) -> None:
        target = a_cart(USER, "a")._replace(rest_of_user=UserTotals(0, 5, 50, 100))
        change = merge(target, a_cart(GUEST, "b", "c"), replace(LIMITS, **limits))
        assert adjustments(change) == expected

    def test_a_user_without_room_for_another_cart_gets_an_empty_one(self) -> None:
        target = NO_TARGET._replace(rest_of_user=UserTotals(cart_count=5))
        limits = replace(LIMITS, max_carts_per_user=5)
        change = merge(target, a_cart(GUEST, "b"), limits)
        assert adjustments(change) == [(AdjustmentType.DROPPED, "b", 0, "carts_per_user")]
        assert change.lines == ()

    def test_the_bytes_of_the_user_clamp_and_include_the_reservations_that_move(self) -> None:
        target, source = reserved(a_cart(USER, "a", SKU)), reserved(a_cart(GUEST, SKU, "b"))
        assert target.cart is not None
        # Room for one row of a reservation, but not for an item.
        most = target.cart.byte_size + RESERVATION_BYTES
        change = merge(target, source, replace(LIMITS, max_user_bytes=most))
        assert adjustments(change) == [(AdjustmentType.DROPPED, "b", 0, "bytes_per_user")]
        change = merge(target, source, replace(LIMITS, max_user_bytes=most - 1))
        assert adjustments(change) == [
            (AdjustmentType.QUANTITY_CLAMPED, SKU, 2, "bytes_per_user"),
            (AdjustmentType.DROPPED, "b", 0, "bytes_per_user"),
        ]
        assert {row.disposition for row in rows_of(change).values() if row.cart == GUEST} == {Disposition.RELEASE}

    def test_a_merge_within_one_user_counts_nothing_twice(self) -> None:
        other = cart_key(USER.user, "other")
        target, source = a_cart(USER, "a"), a_cart(other, "b", "a")
        everything = totals_of(target.cart).plus(totals_of(source.cart))
        limits = replace(
            LIMITS, max_carts_per_user=2, max_items_per_user=3, max_units_per_user=6,
            max_user_bytes=everything.stored_bytes + 3 * RESERVATION_BYTES + 9,
        )  # fmt: skip
        rest = UserTotals(3 * RESERVATION_BYTES)
        target = target._replace(rest_of_user=rest.plus(totals_of(source.cart)))
        source = source._replace(rest_of_user=rest.plus(totals_of(target.cart)))
        change = merge(target, source, limits)
        assert change.adjustments == ()
        assert {line.item.sku: line.item.quantity for line in change.lines} == {"a": 4, "b": 2}

    def test_a_subtotal_of_more_than_64_bits_clamps(self) -> None:
        price = Money("EUR", 10**12)
        limits = replace(LIMITS, max_quantity_per_item=10**9)
        target, source = a_cart(USER, "a", price=price), a_cart(GUEST, "b", price=price)
        assert target.cart is not None
        nearly = target.cart._replace(subtotal=2**63 - 1 - 10**12)
        change = merge(target._replace(cart=nearly), source, limits)
        assert adjustments(change) == [(AdjustmentType.QUANTITY_CLAMPED, "b", 1, "subtotal")]


class TestBesideARelease:
    """The target still releases a reservation of the sku, so that may be why another one is refused."""

    @pytest.mark.parametrize("state", [lambda cart: cart, reserved])
    def test_an_item_that_moves_asks_once_more_if_it_is_not_decided_yet(self, state: Any) -> None:
        target, source = a_cart(USER)._replace(releasing=frozenset({SKU})), state(a_cart(GUEST, SKU))
        (line,) = merge(target, source).lines
        (before,) = source.lines.values()
        assert line.reservation == before.reservation._replace(cart=USER, supersedes=not before.reservation.settled)

    @pytest.mark.parametrize("which", ["target", "source"])
    def test_an_item_that_both_have_asks_once_more(self, which: str) -> None:
        carts = {"target": a_cart(USER, SKU), "source": a_cart(GUEST, SKU)}
        carts = {name: reserved(cart) if name == which else refused(cart) for name, cart in carts.items()}
        change = merge(carts["target"]._replace(releasing=frozenset({SKU})), carts["source"])
        (line,), (other,) = change.lines, change.itemless
        (kept,) = carts[which].lines.values()
        assert line.reservation.reservation_id == line.item.reservation_id == kept.item.reservation_id
        assert (line.reservation.quantity, line.reservation.supersedes) == (4, True)
        assert (other.disposition, rows_of(change)[line.item.reservation_id]) == (
            Disposition.RELEASE, line.reservation,
        )  # fmt: skip


class TestCompanions:
    """Reservations of the source that belong to no item, but on which one of its items depends."""

    def test_a_waiting_reservation_moves_with_the_release_that_it_waits_for(self) -> None:
        source = with_row(a_cart(GUEST, SKU), lambda row: row._replace(waiting=True, due_time=None))
        (line,) = source.lines.values()
        old = release(line.reservation._replace(reservation_id="old", waiting=False), NOW)
        change = merge(NO_TARGET, source._replace(itemless=(old,), releasing=frozenset({SKU})))
        assert (change.lines[0].reservation.waiting, change.lines[0].reservation.due_time) == (True, None)
        assert [(row.reservation_id, row.cart, row.releasing) for row in change.itemless] == [("old", USER, True)]

    def test_a_release_that_no_item_waits_for_stays_with_the_source(self) -> None:
        source = a_cart(GUEST, SKU)
        (line,) = source.lines.values()
        old = release(line.reservation._replace(reservation_id="old"), NOW)
        assert merge(NO_TARGET, source._replace(itemless=(old,))).itemless == ()

    def test_superseded_reservations_follow_the_one_that_has_taken_over_along_a_chain(self) -> None:
        source = with_row(a_cart(GUEST, SKU), lambda row: row._replace(supersedes=True))
        (line,) = source.lines.values()
        first = line.reservation._replace(reservation_id="first", superseded_by=line.reservation.reservation_id)
        second = line.reservation._replace(reservation_id="second", superseded_by="first")
        stray = line.reservation._replace(reservation_id="stray", superseded_by="of another cart")
        change = merge(NO_TARGET, source._replace(itemless=(first, second, stray)))
        assert [(row.reservation_id, row.cart) for row in change.itemless] == [("first", USER), ("second", USER)]

    def test_superseded_reservations_of_a_dropped_item_stay_where_its_release_finds_them(self) -> None:
        source = with_row(a_cart(GUEST, SKU), lambda row: row._replace(supersedes=True))
        (line,) = source.lines.values()
        first = line.reservation._replace(reservation_id="first", superseded_by=line.reservation.reservation_id)
        change = merge(NO_TARGET, source._replace(itemless=(first,)), replace(LIMITS, max_items_per_cart=0))
        assert change.itemless == ()
        assert (change.others[0].removed[0].reservation.supersedes, change.others[0].removed[0].item.cart) == (
            True, GUEST,
        )  # fmt: skip
