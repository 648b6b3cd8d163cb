"""The reads of the callers and of the background loops. Each read is one statement, so it sees one moment.

Writes do not use this module: a batch reads its own rows (`WriteQueries.load`).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
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

from cart_grpc.carts.model import Cart, CartState
from cart_grpc.carts.refusals import DatabaseUnavailable
from cart_grpc.carts.sizes import text_bytes
from cart_grpc.commands.direct import ClaimKey
from cart_grpc.logs import events
from cart_grpc.names import CartKey, UserKey
from cart_grpc.protocol.lanes import Lane
from cart_grpc.store.dialects import Dialect, built_once
from cart_grpc.store.engine import Engine
from cart_grpc.store.failure_log import FailureLog
from cart_grpc.store.pinged_shard import PingedShard
from cart_grpc.store.prepared import Prepared
from cart_grpc.store.read.cache_validator import CacheValidator
from cart_grpc.store.read.cart_json import CartJson, Found
from cart_grpc.store.read.grouped_reads import GroupedReads
from cart_grpc.store.read.reader import Reader
from cart_grpc.store.read.revision_check import Known, bind_known, parse_changed, select_changed
from cart_grpc.store.read.snapshot import Snapshot, parse_snapshot
from cart_grpc.store.rows import to_cart
from cart_grpc.store.schema import LANES, carts, expiring, is_not_paused, reconciling, reservations
from cart_grpc.store.shards import shard_index
from cart_grpc.store.statements import CART, CLAIM

_PART_SIZE: Final = 100


@dataclass(frozen=True, slots=True)
class CartSummary:
    """A cart without its lines at one moment. `now` is the database's time."""

    cart: Cart
    reconciling: bool
    now: int


@dataclass(frozen=True, slots=True)
class Page:
    """A requested page of carts: `size` carts, or fewer if the texts of their labels have more than `max_bytes`.

    `after` is the (order value, cart id) of the last cart seen, None for the first page.
    """

    user: UserKey
    size: int
    states: frozenset[CartState]
    order_by: str
    descending: bool
    after: tuple[int | str, str] | None
    max_bytes: int = 1024 * 1024

    def order_value(self, cart: Cart) -> int | str:
        """The value by which the page orders `cart`."""
        value: int | str = cart.key.cart_id if self.order_by == "name" else getattr(cart, self.order_by)
        return value


class _Statements:
    def __init__(self, dialect: Dialect) -> None:
        now = dialect.now()
        self.changed = Prepared(select_changed(dialect))
        self.idle = (
            select(carts.c.slice, carts.c.user_id, carts.c.cart_id)
            .where(expiring, carts.c.expire_time <= now)
            .order_by(carts.c.expire_time)
            .limit(bindparam("most", type_=BigInteger))
        )
        # Prepared, because the reconciler runs these often.
        self.due: dict[Lane, Prepared] = {lane: Prepared(_select_due(row, now)) for lane, row in LANES.items()}
        self.due_rows = {lane: _select_due_rows(row, now) for lane, row in LANES.items()}


_statements = built_once(_Statements)


