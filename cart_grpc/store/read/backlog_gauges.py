"""The gauges of what the database contains: unfinished reservations, and checkouts that have not ended.

Each statement reads partial indexes of unfinished rows only, so it does not matter how many reservations are held.
"""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, Row, Select, cast, func, literal, select, union_all

from cart_grpc.carts.model import CheckoutState
from cart_grpc.metrics import (
    CHECKOUTS,
    OLDEST_CHECKOUT_AGE,
    OLDEST_DUE_AGE,
    PAUSED,
    RESERVATIONS,
    RESERVATIONS_DUE,
    SAMPLE_TIME,
)
from cart_grpc.protocol.reservation import Disposition
from cart_grpc.store.dialects import Dialect, built_once
from cart_grpc.store.engine import Engine
from cart_grpc.store.read.operator_reads import BACKLOG, WorkState, select_backlog
from cart_grpc.store.read.reader import Reader
from cart_grpc.store.schema import LANES, checkouts, is_pause, pauses, reservations, running
from cart_grpc.units import to_seconds

_RUNNING: Final = (CheckoutState.OPEN, CheckoutState.COMPLETING, CheckoutState.FAILED)


class _Statements:
    def __init__(self, dialect: Dialect) -> None:
        now = dialect.now()
        self.backlog = select_backlog(dialect, now)
        self.due = select_due_by_lane(now)
        self.checkouts = select_running_checkouts(now)
        self.pause = select(func.count().label("how_many")).select_from(pauses).where(is_pause)


_statements = built_once(_Statements)


class BacklogGauges:
    """Reads one store, and sets the gauges."""

    def __init__(self, engine: Engine, reader: Reader) -> None:
        self._reader = reader
        self._statements = _statements(engine.dialect)

    async def sample(self) -> None:
        """Set the gauges. Raises DatabaseUnavailable."""
        backlog = Counter[tuple[int, int]]()
        for row in await self._reader.fetch_all(self._statements.backlog, {}):
            backlog[row.work_state, row.disposition] += row.how_many
        _set_backlog(backlog)
        due = await self._reader.fetch_all(self._statements.due, {})
        for lane in LANES:
            rows = [row for row in due if row.lane == lane]
            RESERVATIONS_DUE.labels(lane).set(sum(row.how_many for row in rows))
            OLDEST_DUE_AGE.labels(lane).set(max(map(_age, rows)))
        _set_checkouts(await self._reader.fetch_all(self._statements.checkouts, {}))
        [pause] = await self._reader.fetch(self._statements.pause, {})
        PAUSED.set(pause.how_many)
        SAMPLE_TIME.set(time.time())


def select_due_by_lane(now: ColumnElement[int]) -> Select[Any, Any, Any, Any]:
    """The due reservations of each lane: how many, and since when the oldest is due."""
    row = reservations.c
    figures = (func.count().label("how_many"), func.min(row.due_time).label("oldest"))
    lanes = union_all(
        *(
            select(literal(lane, literal_execute=True).label("lane"), *figures).where(condition, row.due_time <= now)
            for lane, condition in LANES.items()
        )
    ).subquery()
    return select(lanes.c.lane, lanes.c.how_many, lanes.c.oldest, cast(now, BigInteger).label("now"))


def select_running_checkouts(now: ColumnElement[int]) -> Select[Any, Any, Any, Any]:
    """The checkouts that have not ended, by state: how many, and since when the first is in it."""
    state = checkouts.c.state
    figures = (func.count().label("how_many"), func.min(checkouts.c.update_time).label("oldest"))
    return select(state, *figures, cast(now, BigInteger).label("now")).where(running).group_by(state)


def _set_backlog(counts: Counter[tuple[int, int]]) -> None:
    for state in BACKLOG:
        for disposition in Disposition:
            count = counts[state, disposition]
            RESERVATIONS.labels(WorkState(state).name.lower(), disposition.name.lower()).set(count)


def _set_checkouts(rows: Sequence[Row[Any]]) -> None:
    for state in _RUNNING:
        of_state = [row for row in rows if row.state == state]
        CHECKOUTS.labels(state.name).set(sum(row.how_many for row in of_state))
        OLDEST_CHECKOUT_AGE.labels(state.name).set(max(map(_age, of_state), default=0))


def _age(row: Row[Any]) -> float:
    """Return the seconds since `oldest`, 0 if there is none. The clock may have been set back."""
    return 0.0 if row.oldest is None else max(0.0, to_seconds(row.now - row.oldest))
