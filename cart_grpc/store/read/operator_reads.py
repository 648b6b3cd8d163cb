"""The operator's reads: reservations of all users, and the backlog."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    and_,
    bindparam,
    case,
    func,
    or_,
    select,
    tuple_,
    union,
    union_all,
)
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from cart_grpc.carts.model import Line
from cart_grpc.carts.refusals import ReservationNotFound, ReservationUnprocessable
from cart_grpc.names import SLICES
from cart_grpc.protocol.reservation import Disposition, Observed, Reservation
from cart_grpc.store.dialects import Dialect, built_once
from cart_grpc.store.engine import Engine
from cart_grpc.store.read.reader import Reader
from cart_grpc.store.rows import to_item, to_reservation
from cart_grpc.store.schema import (
    LANES,
    due_checkout,
    due_release,
    is_pause,
    items,
    pauses,
    reconciling,
    reservations,
    set_aside,
)


class WorkState(IntEnum):
    """The states of the work on a reservation, as operators see them. The numbers are those of `cartgrpc.v1`."""

    WAITING = 1
    DUE = 2
    CALLING = 3
    BACKING_OFF = 4
    HELD = 5
    REJECTED = 6
    EXPIRED = 7
    COMMITTED = 8
    RELEASED = 9
    SET_ASIDE = 10


# The states of reservations that the Reservation API has not answered or that are set aside. Partial indexes contain
# these rows and few others.
BACKLOG = frozenset({WorkState.WAITING, WorkState.DUE, WorkState.CALLING, WorkState.BACKING_OFF, WorkState.SET_ASIDE})

# The columns of the reservations table, or of a subquery of it.
Columns: TypeAlias = "ReadOnlyColumnCollection[str, Any]"


@dataclass(frozen=True, slots=True)
class ReservationSnapshot:
    """A reservation at one moment. `line` is the item that shows it, None if the item was removed."""

    reservation: Reservation
    line: Line | None
    state: WorkState
    now: int


@dataclass(frozen=True, slots=True)
class UnreadableReservation:
    """A reservation whose row, or its item's, has values that the server cannot read. `error` says which."""

    reservation_id: str
    create_time: int
    error: str


@dataclass(frozen=True, slots=True)
class Backlog:
    """The number of reservations of one state of the backlog and disposition, and the oldest one's create_time."""

    state: WorkState
    disposition: Disposition
    count: int
    oldest_create_time: int


@dataclass(frozen=True, slots=True)
class PauseSnapshot:
    """A pause of all claims: why, and since when."""

    reason: str
    create_time: int


@dataclass(frozen=True, slots=True)
class Stats:
    """The backlog at `now`. `oldest_due_time` is None if nothing is due, `pause` is None if claims are not paused."""

    now: int
    backlog: Sequence[Backlog]
    due_count: int
    oldest_due_time: int | None
    pause: PauseSnapshot | None


class _Statements:
    def __init__(self, dialect: Dialect) -> None:
        now = dialect.now()
        # An id does not contain its slice, so the statement searches the primary key once for each of the 256 slices.
        every_slice = reservations.c.slice.in_(bindparam("slices", list(range(SLICES)), literal_execute=True))
        by_id = (every_slice, reservations.c.reservation_id == bindparam("id"))
        self.one = select_snapshot(select(reservations).where(*by_id), now)
        self.backlog = select_backlog(dialect, now)
        self.due = _select_due(now)
        self.pause = select(pauses.c.reason, pauses.c.create_time).where(is_pause)


_statements = built_once(_Statements)


class OperatorReads:
    """The operator's reads of one store."""

    def __init__(self, engine: Engine, reader: Reader) -> None:
        self._reader = reader
        self._has_shards = len(engine.shards) > 1
        self._statements = _statements(engine.dialect)

    async def get(self, reservation_id: str) -> ReservationSnapshot:
        """Return the reservation with this id.

        Raises ReservationNotFound, ReservationUnprocessable or DatabaseUnavailable.
        """
        rows = await self._reader.fetch_all(self._statements.one, {"id": reservation_id})
        if not rows and self._has_shards:
            # A merge may have moved it from a shard that was yet to be read to one that had been.
            rows = await self._reader.fetch_all(self._statements.one, {"id": reservation_id})
        if not rows:
            raise ReservationNotFound(f"reservations/{reservation_id}")
        # If it moved in the other direction, it was read twice.
        found = to_snapshot(rows[-1])
        if isinstance(found, UnreadableReservation):
            raise ReservationUnprocessable(f"reservations/{reservation_id}", f"its row cannot be read: {found.error}")
        return found

    async def find_pause(self) -> PauseSnapshot | None:
        """Return the pause, or None if claims are not paused. Raises DatabaseUnavailable.

        All shards have the same: this is that of the first.
        """
        rows = await self._reader.fetch(self._statements.pause, {})
        return PauseSnapshot(rows[0].reason, rows[0].create_time) if rows else None

    async def get_stats(self) -> Stats:
        """Return the backlog. Raises DatabaseUnavailable."""
        due = await self._reader.fetch_all(self._statements.due, {})
        kinds: dict[tuple[int, int], list[Row[Any]]] = defaultdict(list)
        for row in await self._reader.fetch_all(self._statements.backlog, {}):
            kinds[row.work_state, row.disposition].append(row)
        backlog = [
            Backlog(
                WorkState(state),
                Disposition(disposition),
                sum(row.how_many for row in rows),
                min(row.oldest for row in rows),
            )
            for (state, disposition), rows in sorted(kinds.items())
        ]
        oldest = min((row.oldest for row in due if row.oldest is not None), default=None)
        count = sum(row.how_many for row in due)
        return Stats(max(row.now for row in due), backlog, count, oldest, await self.find_pause())


