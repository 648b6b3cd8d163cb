"""Makes the JSON that the database would make of a cart."""

import json
from collections.abc import Sequence

from cart_grpc.carts.model import Cart, Line
from cart_grpc.carts.progress import HOLD_MARGIN_US
from cart_grpc.store.read.cart_json import CartJson
from cart_grpc.store.rows import cart_row, item_row, reservation_row


def make_cart_json(cart: Cart, lines: Sequence[Line], now: int, *, releasing: Sequence[str] = ()) -> CartJson:
    """The JSON of `cart` at `now`; `releasing` has the item ids whose release is not confirmed."""
    head = json.dumps([*cart_row(cart), ",".join(releasing) or None])
    return CartJson(head, [_line_json(cart, line, now) for line in lines], now)


def _line_json(cart: Cart, line: Line, now: int) -> str:
    columns = [*item_row(line.item), *reservation_row(line.reservation)]
    expire_time = line.reservation.expire_time
    is_lapsed = expire_time is not None and expire_time - HOLD_MARGIN_US <= now
    return json.dumps([*columns, cart.currency_code, (expire_time or 0) - HOLD_MARGIN_US if is_lapsed else 0])
