"""The progress of erasures of users, for operators and for the sweeper, which makes the next step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Select, and_, bindparam, exists, func, literal_column, select, union

from cart_grpc.names import CartKey, CheckoutKey, UserKey
from cart_grpc.store.dialects import Dialect
from cart_grpc.store.engine import Engine
from cart_grpc.store.read.reader import Reader
from cart_grpc.store.schema import (
    carts,
    checkouts,
    ending,
    erasing,
    items,
    merged,
    of_checkout,
    reconciling,
    reservations,
    running,
    users,
)
from cart_grpc.store.statements import CART, RESERVATION

MAX_BLOCKING = 100
# Carts that are read for one step.
STEP_SIZE = 16


@dataclass(frozen=True, slots=True)
class Erasure:
    """The progress of an erasure.

    `begin_time` is None if nobody erases the user. `is_stored`: something is stored for the user. `blocking` are
    checkouts that have to finish first, at most MAX_BLOCKING. `open_carts` are ACTIVE ones, and `merged` are carts of
    others that were merged into the user's: up to STEP_SIZE of each. `unreleased_count` counts the reservations that
    are not finished.
    """

    user: UserKey
    begin_time: int | None
    is_stored: bool
    blocking: Sequence[CheckoutKey]
    open_carts: Sequence[CartKey]
    merged: Sequence[CartKey]
    cart_count: int
    unreleased_count: int


class Erasures:
    """The reads about erasures of one store."""

    def __init__(self, engine: Engine, reader: Reader) -> None:
        self._dialect = engine.dialect
        self._reader = reader
        # In any order: those that wait must not take the places of the others in every round.
        self._erasing = (
            select(users.c.slice, users.c.user_id)
            .where(erasing)
            .order_by(func.random())
            .limit(bindparam("most", type_=BigInteger))
        )

    async def find_users(self, limit: int) -> list[UserKey]:
        """Return up to `limit` users who are being erased. Raises DatabaseUnavailable."""
        return [UserKey(row.slice, row.user_id) for row in await self._reader.fetch_some(self._erasing, limit)]

    async def find(self, user: UserKey) -> Erasure:
        """Return the progress of the erasure of `user`. Raises DatabaseUnavailable.

        It reads in the order of the steps. A finished step stays finished, so an empty answer is also true later.
        """
        blocking = await self._reader.fetch(_select_blocking(user), {}, user.slice)
        open_carts = await self._reader.fetch(_select_open_carts(user), {}, user.slice)
        merged_carts = await self._reader.fetch_all(_select_merged(user), {})
        [totals] = await self._reader.fetch(_select_totals(user, self._dialect), {}, user.slice)
        return Erasure(
            user,
            totals.begin_time,
            bool(totals.has_row or totals.cart_count or totals.unreleased_count or merged_carts),
            [CheckoutKey(row.slice, row.user_id, row.checkout_id) for row in blocking],
            [_cart_key(row) for row in open_carts],
            [_cart_key(row) for row in merged_carts],
            totals.cart_count,
            totals.unreleased_count,
        )


def _cart_key(row: Any) -> CartKey:
    return CartKey(row.slice, row.user_id, row.cart_id)


def _of(table: Any, user: UserKey) -> Any:
    return and_(table.c.slice == user.slice, table.c.user_id == user.user_id)


def _select_blocking(user: UserKey) -> Select[Any]:
    key = (checkouts.c.slice, checkouts.c.user_id, checkouts.c.checkout_id)
    return select(*key).where(_of(checkouts, user), running).order_by(*key).limit(MAX_BLOCKING)


def _select_open_carts(user: UserKey) -> Select[Any]:
    key = [carts.c[name] for name in CART]
    return select(*key).where(_of(carts, user), carts.c.state == 1).order_by(*key).limit(STEP_SIZE)


def _select_merged(user: UserKey) -> Select[Any]:
    """Carts of others that name a cart of the user. The user's own carts are deleted anyway."""
    prefix = f"{user.name}/carts/"
    named = and_(merged, carts.c.merged_into >= prefix, carts.c.merged_into < prefix + "\x7f")
    return select(*(carts.c[name] for name in CART)).where(named, ~_of(carts, user)).limit(STEP_SIZE)


def _select_totals(user: UserKey, dialect: Dialect) -> Select[Any]:
    """The times and numbers of an erasure.

    No index has all reservations of a user. But each one that is not finished is to be released, is reconciling, has an
    item, or has a checkout.
    """
    row = reservations.c
    mine = select(row.reservation_id).where(_of(reservations, user), row.finish_time.is_(None))
    item_keys = select(items.c.slice, items.c.reservation_id).where(_of(items, user)).cte("item_keys")
    found, on = dialect.join_by_index(reservations, RESERVATION, item_keys)
    of_items = (
        select(found.c.reservation_id).select_from(item_keys.join(found, on)).where(found.c.finish_time.is_(None))
    )
    unreleased = union(mine.where(ending), mine.where(reconciling), mine.where(of_checkout), of_items).subquery()
    erase_time = select(users.c.erase_time).where(_of(users, user)).scalar_subquery()
    cart_count = select(func.count()).select_from(carts).where(_of(carts, user)).scalar_subquery()
    return select(
        erase_time.label("begin_time"),
        exists(select(literal_column("1")).select_from(users).where(_of(users, user))).label("has_row"),
        cart_count.label("cart_count"),
        select(func.count()).select_from(unreleased).scalar_subquery().label("unreleased_count"),
    )
