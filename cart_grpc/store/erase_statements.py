"""The SQL that deletes the rows of a user who is being erased. `queries` runs it.

Each statement deletes only finished reservations, and carts and checkouts that have ended. So a call that comes too
early deletes nothing that is still needed.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Executable, Table, Text, and_, bindparam, delete, select, tuple_

from cart_grpc.store.dialects import Dialect
from cart_grpc.store.schema import (
    carts,
    checkout_items,
    checkouts,
    ended,
    ending,
    finished,
    finished_checkouts,
    items,
    replies,
    reservations,
    running,
    users,
)
from cart_grpc.store.statements import has


def lock_user() -> Executable:
    """Lock the user's row, if it is marked and no other transaction has locked it: waiting for it could deadlock."""
    marked = (_of_user(users), users.c.erase_time.is_not(None))
    return select(users.c.user_id).where(*marked).with_for_update(skip_locked=True)


def delete_rows(dialect: Dialect) -> Sequence[Executable]:
    """Delete up to `most` rows of the user from each table but `users`."""
    of_running = has(checkouts, checkout_items, ("slice", "user_id", "checkout_id"), running)
    of_cart = has(carts, items, ("slice", "user_id", "cart_id"))
    return (
        _delete(dialect, replies),
        _delete(dialect, checkout_items, ~of_running),
        _delete(
            dialect, checkouts, finished_checkouts, ~has(checkout_items, checkouts, ("slice", "user_id", "checkout_id"))
        ),
        _delete(dialect, reservations, ending, finished),
        _delete(dialect, carts, ended),
        # There are none, unless the database was changed by hand.
        _delete(dialect, items, ~of_cart),
    )


def delete_user() -> Executable:
    """Delete the user's row if nothing else of the user is left."""
    left = (has(table, users, ("slice", "user_id")) for table in (replies, checkout_items, checkouts, items, carts))
    some = has(reservations, users, ("slice", "user_id"), ending)
    return delete(users).where(_of_user(users), users.c.erase_time.is_not(None), ~some, *(~each for each in left))


def _of_user(table: Table) -> ColumnElement[bool]:
    return and_(table.c.slice == bindparam("slice", type_=BigInteger), table.c.user_id == bindparam("user", type_=Text))


def _delete(dialect: Dialect, table: Table, *where: Any) -> Executable:
    row_id = dialect.row_id(table)
    chosen = select(*row_id).where(_of_user(table), *where).limit(bindparam("most", type_=BigInteger))
    return delete(table).where(tuple_(*row_id).in_(chosen))
