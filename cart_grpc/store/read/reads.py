"""The reads of the callers and of the background loops. Each read is one statement, so it sees one moment.

Writes do not use this module: a batch reads its own rows (`WriteQueries.load`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Row,
    Select,
    TextClause,
    and_,
    bindparam,
    case,
    exists,
    false,
    literal_column,
    or_,
    select,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from cart_grpc.carts.model import Cart, CartState
from cart_grpc.names import CartKey, UserKey
from cart_grpc.protocol.lanes import HOLD_LANE, RELEASE_LANE, Lane
from cart_grpc.store.dialects import Dialect
from cart_grpc.store.engine import Engine
from cart_grpc.store.failures import translate_failures
from cart_grpc.store.prepared import Prepared
from cart_grpc.store.read.cache_validator import CacheValidator
from cart_grpc.store.read.cart_json import CartJson, Found
from cart_grpc.store.read.grouped_reads import GroupedReads
from cart_grpc.store.read.snapshot import Snapshot, parse_snapshot
from cart_grpc.store.rows import to_cart
from cart_grpc.store.schema import carts, due, due_release, expiring, is_not_paused, reconciling, reservations
from cart_grpc.store.statements import CART


@dataclass(frozen=True, slots=True)
class CartSummary:
    """A cart without its lines at one moment. `now` is the database's time."""

    cart: Cart
    reconciling: bool
    now: int


@dataclass(frozen=True, slots=True)
class Page:
    """A requested page of carts.

    `after` is the (order value, cart id) of the last cart seen, None for the first page.
    """

    user: UserKey
    size: int
    states: frozenset[CartState]
    order_by: str
    descending: bool
    after: tuple[int | str, str] | None


class Reads:
    """The reads of one store. `queue_size` bounds the reads of single carts that wait for a statement.

    No validator of an earlier `era` may be used: each step back of the database's clock begins another.
    """

    def __init__(self, engine: Engine, queue_size: int = 1_000) -> None:
        self.era = 0
        self._engine = engine
        self._reader: AsyncEngine = engine.reader
        self._now = engine.dialect.now()
        self._carts = GroupedReads(engine, queue_size)
        self._idle = (
            select(carts.c.slice, carts.c.user_id, carts.c.cart_id)
            .where(expiring, carts.c.expire_time <= self._now)
            .order_by(carts.c.expire_time)
            .limit(bindparam("most", type_=BigInteger))
        )
        # Prepared, because the reconciler runs these often.
        lanes = ((HOLD_LANE, due), (RELEASE_LANE, due_release))
        self._due: dict[Lane, Prepared] = {
            lane: Prepared(_select_due(is_in_lane, self._now)) for lane, is_in_lane in lanes
        }

    def begin_era(self) -> None:
        """Make all validators invalid."""
        self.era += 1

    async def close(self) -> None:
        """Wait until every queued read of a cart is answered."""
        await self._carts.close()

    async def find_json(self, key: CartKey, validator: CacheValidator | None = None) -> Found:
        """Return the cart under `key` as JSON, NOT_MODIFIED if `validator` is still valid, None if there never was one.

        Raises Overloaded or DatabaseUnavailable.
        """
        return await self._carts.find(key, validator)

    async def find_cart(self, key: CartKey) -> Snapshot | None:
        """Return the cart under `key` in any state, or None if there never was one.

        Raises Overloaded or DatabaseUnavailable.
        """
        found = await self._carts.find(key)
        return parse_snapshot(found) if isinstance(found, CartJson) else None

    async def list_carts(self, page: Page) -> list[CartSummary]:
        """Return one page of a user's carts, and the first cart of the next page if any. Raises DatabaseUnavailable."""
        rows = await fetch(self._reader, _select_page(page, self._engine.dialect, self._now), {})
        return [CartSummary(to_cart(row[: len(carts.columns)]), bool(row.reconciling), row.now) for row in rows]

    async def find_idle_carts(self, limit: int) -> list[CartKey]:
        """Return up to `limit` carts whose expire_time has passed, the longest expired first.

        Raises DatabaseUnavailable.
        """
        rows = await fetch(self._reader, self._idle, {"most": limit})
        return [CartKey(row.slice, row.user_id, row.cart_id) for row in rows]

    async def has_due(self, lane: Lane) -> bool:
        """Return whether a claim of `lane` would find a row. Raises DatabaseUnavailable."""
        with translate_failures():
            return bool(await self._engine.read(lambda connection: self._due[lane].fetch(connection, {})))


async def fetch(reader: AsyncEngine, statement: Select[Any], parameters: dict[str, Any]) -> Sequence[Row[Any]]:
    """Return all rows of a read. Raises DatabaseUnavailable."""
    with translate_failures():
        async with reader.connect() as connection:
            rows: Sequence[Row[Any]] = (await connection.execute(statement, parameters)).all()
            return rows


def _select_due(is_in_lane: TextClause, now: ColumnElement[int]) -> Select[int]:
    # ORDER BY makes the planner read the index from its beginning, and the first row is the answer. The pause is in
    # LIMIT: as a condition, SQLite would check it for each row that has become due during the pause.
    most = select(case((is_not_paused, 1), else_=0)).scalar_subquery()
    rows = select(reservations.c.due_time).where(is_in_lane, reservations.c.due_time <= now)
    return rows.order_by(reservations.c.due_time).limit(most)


def _select_page(page: Page, dialect: Dialect, now: ColumnElement[int]) -> Select[Any]:
    key: ColumnElement[Any] = carts.c.cart_id if page.order_by == "name" else carts.c[page.order_by]
    states = or_(false(), *(carts.c.state == int(state) for state in sorted(page.states)))
    statement = select(carts, _is_reconciling(dialect).label("reconciling"), now.label("now")).where(
        carts.c.slice == page.user.slice, carts.c.user_id == page.user.user_id, states
    )
    if page.after:
        value, cart_id = page.after
        beyond = key < value if page.descending else key > value
        then = carts.c.cart_id < cart_id if page.descending else carts.c.cart_id > cart_id
        statement = statement.where(or_(beyond, and_(key == value, then)))
    order = (key, carts.c.cart_id)
    return statement.order_by(*(column.desc() if page.descending else column for column in order)).limit(page.size + 1)


def _is_reconciling(dialect: Dialect) -> ColumnElement[bool]:
    """Whether the enclosing statement's cart has a reservation that is reconciling."""
    same_cart = (reservations.c[name] == carts.c[name] for name in CART)
    return exists(dialect.fenced(select(literal_column("1")).where(*same_cart, reconciling).correlate(carts)))