def to_snapshot(row: Row[Any]) -> ReservationSnapshot | UnreadableReservation:
    """The reservation in a row of `select_snapshot`."""
    try:
        reservation = to_reservation(_part(row, "reservation"))
        line = None if row.item_item_id is None else Line(to_item(_part(row, "item")), reservation)
    except Exception as error:  # noqa: BLE001 - one row that was changed by hand must not hide the others
        text = f"{type(error).__name__}: {error}"
        return UnreadableReservation(row.reservation_reservation_id, row.reservation_create_time, text)
    return ReservationSnapshot(reservation, line, WorkState(row.work_state), row.now)


def unanswered_state(row: Columns, now: ColumnElement[int]) -> ColumnElement[int]:
    """The WorkState of a row in the backlog."""
    return case(
        (row.set_aside_reason != "", int(WorkState.SET_ASIDE)),
        (row.waiting, int(WorkState.WAITING)),
        (row.lease_expire_time > now, int(WorkState.CALLING)),
        (row.due_time <= now, int(WorkState.DUE)),
        else_=int(WorkState.BACKING_OFF),
    )


def work_state(row: Columns, is_shown: ColumnElement[bool], now: ColumnElement[int]) -> ColumnElement[int]:
    """The WorkState of a row. During a renewal it stays HELD or EXPIRED."""
    lapsed = and_(row.state == int(Observed.HELD), row.expire_time <= now)
    return case(
        (or_(row.observed_revision < row.intent_revision, row.set_aside_reason != ""), unanswered_state(row, now)),
        (or_(row.state == int(Observed.EXPIRED), lapsed), int(WorkState.EXPIRED)),
        (row.state == int(Observed.HELD), int(WorkState.HELD)),
        (row.state == int(Observed.COMMITTED), int(WorkState.COMMITTED)),
        # A permanent error may be sealed with a release. Its item still shows REJECTED.
        (and_(row.state == int(Observed.RELEASED), ~is_shown), int(WorkState.RELEASED)),
        else_=int(WorkState.REJECTED),
    )


def shows(row: Columns) -> ColumnElement[bool]:
    """Whether the item of the enclosing statement shows the reservation."""
    names = ("slice", "user_id", "cart_id", "item_id", "reservation_id")
    return and_(*(items.c[name] == row[name] for name in names))


def select_snapshot(
    chosen: Select[Any], now: ColumnElement[int], order: Sequence[str] = ("create_time", "reservation_id")
) -> Select[Any]:
    """The `chosen` reservations with their items, and with the further columns that `chosen` has.

    The subquery comes first, so only the items of these few are read.
    """
    few = chosen.subquery("few")
    state = work_state(few.c, items.c.item_id.is_not(None), now).label("work_state")
    rows = [few.c[column.name] for column in reservations.columns]
    more = [column for column in few.c if column.name not in reservations.c]
    columns = (*_labelled("reservation", rows), *_labelled("item", items.columns), *more, state, now.label("now"))
    joined = select(*columns).select_from(few.outerjoin(items, shows(few.c)))
    return joined.order_by(*(few.c[name] for name in order))


def is_in_backlog(dialect: Dialect, *where: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether a row of `reservations` is in a state of the BACKLOG and fulfils `where`.

    An OR would use none of the partial indexes. Releases and commits of checkouts are not `reconciling`.
    """
    row_id, row = dialect.row_id(reservations), reservations.c
    unanswered = row.observed_revision < row.intent_revision
    of_carts = select(*row_id).where(reconciling, unanswered, *where)
    of_checkouts = (select(*row_id).where(lane, unanswered, *where) for lane in (due_checkout, due_release))
    return tuple_(*row_id).in_(union(of_carts, *of_checkouts, select(*row_id).where(set_aside, *where)))


def select_backlog(dialect: Dialect, now: ColumnElement[int]) -> Select[Any]:
    """The reservations in the backlog by state and disposition: how many, and the oldest one's create_time."""
    row = reservations.c
    state = unanswered_state(row, now).label("work_state")
    waiting = select(state, row.disposition, row.create_time).where(is_in_backlog(dialect)).subquery()
    kind = (waiting.c.work_state, waiting.c.disposition)
    figures = (func.count().label("how_many"), func.min(waiting.c.create_time).label("oldest"))
    return select(*kind, *figures).group_by(*kind).order_by(*kind)


def _select_due(now: ColumnElement[int]) -> Select[Any, Any, Any]:
    row = reservations.c
    lanes = union_all(
        *(select(row.due_time).where(is_in_lane, row.due_time <= now) for is_in_lane in LANES.values())
    ).subquery()
    figures = (func.count().label("how_many"), func.min(lanes.c.due_time).label("oldest"))
    return select(*figures, now.label("now"))


def _part(row: Row[Any], prefix: str) -> Sequence[Any]:
    """The columns that `_labelled` put into a joined row under `prefix`."""
    return [value for name, value in row._mapping.items() if name.startswith(f"{prefix}_")]  # noqa: SLF001


def _labelled(prefix: str, columns: Iterable[Any]) -> list[Any]:
    """The columns under a prefix, so that two joined tables can have columns of one name."""
    return [column.label(f"{prefix}_{column.name}") for column in columns]
