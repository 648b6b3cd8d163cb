"""Carts as the database would write them down."""

import json
from collections.abc import Sequence

from cart_grpc.carts.model import Cart, Line
from cart_grpc.carts.progress import HOLD_MARGIN_US
from cart_grpc.store.read.cart_json import CartJson
from cart_grpc.store.rows import cart_row, item_row, reservation_row


def cart_json(cart: Cart, lines: Sequence[Line], now: int, *, reconciling: bool) -> CartJson:
    """What is read of `cart` at `now`."""
    head = json.dumps([*cart_row(cart), reconciling])
    return CartJson(head, [_line_text(cart, line, now) for line in lines], now)


def _line_text(cart: Cart, line: Line, now: int) -> str:
    columns = [*item_row(line.item), *reservation_row(line.reservation)]
    expire_time = line.reservation.expire_time
    lapsed = expire_time is not None and expire_time - HOLD_MARGIN_US <= now
    return json.dumps([*columns, cart.currency_code, (expire_time or 0) - HOLD_MARGIN_US if lapsed else 0])
