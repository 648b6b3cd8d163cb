"""Reads a database into the form that the checks use."""

from collections import ChainMap, defaultdict
from collections.abc import Sequence
from itertools import chain

from sqlalchemy import Connection, select

from cart_grpc.carts.model import UserTotals
from cart_grpc.names import UserKey
from cart_grpc.store import rows, schema
from tests.invariants.history import Dump


def read_dump(connection: Connection) -> Dump:
    """All carts, items, reservations, replies and checkouts, and the users' totals."""
    sold = defaultdict(list)
    for key, item in map(rows.to_checkout_item, connection.execute(select(schema.checkout_items))):
        sold[key].append(item)
    replies = connection.execute(select(schema.replies)).all()
    users = map(rows.USERS.to_value, connection.execute(select(schema.users)))
    return Dump(
        carts=[rows.to_cart(row) for row in connection.execute(select(schema.carts))],
        items=[rows.to_item(row) for row in connection.execute(select(schema.items))],
        reservations=[rows.to_reservation(row) for row in connection.execute(select(schema.reservations))],
        replies={(UserKey(row.slice, row.user_id).name, row.request_id): row.reply for row in replies},
        totals={user.name: UserTotals(*totals) for user, *totals, _ in users},
        checkouts=[rows.CHECKOUTS.to_value(row) for row in connection.execute(select(schema.checkouts))],
        sold_items=sold,
    )


def merge_dumps(parts: Sequence[Dump]) -> Dump:
    """The whole of a database, from those of its shards."""
    return Dump(
        carts=list(chain.from_iterable(part.carts for part in parts)),
        items=list(chain.from_iterable(part.items for part in parts)),
        reservations=list(chain.from_iterable(part.reservations for part in parts)),
        replies=dict(ChainMap(*(dict(part.replies) for part in parts))),
        totals=dict(ChainMap(*(dict(part.totals) for part in parts))),
        checkouts=list(chain.from_iterable(part.checkouts for part in parts)),
        sold_items=dict(ChainMap(*(dict(part.sold_items) for part in parts))),
    )
