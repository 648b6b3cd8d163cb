"""The reads of checkouts. Each is one statement, so it sees one moment.

The items of an OPEN checkout are those of its cart, which is frozen. CompleteCheckout moves them to `checkout_items`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Select,
    Table,
    TextClause,
    and_,
    bindparam,
    case,
    exists,
    literal_column,
    or_,
    select,
    union_all,
)

from cart_grpc.carts.model import Checkout, CheckoutState, Line
from cart_grpc.names import CheckoutKey, UserKey
from cart_grpc.store.dialects import Dialect, built_once
from cart_grpc.store.engine import Engine
from cart_grpc.store.read.cart_json import parse_line
from cart_grpc.store.read.reader import Reader
from cart_grpc.store.rows import CHECKOUTS
from cart_grpc.store.schema import (
    checkout_items,
    checkouts,
    finished_checkouts,
    has_order,
    items,
    of_checkout,
    reservations,
    running,
)
from cart_grpc.store.statements import CART, RESERVATION

# JSON text does not contain it: control characters are escaped there.
_NEXT_LINE: Final = "\n"
_CHECKOUT: Final = ("slice", "user_id", "checkout_id")
_WIDTH: Final = len(checkouts.columns)
# The states of a checkout that has not ended. One partial index has these rows, another one has the others.
RUNNING: Final = frozenset({CheckoutState.OPEN, CheckoutState.COMPLETING, CheckoutState.FAILED})
EVERY_STATE: Final = frozenset(CheckoutState)


@dataclass(frozen=True, slots=True)
class CheckoutSummary:
    """A checkout without its items at one moment. `now` is the database's time.

    `reconciling`: the Reservation API has not answered for the latest intent of one of its reservations.
    """

    checkout: Checkout
    reconciling: bool
    now: int


@dataclass(frozen=True, slots=True)
class CheckoutSnapshot(CheckoutSummary):
    """A checkout with its items at one moment."""

    lines: Sequence[Line]


@dataclass(frozen=True, slots=True)
class CheckoutPage:
    """A requested page of one user's checkouts, the newest first.

    `order_reference` is "" for all. `after` is the (create_time, id) of the last checkout seen, None for the first
    page.
    """

    user: UserKey
    size: int
    states: frozenset[CheckoutState]
    order_reference: str
    after: tuple[int, str] | None


@dataclass(frozen=True, slots=True)
class OperatorCheckoutPage:
    """A requested page of all users' checkouts: first those that have been in their state for the longest.

    A checkout whose state changes moves to the end, so none is missed. `after` is the (update_time, id) of the last
    checkout seen, None for the first page.
    """

    size: int
    states: frozenset[CheckoutState]
    min_age_us: int
    order_reference: str
    after: tuple[int, str] | None


class _Statements:
    def __init__(self, dialect: Dialect) -> None:
        now = dialect.now()
        this = and_(*(checkouts.c[name] == bindparam(name, type_=checkouts.c[name].type) for name in _CHECKOUT))
        lines = case(
            (checkouts.c.state == int(CheckoutState.OPEN), _lines(dialect, items, CART)),
            else_=_lines(dialect, checkout_items, _CHECKOUT),
        )
        self.one = _select(now).add_columns(lines.label("lines")).where(this)
        self.summary = _select(now).where(this)


_statements = built_once(_Statements)


class CheckoutReads:
    """The reads of checkouts of one store. Every method raises DatabaseUnavailable."""

    def __init__(self, engine: Engine, reader: Reader) -> None:
        self._reader = reader
        self._now = engine.dialect.now()
        self._statements = _statements(engine.dialect)

    async def find(self, key: CheckoutKey) -> CheckoutSnapshot | None:
        """Return the checkout with its items, or None if there is none or it was purged."""
        rows = await self._reader.fetch(self._statements.one, key._asdict(), key.slice)
        if not rows:
            return None
        [row] = rows
        summary = _summary(row)
        lines = [parse_line(text).line for text in row.lines.split(_NEXT_LINE)] if row.lines else []
        return CheckoutSnapshot(summary.checkout, summary.reconciling, summary.now, lines)

    async def find_summary(self, key: CheckoutKey) -> CheckoutSummary | None:
        """Return the checkout without its items, or None if there is none or it was purged."""
        rows = await self._reader.fetch(self._statements.summary, key._asdict(), key.slice)
        return _summary(rows[0]) if rows else None

    async def list_of_user(self, page: CheckoutPage) -> list[CheckoutSummary]:
        """Return one page of a user's checkouts, and the first of the next page if any."""
        statement = _select_page(page, self._now)
        return [_summary(row) for row in await self._reader.fetch(statement, {}, page.user.slice)]

    async def list_of_all(self, page: OperatorCheckoutPage) -> list[CheckoutSummary]:
        """Return one page of all users' checkouts, and the first of the next page if any."""
        statement = _select_operator_page(page, self._now)
        found = [_summary(row) for row in await self._reader.fetch_all(statement, {})]
        found.sort(key=lambda each: (each.checkout.update_time, each.checkout.key.checkout_id))
        return found[: page.size + 1]