class Reads:
    """The reads of one store. `queue_size` bounds the reads of single carts that wait for a statement.

    `carts` reads the single carts of each shard. `reader` is for lists; by default it is a new one. `failures` is the
    log of failures. No validator of an earlier `era` may be used: each step back of the database's clock begins
    another.
    """

    def __init__(self, engine: Engine, queue_size: int = 1_000, reader: Reader | None = None) -> None:
        self.era = 0
        self.failures = FailureLog(
            events.READS_FAILING, events.READS_RECOVERED, "reads of carts fail", "reads of carts work again"
        )
        self._engine = engine
        self._reader = reader or Reader(engine)
        self._now = engine.dialect.now()
        self.carts = [GroupedReads(shard, queue_size, self.failures) for shard in engine.shards]
        self._pinged = PingedShard(len(engine.shards))
        self._statements = _statements(engine.dialect)

    def begin_era(self) -> None:
        """Make all validators invalid."""
        self.era += 1

    async def close(self) -> None:
        """Wait until every queued read of a cart is answered."""
        for of_shard in self.carts:
            await of_shard.close()

    async def ping(self) -> None:
        """Read no cart, however many reads wait. Raises DatabaseUnavailable."""
        await self._pinged.ask(lambda number: self.carts[number].ping())

    async def find_json(self, key: CartKey, validator: CacheValidator | None = None) -> Found:
        """Return the cart under `key` as JSON, NOT_MODIFIED if `validator` is still valid, None if there never was one.

        Raises Overloaded or DatabaseUnavailable.
        """
        return await self._find(key, validator)

    async def find_changed(self, known: Sequence[tuple[CartKey, Known]]) -> list[CartKey]:
        """Return the keys of `known` whose cart has another version now.

        Raises DatabaseUnavailable if there are none and a shard does not answer.
        """
        by_shard: dict[int, list[tuple[CartKey, Known]]] = defaultdict(list)
        for each in known:
            by_shard[shard_index(each[0].slice, len(self.carts))].append(each)
        changed: list[CartKey] = []
        failure: DatabaseUnavailable | None = None
        for number, part in by_shard.items():
            try:
                changed += await self._find_changed(number, part)
            except DatabaseUnavailable as refusal:
                failure = refusal
        if failure and not changed:
            raise failure
        return changed

    async def _find_changed(self, shard: int, known: Sequence[tuple[CartKey, Known]]) -> list[CartKey]:
        parameters = bind_known(self._engine.dialect, known)
        with self.failures.translated():
            ((found,),) = await self._engine.shards[shard].read(
                lambda connection: self._statements.changed.fetch(connection, parameters)
            )
        return parse_changed(found)

    async def find_cart(self, key: CartKey) -> Snapshot | None:
        """Return the cart under `key` in any state, or None if there never was one.

        Raises Overloaded or DatabaseUnavailable.
        """
        found = await self._find(key)
        return parse_snapshot(found) if isinstance(found, CartJson) else None

    async def _find(self, key: CartKey, validator: CacheValidator | None = None) -> Found:
        return await self.carts[shard_index(key.slice, len(self.carts))].find(key, validator)

    async def list_carts(self, page: Page) -> list[CartSummary]:
        """Return one page of a user's carts, and the first cart of the next page if any. Raises DatabaseUnavailable.

        Carts are read in parts. Otherwise a page of carts with long labels would read ten times as much as it shows.
        """
        found: list[CartSummary] = []
        room = page.max_bytes
        while True:
            part = replace(page, size=min(page.size - len(found), _PART_SIZE))
            statement = _select_page(part, self._engine.dialect, self._now)
            rows = await self._reader.fetch(statement, {}, page.user.slice)
            read = [CartSummary(to_cart(row[: len(carts.columns)]), bool(row.reconciling), row.now) for row in rows]
            room -= sum(text_bytes(one.cart.labels) for one in read)
            if len(read) <= part.size or len(found) + len(read) > page.size or room < 0:
                return found + read
            # The last one is the first of the next part.
            found += read[:-1]
            last = found[-1].cart
            page = replace(page, after=(page.order_value(last), last.key.cart_id))

    async def find_idle_carts(self, limit: int) -> list[CartKey]:
        """Return up to `limit` carts whose expire_time has passed, of each shard the longest expired first.

        Raises DatabaseUnavailable.
        """
        rows = await self._reader.fetch_some(self._statements.idle, limit)
        return [CartKey(row.slice, row.user_id, row.cart_id) for row in rows]

    async def has_due(self, lane: Lane, shard: int = 0) -> bool:
        """Return whether a claim of `lane` would find a row in a shard. Raises DatabaseUnavailable."""
        with self.failures.translated():
            due = self._statements.due[lane]
            return bool(await self._engine.shards[shard].read(lambda connection: due.fetch(connection, {})))

    async def find_due(self, lane: Lane, limit: int) -> list[ClaimKey]:
        """Return up to `limit` due rows of `lane`, of each shard the longest due first. Raises DatabaseUnavailable."""
        rows = await self._reader.fetch_some(self._statements.due_rows[lane], limit)
        return [ClaimKey(row.slice, row.reservation_id, row.lease_epoch) for row in rows]


def _select_due(is_in_lane: TextClause, now: ColumnElement[int]) -> Select[int]:
    # ORDER BY makes the planner read the index from its beginning, and the first row is the answer. The pause is in
    # LIMIT: as a condition, SQLite would check it for each row that has become due during the pause.
    most = select(case((is_not_paused, 1), else_=0)).scalar_subquery()
    rows = select(reservations.c.due_time).where(is_in_lane, reservations.c.due_time <= now)
    return rows.order_by(reservations.c.due_time).limit(most)


def _select_due_rows(is_in_lane: TextClause, now: ColumnElement[int]) -> Select[Any]:
    key = (reservations.c[name] for name in CLAIM)
    rows = select(*key).where(is_in_lane, reservations.c.due_time <= now)
    return rows.order_by(reservations.c.due_time).limit(bindparam("most", type_=BigInteger))


def _select_page(page: Page, dialect: Dialect, now: ColumnElement[int]) -> Select[Any]:
    key: ColumnElement[Any] = carts.c.cart_id if page.order_by == "name" else carts.c[page.order_by]
    states = or_(false(), *(carts.c.state == int(state) for state in sorted(page.states)))
    statement = select(carts, is_reconciling(dialect, carts).label("reconciling"), now.label("now")).where(
        carts.c.slice == page.user.slice, carts.c.user_id == page.user.user_id, states
    )
    if page.after:
        value, cart_id = page.after
        beyond = key < value if page.descending else key > value
        then = carts.c.cart_id < cart_id if page.descending else carts.c.cart_id > cart_id
        statement = statement.where(or_(beyond, and_(key == value, then)))
    order = (key, carts.c.cart_id)
    return statement.order_by(*(column.desc() if page.descending else column for column in order)).limit(page.size + 1)


def is_reconciling(dialect: Dialect, row: FromClause) -> ColumnElement[bool]:
    """Whether the cart in `row` of the enclosing statement has a reservation that is reconciling."""
    same_cart = (reservations.c[name] == row.c[name] for name in CART)
    return exists(dialect.fenced(select(literal_column("1")).where(*same_cart, reconciling).correlate(row)))
