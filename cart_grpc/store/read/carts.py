"""What can be read. Each read is one statement, so it sees one moment, on both databases."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Row,
    Select,
    Text,
    TextClause,
    and_,
    bindparam,
    case,
    false,
    or_,
    select,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from cart_grpc.carts.model import Cart, CartState, Line
from cart_grpc.names import CartKey, UserKey
from cart_grpc.protocol.lanes import HOLD_LANE, RELEASE_LANE, Lane
from cart_grpc.protocol.reservation import Disposition
from cart_grpc.store.dialects import Dialect
from cart_grpc.store.engine import Engine
from cart_grpc.store.failures import translate_failures
from cart_grpc.store.prepared import Prepared
from cart_grpc.store.read.cart_json import CacheValidator, CartJson, Found, is_reconciling, read_head, read_line
from cart_grpc.store.read.grouped_reads import GroupRead
from cart_grpc.store.rows import to_cart
from cart_grpc.store.schema import carts, due, due_release, expiring, is_not_paused, reconciling, reservations


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A cart at one moment. `lines` are in the order in which they were added; `now` is the database's time."""

    cart: Cart
    lines: Sequence[Line]
    reconciling: bool
    now: int


@dataclass(frozen=True, slots=True)
class Page:
    """A page of carts asked for: `after` is the last cart's (order value, cart id), None on the first page."""

    user: UserKey
    size: int
    states: frozenset[CartState]
    order_by: str
    descending: bool
    after: tuple[int | str, str] | None


class Reads:
    """The reading side of the store."""

    def __init__(self, engine: Engine, queue_size: int = 1_000) -> None:
        self._engine = engine
        self._reader: AsyncEngine = engine.reader
        self._now = engine.dialect.now()
        self._carts = GroupRead(engine, queue_size)
        self._releasing = _select_releasing()
        self._idle = (
            select(carts.c.slice, carts.c.user_id, carts.c.cart_id)
            .where(expiring, carts.c.expire_time <= self._now)
            .order_by(carts.c.expire_time)
            .limit(bindparam("most", type_=BigInteger))
        )
        # Asked for after every batch.
        lanes = ((HOLD_LANE, due), (RELEASE_LANE, due_release))
        self._due: dict[Lane, Prepared] = {lane: Prepared(_select_due(among, self._now)) for lane, among in lanes}

    async def close(self) -> None:
        """Wait until what is being read has been."""
        await self._carts.close()

    async def find_json(self, key: CartKey, stamp: CacheValidator | None = None) -> Found:
        """The cart under `key` as text, UNCHANGED where it is as `stamp` says, None where none was ever made.

        Raises Overloaded or DatabaseUnavailable.
        """
        return await self._carts.find(key, stamp)

    async def find_cart(self, key: CartKey) -> Snapshot | None:
        """The cart under `key`, whatever its state, or None where none was ever made. Raises as `find_json` does."""
        found = await self._carts.find(key)
        if not isinstance(found, CartJson):
            return None
        cart, reconciling = read_head(found.head)
        return Snapshot(cart, [read_line(line).line for line in found.lines], reconciling, found.now)

    async def list_carts(self, page: Page) -> list[Snapshot]:
        """One page of a user's carts, without lines, and one more cart if there is one. Raises DatabaseUnavailable."""
        rows = await fetch(self._reader, _select_page(page, self._engine.dialect, self._now), {})
        return [Snapshot(to_cart(row[: len(carts.columns)]), (), bool(row.reconciling), row.now) for row in rows]

    async def is_releasing(self, key: CartKey, item_id: str | None = None) -> bool:
        """Whether a release in the cart, or of one item, is not confirmed yet. Raises DatabaseUnavailable."""
        parameters = {"slice": key.slice, "user": key.user_id, "cart": key.cart_id, "item": item_id}
        return bool(await fetch(self._reader, self._releasing, parameters))

    async def find_idle_carts(self, limit: int) -> list[CartKey]:
        """Up to `limit` carts whose expire_time has passed, those first that have waited longest."""
        rows = await fetch(self._reader, self._idle, {"most": limit})
        return [CartKey(row.slice, row.user_id, row.cart_id) for row in rows]

    async def has_due(self, lane: Lane) -> bool:
        """Whether a claim of `lane` would find anything. Raises DatabaseUnavailable."""
        with translate_failures():
            return bool(await self._engine.read(lambda connection: self._due[lane].fetch(connection, {})))


async def fetch(reader: AsyncEngine, statement: Select[Any], parameters: dict[str, Any]) -> Sequence[Row[Any]]:
    """All rows that a read finds. Raises DatabaseUnavailable."""
    with translate_failures():
        async with reader.connect() as connection:
            rows: Sequence[Row[Any]] = (await connection.execute(statement, parameters)).all()
            return rows


def _select_due(among: TextClause, now: ColumnElement[int]) -> Select[int]:
    # The order makes the planner read the index from its beginning, where the first row tells. As a condition, a pause
    # would be looked at row by row by SQLite, through all that has become due meanwhile.
    most = select(case((is_not_paused, 1), else_=0)).scalar_subquery()
    due = select(reservations.c.due_time).where(among, reservations.c.due_time <= now)
    return due.order_by(reservations.c.due_time).limit(most)


def _select_releasing() -> Select[Any]:
    item = bindparam("item", type_=Text)
    return (
        select(reservations.c.reservation_id)
        .where(
            reservations.c.slice == bindparam("slice", type_=BigInteger),
            reservations.c.user_id == bindparam("user"),
            reservations.c.cart_id == bindparam("cart"),
            or_(item.is_(None), reservations.c.item_id == item),
            reservations.c.disposition == int(Disposition.RELEASE),
            reconciling,
        )
        .limit(1)
    )


def _select_page(page: Page, dialect: Dialect, now: ColumnElement[int]) -> Select[Any]:
    key: ColumnElement[Any] = carts.c.cart_id if page.order_by == "name" else carts.c[page.order_by]
    states = or_(false(), *(carts.c.state == int(state) for state in sorted(page.states)))
    statement = select(carts, is_reconciling(dialect).label("reconciling"), now.label("now")).where(
        carts.c.slice == page.user.slice, carts.c.user_id == page.user.user_id, states
    )
    if page.after:
        value, cart_id = page.after
        beyond = key < value if page.descending else key > value
        then = carts.c.cart_id < cart_id if page.descending else carts.c.cart_id > cart_id
        statement = statement.where(or_(beyond, and_(key == value, then)))
    order = (key, carts.c.cart_id)
    return statement.order_by(*(column.desc() if page.descending else column for column in order)).limit(page.size + 1)
