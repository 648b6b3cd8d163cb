"""Between rows and values, one pair of functions a table. A row's columns are in the order of its table's."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cart_grpc.carts.model import Cart, CartState, Item
from cart_grpc.names import CartKey
from cart_grpc.protocol.reservation import Disposition, Observed, Reservation

Row = Sequence[Any]

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
# An Enum that is called is ten times as slow.
_CART_STATES = {int(state): state for state in CartState}
_DISPOSITIONS = {int(disposition): disposition for disposition in Disposition}
_OBSERVED = {int(state): state for state in Observed}


def cart_row(cart: Cart) -> Row:
    return (
        *cart.key,
        cart.uid,
        int(cart.state),
        _pack(cart.labels),
        cart.currency_code,
        cart.ttl_us,
        cart.expire_time,
        *cart[6:],
    )


def to_cart(row: Row) -> Cart:
    # expire_time, the ninth, follows from the others.
    return Cart(CartKey(*row[:3]), row[3], _CART_STATES[row[4]], _unpack(row[5]), row[6], row[7], *row[9:])


def item_row(item: Item) -> Row:
    key, *rest = item
    return (*key, *rest[:3], _pack(item.options), *rest[4:6], _pack(item.labels), *rest[7:])


def to_item(row: Row) -> Item:
    slice_, user_id, cart_id, item_id, uid, sku, options, quantity, unit_price, labels, *rest = row
    cart = CartKey(slice_, user_id, cart_id)
    return Item(cart, item_id, uid, sku, _unpack(options), quantity, unit_price, _unpack(labels), *rest)


def reservation_row(reservation: Reservation) -> Row:
    reservation_id, cart, item_id, sku, quantity, disposition, ttl_us, *rest = reservation
    rest[4] = int(reservation.state)
    return (
        cart.slice,
        reservation_id,
        cart.user_id,
        cart.cart_id,
        item_id,
        sku,
        quantity,
        int(disposition),
        ttl_us,
        *rest,
    )


def to_reservation(row: Row) -> Reservation:
    slice_, reservation_id, user_id, cart_id, item_id, sku, quantity, disposition, ttl_us, *rest = row
    rest[4], rest[10] = _OBSERVED[rest[4]], bool(rest[10])
    cart = CartKey(slice_, user_id, cart_id)
    return Reservation(reservation_id, cart, item_id, sku, quantity, _DISPOSITIONS[disposition], ttl_us, *rest)


def _pack(entries: Mapping[str, str]) -> str:
    return _ENCODER.encode(dict(entries)) if entries else "{}"


def _unpack(text: str) -> Mapping[str, str]:
    entries: dict[str, str] = {} if text == "{}" else json.loads(text)
    return entries
