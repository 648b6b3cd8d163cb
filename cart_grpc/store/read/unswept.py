"""The checkouts that the sweeper must move on: their window has ended, or a trigger was lost."""

from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, and_, bindparam, exists, literal_column, not_, or_, select

from cart_grpc.names import CheckoutKey
from cart_grpc.store.dialects import Dialect, built_once
from cart_grpc.store.engine import Engine
from cart_grpc.store.read.reader import Reader
from cart_grpc.store.rows import Row
from cart_grpc.store.schema import checkouts, is_open, reservations, running
from cart_grpc.store.statements import CHECKOUT


class _Statements:
    def __init__(self, dialect: Dialect) -> None:
        now = dialect.now()
        most = bindparam("most", type_=BigInteger)
        self.over = (
            select(*(checkouts.c[name] for name in CHECKOUT))
            .where(is_open, checkouts.c.expire_time <= now)
            .order_by(checkouts.c.expire_time)
            .limit(most)
        )
        self.answered = _select_answered(now).limit(most)


_statements = built_once(_Statements)


class Unswept:
    """Finds checkouts for the sweeper. Each method raises DatabaseUnavailable."""

    def __init__(self, engine: Engine, reader: Reader) -> None:
        self._reader = reader
        self._statements = _statements(engine.dialect)

    async def find_ended_windows(self, limit: int) -> list[CheckoutKey]:
        """Return up to `limit` OPEN checkouts whose window has ended, of each shard the longest ended first."""
        return [_to_key(row) for row in await self._reader.fetch_some(self._statements.over, limit)]

    async def find_answered_checkouts(self, limit: int) -> list[CheckoutKey]:
        """Return up to `limit` running checkouts that wait for no answer, although their state says so,
        or that lost a hold. The record of the last answer should have moved them on.
        """
        return [_to_key(row) for row in await self._reader.fetch_some(self._statements.answered, limit)]


def _select_answered(now: ColumnElement[int]) -> Select[Any]:
    row = reservations.c
    of_checkout = [row[name] == checkouts.c[name] for name in CHECKOUT]
    # A checkout of a cart has a checkout_id: the index of these rows is partial.
    mine = exists().where(literal_column("reservations.checkout_id <> ''"), *of_checkout)
    is_unsettled = mine.where(row.observed_revision < row.revision)
    is_lost = mine.where(
        row.observed_revision == row.revision,
        or_(row.granted_quantity < row.quantity, row.expire_time <= now, row.state.not_in((1, 2))),
    )
    state: ColumnElement[int] = checkouts.c.state
    waits = or_(
        state == literal_column("2"), and_(state == literal_column("1"), or_(not_(checkouts.c.is_ready), is_lost))
    )
    return (
        select(*(checkouts.c[name] for name in CHECKOUT))
        .where(running, waits, not_(is_unsettled))
        .order_by(checkouts.c.update_time)
    )


def _to_key(row: Row) -> CheckoutKey:
    return CheckoutKey(*row)
