"""The operator's search for carts of all users, a page at a time.

A page is bounded in time, whatever the filters let through: it looks at `look` carts at most. It pages by the primary
key, so a cart that other calls create, change or end does not move any other cart to another page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    SmallInteger,
    and_,
    column,
    exists,
    literal,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    values,
)

from cart_grpc.carts.model import CartState
from cart_grpc.carts.sizes import text_bytes
from cart_grpc.names import SLICES, CartKey
from cart_grpc.store.dialects import Dialect
from cart_grpc.store.engine import Engine
from cart_grpc.store.read.looking import LOOK, look_at
from cart_grpc.store.read.reader import Reader
from cart_grpc.store.read.reads import CartSummary, is_reconciling
from cart_grpc.store.rows import to_cart
from cart_grpc.store.schema import carts, items
from cart_grpc.store.shards import first_slices
from cart_grpc.store.statements import CART

# Sorts after every character of an id.
_AFTER_IDS = "\x7f"
# Full rows are read in parts, because carts may have long labels.
_PART_SIZE = 100
_START = CartKey(-1, "", "")


@dataclass(frozen=True, slots=True)
class CartSearch:
    """A requested page of at most `size` carts, in the order of their keys.

    An empty `user_prefix`, `states` or `sku`, and a `min_age_us` of 0, let every cart through. `after` is the key after
    which the page begins, None for the first page. The page also ends after `look` carts, and once the texts of the
    labels have more than `max_bytes`.
    """

    size: int
    user_prefix: str
    states: frozenset[CartState]
    min_age_us: int
    sku: str
    after: CartKey | None
    look: int = LOOK
    max_bytes: int = 1024 * 1024


@dataclass(frozen=True, slots=True)
class CartsFound:
    """One page, which may be empty. The next page begins after `next_after`; None: this is the last page."""

    carts: Sequence[CartSummary]
    next_after: CartKey | None


class CartSearches:
    """The searches of one store."""

    def __init__(self, engine: Engine, reader: Reader) -> None:
        self._dialect = engine.dialect
        self._shard_count = len(engine.shards)
        self._now = engine.dialect.now()
        self._reader = reader

    async def find(self, search: CartSearch) -> CartsFound:
        """Return one page. Raises DatabaseUnavailable."""
        found: list[CartSummary] = []
        look, room = search.look, search.max_bytes
        after = search.after or _START
        for shard, slice_ in await self._find_ranges(search):
            is_over = False
            while not is_over:
                size = min(search.size - len(found), _PART_SIZE)
                part = _select_part(search, slice_, after, look, size, self._dialect, self._now)
                rows = await self._reader.fetch(part, {}, shard)
                read = [_summary(row) for row in rows if row.is_wanted]
                found += read
                room -= sum(text_bytes(one.cart.labels) for one in read)
                if rows:
                    after = CartKey(*(getattr(rows[-1], name) for name in CART))
                    is_over = rows[-1].is_last and rows[-1].number < look
                    look -= rows[-1].number
                else:
                    is_over = True
                if len(found) == search.size or look <= 0 or room < 0:
                    return CartsFound(found, after)
        return CartsFound(found, None)

    async def _find_ranges(self, search: CartSearch) -> Sequence[tuple[int, int | None]]:
        """Return the ranges to search in: a slice of the shard, and the slice that has the carts.

        Without a prefix the latter is None: one range has all carts of the shard.
        """
        first = search.after.slice if search.after else 0
        if not search.user_prefix:
            return [(slice_, None) for slice_ in first_slices(self._shard_count, first)]
        rows = await self._reader.fetch_all(_select_slices(search.user_prefix, first, self._dialect), {})
        return [(row.slice, row.slice) for row in rows]


def _summary(row: Row[Any]) -> CartSummary:
    return CartSummary(to_cart(row[: len(carts.columns)]), bool(row.reconciling), row.now)


def _begins_with(prefix: str, least: str = "") -> ColumnElement[bool]:
    """Whether a cart's user begins with `prefix`, as a range of an index; and is not below `least`."""
    return and_(carts.c.user_id >= max(prefix, least), carts.c.user_id < prefix + _AFTER_IDS)


def _select_slices(prefix: str, first: int, dialect: Dialect) -> Select[Any]:
    """The slices from `first` that have carts of such users: the user id alone finds no range of the primary key."""
    numbers: list[Any] = [(literal_column(str(number)),) for number in range(first, SLICES)]
    every = values(column("slice", SmallInteger)).data(numbers).cte("every")
    in_slice: Select[Any] = select(literal_column("1")).where(carts.c.slice == every.c.slice, _begins_with(prefix))
    return select(every.c.slice).where(exists(dialect.fenced(in_slice.correlate(every)))).order_by(every.c.slice)


def _select_part(
    search: CartSearch,
    slice_: int | None,
    after: CartKey,
    look: int,
    size: int,
    dialect: Dialect,
    now: ColumnElement[int],
) -> Select[Any]:
    """Up to `size` wanted carts among the `look` carts after `after`, and the last of these `look`, wanted or not."""
    key = [carts.c[name] for name in CART]
    looked = select(carts).where(tuple_(*key) > tuple_(*(literal(part) for part in after)))
    if slice_ is not None:
        least = after.user_id if after.slice == slice_ else ""
        looked = looked.where(carts.c.slice == slice_, _begins_with(search.user_prefix, least))
    row = look_at(looked, CART, look)
    wanted = _is_wanted(search, row, dialect, now)
    return (
        select(
            *(row.c[each.name] for each in carts.columns),
            row.c.number,
            row.c.is_last,
            wanted.label("is_wanted"),
            is_reconciling(dialect, row).label("reconciling"),
            now.label("now"),
        )
        .where(or_(wanted, row.c.is_last))
        .order_by(*(row.c[name] for name in CART))
        .limit(size)
    )


def _is_wanted(search: CartSearch, row: Any, dialect: Dialect, now: ColumnElement[int]) -> ColumnElement[bool]:
    conditions: list[ColumnElement[bool]] = [true()]
    if search.states:
        conditions.append(row.c.state.in_([int(state) for state in sorted(search.states)]))
    if search.min_age_us:
        conditions.append(row.c.update_time <= now - search.min_age_us)
    if search.sku:
        # No index has the sku of items, because AddItem would pay for it: this reads the items of each cart.
        same_cart = (items.c[name] == row.c[name] for name in CART)
        with_sku: Select[Any] = select(literal_column("1")).where(*same_cart, items.c.sku == search.sku).correlate(row)
        conditions += [row.c.item_count > 0, exists(dialect.fenced(with_sku))]
    return and_(*conditions)
