"""A cart with all that is in it as lines of text, made by the database in one piece.

Read column by column, a cart of 20 items is 1,100 values to fetch, and takes 5 times as long as finding its rows. As
text it is one value, and since that says all that a reply is made from, the reply to a text seen before is known.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, FromClause, Select, case, exists, func, literal_column, select

from cart_grpc.carts.model import HOLD_MARGIN, Cart, Line
from cart_grpc.store.dialects import Dialect
from cart_grpc.store.rows import to_cart, to_item, to_reservation
from cart_grpc.store.schema import carts, items, reconciling, reservations
from cart_grpc.store.statements import CART, RESERVATION

# JSON has neither of them inside: control characters are escaped there.
_NEXT_LINE = "\n"
_NEXT_CART = "\x1e"
_ITEM_WIDTH = len(items.columns)


class CartText(NamedTuple):
    """A cart at one moment: `head` for `read_head`, `lines` in the order in which they were added for `read_line`.

    `now` is the database's time. Equal texts stand for equal things, whenever they are read.
    """

    head: str
    lines: Sequence[str]
    now: int


class Head(NamedTuple):
    """A cart without its lines, and whether anything of it is reconciling."""

    cart: Cart
    reconciling: bool


class TimedLine(NamedTuple):
    """A line, the currency of its price, and a time: what `progress` shows at `since` is what it shows now."""

    line: Line
    currency_code: str
    since: int


def read_head(head: str) -> Head:
    *row, is_reconciling = json.loads(head)
    return Head(to_cart(row), bool(is_reconciling))


def read_line(line: str) -> TimedLine:
    *row, currency_code, since = json.loads(line)
    item, reservation = to_item(row[:_ITEM_WIDTH]), to_reservation(row[_ITEM_WIDTH:])
    return TimedLine(Line(item, reservation), currency_code, since)


def read_carts(row: Sequence[Any]) -> list[CartText | None]:
    """The carts in what `select_carts` found, in the order of its keys, None for a cart that was never made."""
    texts, now = row
    return [_read_cart(text, now) for text in texts.split(_NEXT_CART)]


def _read_cart(text: str, now: int) -> CartText | None:
    head, *lines = text.split(_NEXT_LINE)
    return CartText(head, lines, now) if head else None


def select_carts(dialect: Dialect) -> Select[str, int]:
    """One row for any number of carts, so that a thread that reads it waits for the interpreter once, not row by row.

    Takes `dialect.bind_keys`.
    """
    now = dialect.now()
    keys = dialect.numbered_keys(carts, CART)
    cart, on = dialect.lookup(carts, CART, keys)
    head = dialect.json_array(*cart.c, is_reconciling(dialect, cart))
    text = head + func.coalesce(_NEXT_LINE + _lines(dialect, cart, now), "")
    each = (
        select(case((cart.c.uid.is_not(None), text), else_="").label("text"))
        .select_from(keys.outerjoin(cart, on))
        .order_by(keys.c.number)
        .subquery("each_cart")
    )
    return select(dialect.joined(each.c.text, _NEXT_CART), now)


def _lines(dialect: Dialect, cart: FromClause, now: ColumnElement[int]) -> ColumnElement[str]:
    """The lines of the `cart` in the statement around this one, NULL where it has none."""
    reservation, on = dialect.lookup(reservations, RESERVATION, items)
    lapse = reservation.c.expire_time - HOLD_MARGIN
    line = dialect.json_array(*items.c, *reservation.c, cart.c.currency_code, case((lapse <= now, lapse), else_=0))
    same_cart = (items.c[name] == cart.c[name] for name in CART)
    each = (
        select(line.label("line"))
        .select_from(items.outerjoin(reservation, on))
        .where(*same_cart)
        .order_by(items.c.create_time, items.c.uid)
        .correlate(cart)
        .subquery("each_line")
    )
    return select(dialect.joined(each.c.line, _NEXT_LINE)).scalar_subquery()


def is_reconciling(dialect: Dialect, cart: FromClause = carts) -> ColumnElement[bool]:
    """Whether anything of the `cart` in the statement around this is reconciling."""
    same_cart = (reservations.c[name] == cart.c[name] for name in CART)
    return exists(dialect.by_index(select(literal_column("1")).where(*same_cart, reconciling).correlate(cart)))
