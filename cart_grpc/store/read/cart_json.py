"""A cart with all that is in it as lines of text, made by the database in one piece.

Read column by column, a cart of 20 items is 1,100 values to fetch, and takes 5 times as long as finding its rows. As
text it is one value, and since that says all that a reply is made from, the reply to a text seen before is known.

To make that text is what such a read costs, so whoever has one already shows its stamp, as with HTTP's If-None-Match.
A stamp is enough because what nobody has claimed changes with the cart's revision only (`commands.apply_transition`), and can
be claimed only once it is due.
"""

import json
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    Text,
    and_,
    case,
    cast,
    exists,
    func,
    literal_column,
    or_,
    select,
)

from cart_grpc.carts.model import Cart, Line
from cart_grpc.carts.progress import HOLD_MARGIN_US
from cart_grpc.names import CartKey
from cart_grpc.store.dialects import Dialect
from cart_grpc.store.rows import to_cart, to_item, to_reservation
from cart_grpc.store.schema import carts, items, reconciling, reservations
from cart_grpc.store.statements import CART, RESERVATION

# JSON has neither of them inside: control characters are escaped there.
_NEXT_LINE = "\n"
_NEXT_CART = "\x1e"
_ITEM_WIDTH = len(items.columns)
_WANTED: Final = {**{name: carts.c[name].type for name in CART}, "version": Text(), "until": BigInteger()}
# Whoever changes a row by hand does not raise revisions: after a minute that shows, too.
STAMP_AGE: Final = 60_000_000


class CacheValidator(NamedTuple):
    """Tells whether a cart is still as it was read: its `version` is the same, and it is not `until` yet.

    From `until` on, in microseconds of the database's time, something of it may change with the version as it is.
    """

    version: str
    until: int


_NO_STAMP: Final = CacheValidator("", 0)


class Unchanged(Enum):
    """Read of a cart that is as the stamp says, instead of its text."""

    UNCHANGED = "="


UNCHANGED: Final = Unchanged.UNCHANGED


class CartJson(NamedTuple):
    """A cart at one moment: `head` for `read_head`, `lines` in the order in which they were added for `read_line`.

    `now` is the database's time. Equal texts stand for equal things, whenever they are read. There is a `stamp` where
    the cart can be told from what it will be.
    """

    head: str
    lines: Sequence[str]
    now: int
    stamp: CacheValidator | None = None


Found = CartJson | Unchanged | None


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


def bind_carts(dialect: Dialect, wanted: Sequence[tuple[CartKey, CacheValidator | None]]) -> Mapping[str, Any]:
    """The parameters of `select_carts`: keys, each with the stamp of what is known of it already."""
    return dialect.bind_keys(tuple(_WANTED), [(*key, *(stamp or _NO_STAMP)) for key, stamp in wanted])


def read_carts(row: Sequence[Any]) -> list[Found]:
    """What `select_carts` found, in the order of its keys: None is a cart that was never made."""
    texts, now = row
    return [_read_cart(text, now) for text in texts.split(_NEXT_CART)]


def _read_cart(text: str, now: int) -> Found:
    if text == UNCHANGED.value:
        return UNCHANGED
    if not text:
        return None
    version, head, *rest = text.split(_NEXT_LINE)
    until, *lines = rest or ("",)
    latest = now + STAMP_AGE
    stamp = CacheValidator(version, min(latest, int(until or latest)))
    return CartJson(head, lines, now, stamp if stamp.until > now else None)


def select_carts(dialect: Dialect) -> Select[str, int]:
    """One row for any number of carts, so that a thread that reads it waits for the interpreter once, not row by row.

    Takes `bind_carts`.
    """
    now = dialect.now()
    keys = dialect.numbered_keys(_WANTED)
    cart, on = dialect.join_by_index(carts, CART, keys)
    # With the uid: an ended cart is purged, and the next one's revisions begin anew.
    version = cart.c.uid + ":" + cast(cart.c.revision, Text)
    head = dialect.json_array(*cart.c, is_reconciling(dialect, cart))
    text = version + _NEXT_LINE + head + func.coalesce(_NEXT_LINE + _lines(dialect, cart, now), "")
    unchanged = and_(keys.c.version == version, keys.c.until > now)
    each = (
        select(case((cart.c.uid.is_(None), ""), (unchanged, UNCHANGED.value), else_=text).label("text"))
        .select_from(keys.outerjoin(cart, on))
        .order_by(keys.c.number)
        .subquery("each_cart")
    )
    return select(dialect.string_agg(each.c.text, _NEXT_CART), now)


def _lines(dialect: Dialect, cart: FromClause, now: ColumnElement[int]) -> ColumnElement[str]:
    """The lines of the `cart` in the statement around this one, NULL where it has none.

    Before them, the first time at which one of them may change with the cart's revision as it is, if any.
    """
    reservation, on = dialect.join_by_index(reservations, RESERVATION, items)
    lapse, due_time = reservation.c.expire_time - HOLD_MARGIN_US, reservation.c.due_time
    until = case(
        (reservation.c.lease_expire_time.is_not(None), 0),
        (or_(lapse.is_(None), due_time < lapse), due_time),
        else_=lapse,
    )
    line = dialect.json_array(*items.c, *reservation.c, cart.c.currency_code, case((lapse <= now, lapse), else_=0))
    same_cart = (items.c[name] == cart.c[name] for name in CART)
    each = (
        select(line.label("line"), until.label("until"))
        .select_from(items.outerjoin(reservation, on))
        .where(*same_cart)
        .order_by(items.c.create_time, items.c.uid)
        .correlate(cart)
        .subquery("each_line")
    )
    first = func.coalesce(cast(func.min(each.c.until), Text), "")
    return select(first + _NEXT_LINE + dialect.string_agg(each.c.line, _NEXT_LINE)).scalar_subquery()


def is_reconciling(dialect: Dialect, cart: FromClause = carts) -> ColumnElement[bool]:
    """Whether anything of the `cart` in the statement around this is reconciling."""
    same_cart = (reservations.c[name] == cart.c[name] for name in CART)
    return exists(dialect.fenced(select(literal_column("1")).where(*same_cart, reconciling).correlate(cart)))
