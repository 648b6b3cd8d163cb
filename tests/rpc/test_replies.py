"""GetCart's reply is put together from remembered parts: it says what one made in one piece would."""

from typing import Any

from cartgrpc.v1 import cart_pb2, cart_service_pb2
from hypothesis import given
from hypothesis import strategies as st

from cart_grpc.carts.model import Cart, CartState, Item, Line
from cart_grpc.carts.progress import HOLD_MARGIN_US
from cart_grpc.names import cart_key, user_key
from cart_grpc.protocol.reservation import Disposition, Observed, Reservation
from cart_grpc.rpc import replies
from cart_grpc.rpc.messages import cart_message
from tests.store.texts import cart_json

NOW = 1_800_000_000_000_000
KEY = cart_key(user_key("alice"), "default")
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20)
labels = st.dictionaries(texts, texts, max_size=3)
counts = st.integers(0, 1_000)
times = st.integers(0, NOW)
# Around now, and on the very edge of being shown.
expiries = (
    st.none() | st.integers(NOW - 10, NOW + 10) | st.integers(-10, 10).map(lambda near: NOW + HOLD_MARGIN_US + near)
)

items = st.builds(
    Item,
    cart=st.just(KEY),
    item_id=st.just("0" * 32),
    uid=texts,
    sku=texts,
    options=labels,
    quantity=st.integers(1, 1_000),
    unit_price=st.none() | counts,
    labels=labels,
    reservation_id=texts,
    create_time=times,
    update_time=times,
)
reservations = st.builds(
    Reservation,
    reservation_id=texts,
    cart=st.just(KEY),
    item_id=st.just("0" * 32),
    sku=texts,
    quantity=counts,
    disposition=st.sampled_from(Disposition),
    ttl=counts,
    revision=st.integers(1, 3),
    intent_revision=st.integers(1, 3),
    reserved_cap=counts,
    create_time=times,
    state=st.sampled_from(Observed),
    granted_quantity=counts,
    expire_time=expiries,
    observed_revision=st.integers(0, 3),
    reason=texts,
    seal_reason=texts,
    waiting=st.booleans(),
    due_time=st.none() | times,
    attempt_count=counts,
    lease_epoch=counts,
    lease_expire_time=st.none() | times,
    last_error=texts,
    finish_time=st.none() | times,
    uncertain_until=st.none() | times,
)
carts = st.builds(
    Cart,
    key=st.just(KEY),
    uid=st.uuids().map(str),
    state=st.sampled_from(CartState),
    labels=labels,
    currency_code=st.sampled_from(["", "EUR", "JPY"]),
    ttl_us=st.none() | counts,
    item_count=counts,
    total_quantity=counts,
    subtotal=counts,
    revision=st.integers(1, 1_000),
    etag_revision=st.integers(1, 1_000),
    create_time=times,
    update_time=times,
)
whole_carts = st.tuples(carts, st.lists(st.builds(Line, items, reservations), max_size=4), st.booleans())


def reply(cart: Cart, lines: list[Line], now: int, *, reconciling: bool = False) -> cart_service_pb2.GetCartResponse:
    data = replies.get_cart(cart_json(cart, lines, now, reconciling=reconciling))
    return cart_service_pb2.GetCartResponse.FromString(data)


@given(whole_carts, st.lists(st.integers(-20, 20).map(lambda near: NOW + near), min_size=1, max_size=4))
def test_a_reply_says_what_one_made_in_one_piece_would_whenever_it_is_asked_for(
    whole: tuple[Cart, list[Line], bool], moments: list[int]
) -> None:
    cart, lines, reconciling = whole
    for now in moments:
        expected = cart_message(cart, lines, now, reconciling=reconciling)
        assert reply(cart, lines, now, reconciling=reconciling).cart == expected


def held(**changes: Any) -> Line:
    """An item whose reservation holds until a minute from now."""
    item = Item(KEY, "0" * 32, "u", "beans", {}, 2, 100, {}, "r", NOW, NOW)
    row = Reservation("r", KEY, "0" * 32, "beans", 2, Disposition.HOLD, 60, 1, 1, 2, NOW)
    observed = row._replace(
        state=Observed.HELD, granted_quantity=2, expire_time=NOW + 60_000_000, observed_revision=1, **changes
    )
    return Line(item, observed)


CART = Cart(KEY, "u" * 8, CartState.ACTIVE, {}, "EUR", None, 1, 2, 200, 1, 1, NOW, NOW)


def test_what_is_remembered_of_a_hold_ends_with_it_and_comes_back_where_the_clock_does() -> None:
    end = NOW + 60_000_000 - HOLD_MARGIN_US
    moments = (NOW, end - 1, end, end + 9, NOW)
    states = [reply(CART, [held()], now).cart.items[0].reservation.state for now in moments]
    reserved, expired = cart_pb2.Reservation.STATE_RESERVED, cart_pb2.Reservation.STATE_EXPIRED
    assert states == [reserved, reserved, expired, expired, reserved]


def test_another_content_has_another_reply() -> None:
    for attempt in (1, 2, 1):
        assert reply(CART, [held(attempt_count=attempt)], NOW).cart.items[0].reservation.attempt_count == attempt
    for currency in ("EUR", "JPY"):
        shown = reply(CART._replace(currency_code=currency), [held()], NOW).cart
        assert (shown.currency_code, shown.items[0].unit_price.currency_code) == (currency, currency)


def test_what_has_not_changed_is_not_encoded_again_and_what_is_long_is_not_remembered() -> None:
    replies._remembered_line.cache_clear()
    long = held(last_error="x" * replies._LONGEST_BYTES)
    for _ in range(3):
        assert len(reply(CART, [held(), held(attempt_count=1), long], NOW).cart.items) == 3
    seen = replies._remembered_line.cache_info()
    assert (seen.misses, seen.hits, seen.currsize) == (2, 4, 2)