def _summary(row: Any) -> CheckoutSummary:
    return CheckoutSummary(CHECKOUTS.to_value(row[:_WIDTH]), bool(row.reconciling), row.now)


def _select(now: ColumnElement[int]) -> Select[Any]:
    return select(checkouts, _is_reconciling().label("reconciling"), now.label("now"))


def _is_reconciling() -> ColumnElement[bool]:
    """Whether a reservation of the enclosing statement's checkout has no answer for its latest intent."""
    same = (reservations.c[name] == checkouts.c[name] for name in _CHECKOUT)
    unanswered = reservations.c.observed_revision < reservations.c.intent_revision
    return exists(select(literal_column("1")).where(*same, of_checkout, unanswered).correlate(checkouts))


def _lines(dialect: Dialect, table: Table, key: Sequence[str]) -> ColumnElement[str]:
    """The lines of the enclosing statement's checkout that are in `table`, for `parse_line`; NULL if there are none."""
    reservation, on = dialect.join_by_index(reservations, RESERVATION, table)
    columns = (table.c[column.name] for column in items.columns)
    line = dialect.json_array(*columns, *reservation.c, checkouts.c.currency_code, literal_column("0"))
    each = (
        select(line.label("line"))
        .select_from(table.join(reservation, on))
        .where(*(table.c[name] == checkouts.c[name] for name in key))
        .order_by(table.c.create_time, table.c.uid)
        .correlate(checkouts)
        .subquery("each_line")
    )
    return select(dialect.string_agg(each.c.line, _NEXT_LINE)).scalar_subquery()


def _select_page(page: CheckoutPage, now: ColumnElement[int]) -> Select[Any]:
    row = checkouts.c
    chosen = _select(now).where(row.slice == page.user.slice, row.user_id == page.user.user_id)
    chosen = chosen.where(row.state.in_(_numbers(page.states)))
    if page.order_reference:
        chosen = chosen.where(_has_order(page.order_reference))
    if page.after:
        time, checkout_id = page.after
        chosen = chosen.where(or_(row.create_time < time, and_(row.create_time == time, row.checkout_id < checkout_id)))
    return chosen.order_by(row.create_time.desc(), row.checkout_id.desc()).limit(page.size + 1)


def _select_operator_page(page: OperatorCheckoutPage, now: ColumnElement[int]) -> Select[Any]:
    row = checkouts.c
    if page.order_reference:
        few = _page_of(page, page.states, _has_order(page.order_reference), now).subquery("few")
    else:
        # Each part reads one partial index in its order, and no more rows than the page has.
        parts = [_page_of(page, {state}, running, now) for state in sorted(page.states & RUNNING)]
        if page.states - RUNNING:
            parts.append(_page_of(page, page.states - RUNNING, finished_checkouts, now))
        few = union_all(*(select(part.subquery()) for part in parts)).subquery("few")
    # A join: for `(a, b) IN (SELECT ...)` SQLite searches an index by its first column only.
    chosen = _select(now).select_from(few.join(checkouts, and_(*(few.c[name] == row[name] for name in _CHECKOUT))))
    return chosen.order_by(row.update_time, row.checkout_id).limit(page.size + 1)


def _page_of(
    page: OperatorCheckoutPage,
    states: Collection[CheckoutState],
    condition: TextClause | ColumnElement[bool],
    now: ColumnElement[int],
) -> Select[Any]:
    """The keys of a page's checkouts that are in one of `states` and fulfil `condition`."""
    row = checkouts.c
    chosen = select(*(row[name] for name in _CHECKOUT)).where(row.state.in_(_numbers(states)), condition)
    if page.min_age_us:
        chosen = chosen.where(row.update_time <= now - page.min_age_us)
    if page.after:
        time, checkout_id = page.after
        # The first condition limits the search of the index.
        later = or_(row.update_time > time, row.checkout_id > checkout_id)
        chosen = chosen.where(row.update_time >= time, later)
    return chosen.order_by(row.update_time, row.checkout_id).limit(page.size + 1)


def _has_order(order_reference: str) -> ColumnElement[bool]:
    """Whether a checkout has this order_reference. It repeats the condition of the partial index."""
    return and_(has_order, checkouts.c.order_reference == order_reference)


def _numbers(states: Collection[CheckoutState]) -> list[int]:
    return sorted(int(state) for state in states)
