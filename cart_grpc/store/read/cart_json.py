"""A cart with its lines as JSON texts, made by the database.

Fetching 20 items column by column means 1,100 values and takes 5 times as long as finding the rows. One text is one
value. The text contains everything that a reply shows, so equal texts have equal replies, and encoded replies can be
cached by their text.

Making the text is the main cost of a read. A reader that has cached the cart sends its validator (see
`cache_validator`), and the database answers "not modified" instead of the text.
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
    func,
    literal_column,
    or_,
    select,
)

from cart_grpc.carts.model import Cart, Line
from cart_grpc.carts.progress import HOLD_MARGIN_US
from cart_grpc.names import CartKey
from cart_grpc.protocol.reservation import Disposition
from cart_grpc.store.dialects import Dialect
from cart_grpc.store.read.cache_validator import NO_VALIDATOR, CacheValidator, reply_valid_until, reply_validator
from cart_grpc.store.rows import to_cart, to_item, to_reservation
from cart_grpc.store.schema import carts, items, reconciling, reservations
from cart_grpc.store.statements import CART, RESERVATION

# JSON text contains neither separator: control characters are escaped there.
_NEXT_LINE = "\n"
_NEXT_CART = "\x1e"
_NEXT_ID = ","
_NEXT_TIME = ","
_NO_TIMES = ","
_ITEM_WIDTH = len(items.columns)
_KEY_COLUMNS: Final = {
    **{name: carts.c[name].type for name in CART},
    "version": Text(),
    "since": BigInteger(),
    "until": BigInteger(),
}
# A cart that is filled and cleared while the Reservation API is down collects releases without bound. Reading all of
# them would make GetCart slower with every one.
MAX_RELEASING: Final = 1_000


class NotModified(Enum):
    """The answer to a read whose validator is still valid, instead of the cart."""

    NOT_MODIFIED = "="


NOT_MODIFIED: Final = NotModified.NOT_MODIFIED


class CartJson(NamedTuple):
    """A cart at one moment: `head` for `parse_head`, `lines` in the order in which they were added for `parse_line`.

    `now` is the database's time in microseconds. `version` changes with the cart's revision. The next read of the same
    cart sends `validator`. It is None if the cart may change at once. `next_lapse` is the next time from which a hold
    is not shown as reserved any more, None if there is no hold.
    """

    head: str
    lines: Sequence[str]
    now: int
    version: str = ""
    validator: CacheValidator | None = None
    next_lapse: int | None = None


# None: there has never been a cart under the key.
Found = CartJson | NotModified | None


class Head(NamedTuple):
    """A cart without its lines.

    `releasing` has the item ids of the reservations whose release is not confirmed, or that are superseded and still to
    be released: at most MAX_RELEASING of them.
    """

    cart: Cart
    releasing: Sequence[str]


class TimedLine(NamedTuple):
    """A line with the currency of its price.

    `since` is the time of the hold's lapse if that has passed, else 0. `progress(line, since)` equals `progress(line,
    now)`, so the text does not change with the time.
    """

    line: Line
    currency_code: str
    since: int


def parse_head(head: str) -> Head:
    *row, item_ids = json.loads(head)
    return Head(to_cart(row), item_ids.split(_NEXT_ID) if item_ids else ())


def parse_line(line: str) -> TimedLine:
    *row, currency_code, since = json.loads(line)
    item, reservation = to_item(row[:_ITEM_WIDTH]), to_reservation(row[_ITEM_WIDTH:])
    return TimedLine(Line(item, reservation), currency_code, since)


def bind_carts(dialect: Dialect, wanted: Sequence[tuple[CartKey, CacheValidator | None]]) -> Mapping[str, Any]:
    """The parameters of `select_carts`: keys, each with the validator of the text that the reader has, if any."""
    rows = [(*key, *(validator or NO_VALIDATOR)) for key, validator in wanted]
    return dialect.bind_keys(tuple(_KEY_COLUMNS), rows)


def parse_carts(row: Sequence[Any]) -> list[Found]:
    """The carts in the row of `select_carts`, in the order of its keys."""
    texts, now = row
    return [_parse_cart(text, now) for text in texts.split(_NEXT_CART)]


def _parse_cart(text: str, now: int) -> Found:
    if text == NOT_MODIFIED.value:
        return NOT_MODIFIED
    if not text:
        return None
    version, head, *rest = text.split(_NEXT_LINE)
    times, *lines = rest or (_NO_TIMES,)
    until, next_lapse = (int(time) if time else None for time in times.split(_NEXT_TIME))
    return CartJson(head, lines, now, version, reply_validator(version, until, now), next_lapse)


def select_carts(dialect: Dialect) -> Select[str, int]:
    """Any number of carts in one row: a thread that fetches it waits for the interpreter lock once, not once per row.

    Takes the parameters of `bind_carts`.
    """
    now = dialect.now()
    keys = dialect.numbered_keys(_KEY_COLUMNS)
    cart, on = dialect.join_by_index(carts, CART, keys)
    # The uid is part of the version: after an ended cart is purged, a new cart's revisions begin at 1 again.
    version = cart.c.uid + ":" + cast(cart.c.revision, Text)
    head = dialect.json_array(*cart.c, _releasing(dialect, cart))
    text = version + _NEXT_LINE + head + func.coalesce(_NEXT_LINE + _lines(dialect, cart, now), "")
    not_modified = and_(keys.c.version == version, keys.c.since <= now, keys.c.until > now)
    each = (
        select(case((cart.c.uid.is_(None), ""), (not_modified, NOT_MODIFIED.value), else_=text).label("text"))
        .select_from(keys.outerjoin(cart, on))
        .order_by(keys.c.number)
        .subquery("each_cart")
    )
    return select(dialect.string_agg(each.c.text, _NEXT_CART), now)


def _lines(dialect: Dialect, cart: FromClause, now: ColumnElement[int]) -> ColumnElement[str]:
    """The lines of the enclosing statement's `cart`, NULL if it has none.

    The first line of the text is the smallest `reply_valid_until` and the next lapse of a hold, each empty if no item
    has one.
    """
    reservation, on = dialect.join_by_index(reservations, RESERVATION, items)
    lapse = reservation.c.expire_time - HOLD_MARGIN_US
    line = dialect.json_array(*items.c, *reservation.c, cart.c.currency_code, case((lapse <= now, lapse), else_=0))
    same_cart = (items.c[name] == cart.c[name] for name in CART)
    each = (
        select(
            line.label("line"),
            reply_valid_until(reservation).label("until"),
            case((lapse > now, lapse)).label("next_lapse"),
        )
        .select_from(items.outerjoin(reservation, on))
        .where(*same_cart)
        .order_by(items.c.create_time, items.c.uid)
        .correlate(cart)
        .subquery("each_line")
    )
    until, next_lapse = (func.coalesce(cast(func.min(time), Text), "") for time in (each.c.until, each.c.next_lapse))
    first = until + _NEXT_TIME + next_lapse
    return select(first + _NEXT_LINE + dialect.string_agg(each.c.line, _NEXT_LINE)).scalar_subquery()


def _releasing(dialect: Dialect, cart: FromClause) -> ColumnElement[str]:
    """The item ids of the enclosing statement's `cart` whose release is not confirmed, NULL if there are none."""
    same_cart = (reservations.c[name] == cart.c[name] for name in CART)
    released = reservations.c.disposition == int(Disposition.RELEASE)
    each = (
        select(reservations.c.item_id)
        .where(*same_cart, reconciling, or_(released, reservations.c.superseded_by != literal_column("''")))
        .limit(MAX_RELEASING)
        .correlate(cart)
        .subquery("each_release")
    )
    return select(dialect.string_agg(each.c.item_id, _NEXT_ID)).scalar_subquery()
