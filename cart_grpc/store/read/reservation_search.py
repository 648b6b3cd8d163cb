"""The operator's search for reservations, a page at a time.

The backlog has indexes of its own and comes in the order of create_time. Reservations in other states are searched for
in the order of the primary key. Then a page looks at `look` rows at most, so that it is bounded in time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, exists, literal, literal_column, or_, select, tuple_

from cart_grpc.names import CartKey, UserKey
from cart_grpc.store.dialects import Dialect
from cart_grpc.store.engine import Engine
from cart_grpc.store.read.looking import LOOK, look_at
from cart_grpc.store.read.operator_reads import (
    BACKLOG,
    ReservationSnapshot,
    UnreadableReservation,
    WorkState,
    is_in_backlog,
    select_snapshot,
    shows,
    to_snapshot,
    unanswered_state,
    work_state,
)
from cart_grpc.store.read.reader import Reader
from cart_grpc.store.schema import reservations
from cart_grpc.store.shards import first_slices
from cart_grpc.store.statements import RESERVATION

# Where a page begins: after the (create_time, id) of a reservation of the backlog, or after a (slice, id).
Position = tuple[int, str]


@dataclass(frozen=True, slots=True)
class ReservationPage:
    """A requested page of at most `size` reservations. `after` is None for the first page.

    `parent` is the user or the cart. None, and an empty `sku`, let every reservation through.
    """

    size: int
    states: frozenset[WorkState]
    min_age_us: int
    min_attempts: int
    after: Position | None
    parent: UserKey | CartKey | None = None
    sku: str = ""
    look: int = LOOK

    @property
    def is_of_backlog(self) -> bool:
        """Whether the page is in the order of create_time."""
        return self.states <= BACKLOG


@dataclass(frozen=True, slots=True)
class ReservationsFound:
    """One page, which may be empty, and the position of each of its reservations.

    The next page begins after `next_after`; None: this is the last page.
    """

    reservations: Sequence[ReservationSnapshot | UnreadableReservation]
    positions: Sequence[Position]
    next_after: Position | None


class ReservationSearches:
    """The searches of one store."""

    def __init__(self, engine: Engine, reader: Reader) -> None:
        self._dialect = engine.dialect
        self._shard_count = len(engine.shards)
        self._now = engine.dialect.now()
        self._reader = reader

    async def find(self, page: ReservationPage) -> ReservationsFound:
        """Return one page. Raises DatabaseUnavailable."""
        if page.is_of_backlog:
            rows = await self._reader.fetch_all(_select_backlog(page, self._dialect, self._now), {})
            rows = sorted(rows, key=lambda row: (row.reservation_create_time, row.reservation_reservation_id))
            found = [(row.reservation_create_time, row.reservation_reservation_id) for row in rows[: page.size]]
            return _found(rows[: page.size], found, found[-1] if len(rows) > page.size else None)
        wanted: list[Row[Any]] = []
        size, look, last = page.size, page.look, None
        for slice_ in self._first_slices(page):
            part = replace(page, size=size, look=look)
            rows = await self._reader.fetch(_select_looked(part, self._dialect, self._now), {}, slice_)
            if not rows:
                continue
            of_shard = [row for row in rows if row.is_wanted]
            wanted += of_shard
            last = (rows[-1].reservation_slice, rows[-1].reservation_reservation_id)
            if len(rows) == size or rows[-1].number == look:
                break
            size, look = size - len(of_shard), look - rows[-1].number
        else:
            last = None
        return _found(wanted, [(row.reservation_slice, row.reservation_reservation_id) for row in wanted], last)

    def _first_slices(self, page: ReservationPage) -> Sequence[int]:
        """A slice of each shard to search in."""
        if page.parent:
            return [page.parent.slice]
        return first_slices(self._shard_count, page.after[0] if page.after else 0)


def _found(rows: Sequence[Row[Any]], positions: Sequence[Position], next_after: Position | None) -> ReservationsFound:
    return ReservationsFound([to_snapshot(row) for row in rows], positions, next_after)


def _select_backlog(page: ReservationPage, dialect: Dialect, now: ColumnElement[int]) -> Select[Any]:
    row = reservations.c
    state = unanswered_state(row, now).in_([int(state) for state in sorted(page.states)])
    chosen = select(reservations).where(is_in_backlog(dialect, *_of_parent(page)), state, *_filters(page, row, now))
    if page.after:
        time, reservation_id = page.after
        later = and_(row.create_time == time, row.reservation_id > reservation_id)
        chosen = chosen.where(or_(row.create_time > time, later))
    return select_snapshot(chosen.order_by(row.create_time, row.reservation_id).limit(page.size + 1), now)


def _select_looked(page: ReservationPage, dialect: Dialect, now: ColumnElement[int]) -> Select[Any]:
    """Up to `size` wanted reservations among the next `look` ones, and the last of these, wanted or not."""
    looked = select(reservations)
    if page.parent:
        looked = looked.where(reservations.c.slice == page.parent.slice)
    if page.after:
        key = (reservations.c[name] for name in RESERVATION)
        looked = looked.where(tuple_(*key) > tuple_(*(literal(part) for part in page.after)))
    row = look_at(looked, RESERVATION, page.look)
    shown: Select[Any] = select(literal_column("1")).where(shows(row.c)).correlate(row)
    is_shown = exists(dialect.fenced(shown))
    state = work_state(row.c, is_shown, now).in_([int(state) for state in sorted(page.states)])
    wanted = and_(state, *_of_parent(page, row.c), *_filters(page, row.c, now))
    chosen = select(row, wanted.label("is_wanted")).where(or_(wanted, row.c.is_last))
    chosen = chosen.order_by(*(row.c[name] for name in RESERVATION)).limit(page.size)
    return select_snapshot(chosen, now, RESERVATION)


def _of_parent(page: ReservationPage, row: Any = reservations.c) -> list[ColumnElement[bool]]:
    return [row[name] == value for name, value in page.parent._asdict().items()] if page.parent else []


def _filters(page: ReservationPage, row: Any, now: ColumnElement[int]) -> list[ColumnElement[bool]]:
    conditions = []
    if page.min_age_us:
        conditions.append(row.create_time <= now - page.min_age_us)
    if page.min_attempts:
        conditions.append(row.attempt_count >= page.min_attempts)
    if page.sku:
        conditions.append(row.sku == page.sku)
    return conditions
