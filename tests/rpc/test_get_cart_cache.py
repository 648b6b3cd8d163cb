"""A GetCart reply made of cached parts equals a reply that is encoded as one message."""

from collections.abc import Sequence
from typing import Any

from cartgrpc.v1 import cart_pb2, cart_service_pb2
from hypothesis import given
from hypothesis import strategies as st

from cart_grpc.carts.model import Cart, CartState, Item, Line
from cart_grpc.carts.progress import HOLD_MARGIN_US
from cart_grpc.names import cart_key, user_key
from cart_grpc.protocol.reservation import Disposition, Observed, Reservation
from cart_grpc.rpc import get_cart_cache
from cart_grpc.rpc.messages import cart_message
from tests.store.cart_json import make_cart_json

NOW = 1_800_000_000_000_000
KEY = cart_key(user_key("alice"), "default")
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20)
labels = st.dictionaries(texts, texts, max_size=3)
counts = st.integers(0, 1_000)
times = st.integers(0, NOW)
# Around now, and around the end of a hold.
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
    ttl_us=counts,
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
    set_aside_reason=texts,
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
whole_carts = st.tuples(
    carts, st.lists(st.builds(Line, items, reservations), max_size=4), st.lists(st.sampled_from("ab"), max_size=2)
)


def reply(cart: Cart, lines: list[Line], now: int, releasing: Sequence[str] = ()) -> cart_service_pb2.GetCartResponse:
    data = get_cart_cache.encode_get_cart(make_cart_json(cart, lines, now, releasing=releasing))
    return cart_service_pb2.GetCartResponse.FromString(data)


@given(whole_carts, st.lists(st.integers(-20, 20).map(lambda near: NOW + near), min_size=1, max_size=4))
def test_a_reply_made_of_cached_parts_equals_one_encoded_as_a_whole_at_any_time(
    whole: tuple[Cart, list[Line], list[str]], moments: list[int]
) -> None:
    cart, lines, releasing = whole
    for now in moments:
        expected = cart_message(cart, lines, now, reconciling=bool(releasing))
        assert reply(cart, lines, now, releasing).cart == expected


def held(**changes: Any) -> Line:
    """An item whose hold ends a minute from now."""
    item = Item(KEY, "0" * 32, "u", "beans", {}, 2, 100, {}, "r", NOW, NOW)
    row = Reservation("r", KEY, "0" * 32, "beans", 2, Disposition.HOLD, 60, 1, 1, 2, NOW)
    observed = row._replace(
        state=Observed.HELD, granted_quantity=2, expire_time=NOW + 60_000_000, observed_revision=1, **changes
    )
    return Line(item, observed)


CART = Cart(KEY, "u" * 8, CartState.ACTIVE, {}, "EUR", False, None, 1, 1, 2, 200, 900, 1, 1, NOW, NOW)


def test_a_hold_shows_as_expired_after_its_end_and_as_reserved_again_if_the_clock_is_set_back() -> None:
    end = NOW + 60_000_000 - HOLD_MARGIN_US
    moments = (NOW, end - 1, end, end + 9, NOW)
    states = [reply(CART, [held()], now).cart.items[0].reservation.state for now in moments]
    reserved, expired = cart_pb2.Reservation.STATE_RESERVED, cart_pb2.Reservation.STATE_EXPIRED
    assert states == [reserved, reserved, expired, expired, reserved]


def test_lines_with_different_contents_have_different_encodings() -> None:
    for attempt in (1, 2, 1):
        assert reply(CART, [held(attempt_count=attempt)], NOW).cart.items[0].reservation.attempt_count == attempt
    for currency in ("EUR", "JPY"):
        shown = reply(CART._replace(currency_code=currency), [held()], NOW).cart
        assert (shown.currency_code, shown.items[0].unit_price.currency_code) == (currency, currency)


def test_an_unchanged_line_is_encoded_once_and_a_long_line_is_not_cached() -> None:
    get_cart_cache._cached_line.cache_clear()
    long = held(last_error="x" * get_cart_cache._LONGEST_BYTES)
    for _ in range(3):
        assert len(reply(CART, [held(), held(attempt_count=1), long], NOW).cart.items) == 3
    seen = get_cart_cache._cached_line.cache_info()
    assert (seen.misses, seen.hits, seen.currsize) == (2, 4, 2)
