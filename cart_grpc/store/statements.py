"""Every statement of the write path, built once for a dialect."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Executable,
    Exists,
    FromClause,
    Select,
    Table,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal_column,
    not_,
    or_,
    select,
    tuple_,
    union,
    union_all,
    update,
)

from cart_grpc.commands.unit_of_work import ReadSet
from cart_grpc.names import UserKey
from cart_grpc.protocol.lanes import HOLD_LANE, RELEASE_LANE, Lane
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.store import schema
from cart_grpc.store.dialects import KEYS, Dialect, Insert, Key
from cart_grpc.store.prepared import Prepared, Rows
from cart_grpc.store.rows import to_reservation

USER = ("slice", "user_id")
REPLY = ("slice", "user_id", "request_id")
CART = ("slice", "user_id", "cart_id")
ITEM = ("slice", "user_id", "cart_id", "item_id")
RESERVATION = ("slice", "reservation_id")
SKU = ("slice", "user_id", "cart_id", "sku")
CLAIM = ("slice", "reservation_id", "lease_epoch")

_GET_MARK = (
    select(schema.writers.c.batch)
    .where(schema.writers.c.slice == 0, schema.writers.c.writer_id == bindparam("writer"))
    .with_for_update()
)
_RESUME = delete(schema.pauses).where(schema.is_pause)
_FORGET_WRITERS = delete(schema.writers).where(schema.writers.c.update_time < bindparam("before", type_=BigInteger))


# In this order: the reply's primary key is the last that can refuse.
WRITTEN = (schema.carts, schema.items, schema.reservations, schema.replies, schema.writers)
_ITEM_SKU = schema.items.columns.keys().index("sku")
LOADED = (schema.replies, schema.carts, schema.items, schema.reservations)


def mark_row(writer: str, number: int, now: int) -> tuple[Any, ...]:
    """The row that says that `writer` has come to batch `number`."""
    return (0, writer, number, now)


class LostUpdate(Exception):
    """A guarded write found a newer row under a lock that should have kept others out: a bug, and nothing is kept."""


class Statements:
    """What the write path says to a database.

    The statements that take many rows have the same text for any number of them, so each is compiled and prepared
    once.
    """

    def __init__(self, dialect: Dialect, *, lock_users: bool) -> None:
        self._dialect = dialect
        self._lock_users = lock_users
        self._lock = Prepared(_lock(dialect))
        self._load = Prepared(_load(dialect))
        self._load_skus = Prepared(_load_skus(dialect))
        self._delete_items = Prepared(delete(schema.items).where(dialect.in_keys(schema.items, ITEM)))
        self._writer = dialect.row_writer({table.name: _upsert(dialect, table) for table in WRITTEN})
        self._claims: dict[Lane, Executable] = {
            HOLD_LANE: _claim(dialect, schema.due),
            RELEASE_LANE: _claim(dialect, schema.due_release),
        }
        self._lease = _lease(dialect)
        pause = dialect.insert(schema.pauses)
        self._pause = _on_conflict(pause, schema.pauses, {"reason": pause.excluded.reason}, None)
        self._purges = (_purge_replies(dialect), _purge_reservations(dialect), _purge_carts(dialect))
        self._purge_users = _purge_users(dialect)

    def lock_users(self, connection: Connection, users: Collection[UserKey]) -> int:
        """Lock the users' rows in one order, the same for every replica: batches that lock in no order deadlock.

        SQLite has the whole file locked by BEGIN IMMEDIATE. Returns the database's time, in microseconds, once locked.
        """
        if not users or not self._lock_users:
            return self.read_now(connection)
        rows = self._dialect.bind_rows(schema.users, [(*user, 1) for user in sorted(users)])
        ((now, _),) = self._lock.fetch(connection, cast("Mapping[str, Any]", rows))
        return int(now)

    def read_now(self, connection: Connection) -> int:
        """The database's time in microseconds."""
        return self._dialect.read_now(connection)

    def load(self, connection: Connection, reads: ReadSet) -> Mapping[str, Rows]:
        """What a batch reads, by table: with an item its reservation, with a sku those that are reconciling.

        Reservations are locked: a claim takes no user's lock, and what it writes must not be written over.
        """
        keys = {
            "replies": (REPLY, [(*user, name) for user, name in reads.replies]),
            "carts": (CART, reads.carts),
            "whole_carts": (CART, reads.whole_carts),
            "items": (ITEM, [(*cart, item_id) for cart, item_id in reads.items]),
            "reservations": (RESERVATION, [(cart.slice, name) for cart, name in reads.reservations]),
            "skus": (SKU, [(*cart, sku) for cart, sku in reads.skus]),
        }
        parameters: dict[str, Any] = {}
        for name, (columns, wanted) in keys.items():
            parameters.update(self._dialect.bind_keys(columns, wanted, name))
        (row,) = self._load.fetch(connection, parameters)
        found = {table.name: json.loads(text) for table, text in zip(LOADED, row, strict=True)}
        # A change of an item that was named without its sku.
        skus = {(*item[:3], item[_ITEM_SKU]) for item in found["items"]} - {(*cart, sku) for cart, sku in reads.skus}
        if skus:
            ((text,),) = self._load_skus.fetch(connection, self._dialect.bind_keys(SKU, skus))
            found["reservations"] += json.loads(text)
        return found

    def write(self, connection: Connection, rows: Mapping[str, Rows]) -> None:
        """Write whole rows, by table. Raises LostUpdate where what only rises would have fallen."""
        written = self._writer.write(connection, rows)
        for name, wanted in rows.items():
            if written.get(name, 0) != len(wanted):
                raise LostUpdate(f"{name}: {written.get(name)} of {len(wanted)} rows were written")

    def delete_items(self, connection: Connection, keys: Sequence[Key]) -> None:
        if keys:
            self._dialect.force_custom_plan(connection)
            self._delete_items.fetch(connection, self._dialect.bind_keys(ITEM, keys))

    def claim(self, connection: Connection, lane: Lane, limit: int, now: int, lease: int) -> list[Reservation]:
        """Claim up to `limit` due reservations of `lane` for `lease` microseconds, raising epoch and attempt."""
        self._dialect.force_custom_plan(connection)
        rows = connection.execute(self._claims[lane], {"now": now, "until": now + lease, "most": limit}).all()
        return [to_reservation(row) for row in rows]

    def purge(
        self, connection: Connection, replies_before: int, reservations_before: int, carts_before: int, limit: int
    ) -> int:
        """Delete up to `limit` of the replies, finished reservations and carts that ended before. Returns how many.

        With its last cart and reply a user's row goes, too.
        """
        self._dialect.force_custom_plan(connection)
        deleted = 0
        purges = zip(self._purges, (replies_before, reservations_before, carts_before), strict=True)
        for statement, before in purges:
            rows = connection.execute(statement, {"before": before, "most": limit}).all()
            deleted += len(rows)
            users = sorted({(row.slice, row.user_id) for row in rows})
            if users and self._lock_users:
                connection.execute(self._purge_users, self._dialect.bind_keys(USER, users))
        return deleted

    def pause(self, connection: Connection, reason: str, now: int) -> None:
        """Let nobody claim anything, for `reason`. The time at which it was first said stays."""
        row = (0, schema.RESERVATIONS_PAUSE, reason, now)
        connection.execute(self._pause, self._dialect.bind_rows(schema.pauses, [row]))

    def resume(self, connection: Connection) -> None:
        """Let claims be made again."""
        connection.execute(_RESUME)

    def mark(self, connection: Connection, writer: str, number: int, now: int) -> None:
        """Note in the transaction itself that `writer` has come to batch `number`."""
        self.write(connection, {"writers": [mark_row(writer, number, now)]})

    def find_mark(self, connection: Connection, writer: str) -> int | None:
        """The number of the last batch that `writer` committed. Waits for a transaction of its that is still going."""
        number: int | None = connection.execute(_GET_MARK, {"writer": writer}).scalar_one_or_none()
        return number

    def forget_writers(self, connection: Connection, before: int) -> None:
        """Delete the marks of writers that have not committed since `before`: their processes are gone."""
        connection.execute(_FORGET_WRITERS, {"before": before})

    def set_lease(
        self, connection: Connection, claims: Sequence[Key], lease_expire_time: int | None, due_time: int
    ) -> None:
        """ExtendLeases or hand back claims (slice, reservation_id, lease_epoch) that are still ours.

        Rows that somebody else has locked are passed over: waiting for them could deadlock, and a lease only
        saves work.
        """
        if claims:
            self._dialect.force_custom_plan(connection)
            keys = self._dialect.bind_keys(CLAIM, claims)
            connection.execute(self._lease, {**keys, "until": lease_expire_time, "due": due_time})


def _purge_replies(dialect: Dialect) -> Executable:
    return _purge(dialect, schema.replies.c.create_time)


def _purge_reservations(dialect: Dialect) -> Executable:
    """What is released or sold for good, and no item shows any more."""
    table = schema.reservations
    shown = _has(schema.items, table, (*ITEM, "reservation_id"))
    return _purge(dialect, table.c.finish_time, schema.finished, not_(shown))


def _purge_carts(dialect: Dialect) -> Executable:
    """Carts that have ended, hold no item that was sold and have nothing left to release."""
    table = schema.carts
    sold = _has(schema.items, table, CART)
    releasing = _has(schema.reservations, table, CART, schema.reconciling)
    return _purge(dialect, table.c.update_time, schema.ended, not_(sold), not_(releasing))


def _purge_users(dialect: Dialect) -> Executable:
    """Those of the given users who have nothing left. A row is only there to be locked, and made anew when needed."""
    table = schema.users
    kept = or_(_has(schema.carts, table, USER), _has(schema.replies, table, USER))
    gone = (
        select(*dialect.row_id(table))
        .where(dialect.in_keys(table, USER), not_(kept))
        .with_for_update(skip_locked=True, of=table)
        .cte("gone")
    )
    return delete(table).where(tuple_(*dialect.row_id(table)).in_(select(gone)))


def _has(other: Table, table: Table, columns: Sequence[str], among: Any = None) -> Exists:
    """Whether `other` has a row with the same `columns` as the row of `table`."""
    same = [other.c[name] == table.c[name] for name in columns]
    return exists().where(*same, *([] if among is None else [among]))


def _purge(dialect: Dialect, time: Column[Any], *over: Any) -> Executable:
    """Delete a few rows whose `time` has passed and that are `over`, without waiting for those that others have locked.

    Answered with their owners.
    """
    table = time.table
    chosen = (
        select(*dialect.row_id(table))
        .where(*over, time < bindparam("before", type_=BigInteger))
        .order_by(time)
        .limit(bindparam("most", type_=BigInteger))
        .with_for_update(skip_locked=True, of=table)
        .cte("over")
    )
    owners = (table.c[name] for name in USER)
    return delete(table).where(tuple_(*dialect.row_id(table)).in_(select(chosen))).returning(*owners)


def _lock(dialect: Dialect) -> Executable:
    """Lock users and tell the time: it is read from what was locked, so not before."""
    lock = dialect.insert(schema.users)
    locked = _on_conflict(lock, schema.users, {"lock_count": schema.users.c.lock_count + 1}, None)
    users = locked.returning(literal_column("1")).cte("locked")
    return select(dialect.now(), func.count()).select_from(users)


def _load(dialect: Dialect) -> Executable:
    """All that a batch needs in one statement, a JSON text a table."""
    items, reservations = schema.items, schema.reservations
    touched = union_all(
        dialect.select_by_keys(items, ITEM, "items"), dialect.select_by_keys(items, CART, "whole_carts")
    ).cte("touched")
    named = union(
        _only(RESERVATION, dialect.select_by_keys(reservations, RESERVATION, "reservations")),
        select(touched.c.slice, touched.c.reservation_id),
        _only(RESERVATION, dialect.select_by_keys(reservations, SKU, "skus", schema.reconciling)),
        _only(RESERVATION, dialect.select_by_keys(reservations, CART, "whole_carts", schema.reconciling)),
    ).cte("named")
    found = (
        dialect.select_by_keys(schema.replies, REPLY, "replies").subquery(),
        dialect.select_by_keys(schema.carts, CART, "carts").subquery(),
        touched,
        _locked(dialect, named),
    )
    return select(*(dialect.json_rows(rows, list(rows.c)) for rows in found))


def _locked(dialect: Dialect, named: FromClause) -> FromClause:
    found, on = dialect.join_by_index(schema.reservations, RESERVATION, named, lock=True)
    return select(found).select_from(named.join(found, on)).subquery()


def _only(columns: Sequence[str], rows: Select[Any]) -> Select[Any]:
    return rows.with_only_columns(*(rows.selected_columns[name] for name in columns))


def _load_skus(dialect: Dialect) -> Executable:
    """Joined to the items in `_load`, SQLite would read all that is reconciling to filter it."""
    named = _only(RESERVATION, dialect.select_by_keys(schema.reservations, SKU, KEYS, schema.reconciling)).cte("named")
    rows = _locked(dialect, named)
    return select(dialect.json_rows(rows, list(rows.c)))


def _upsert(dialect: Dialect, table: Table) -> Insert:
    statement = dialect.insert(table)
    if table is schema.replies:
        return statement
    values = {column.name: statement.excluded[column.name] for column in table.columns if not column.primary_key}
    rising = schema.RISING.get(table.name, ())
    guard = and_(*(table.c[name] <= statement.excluded[name] for name in rising)) if rising else None
    return _on_conflict(statement, table, values, guard)


def _on_conflict(statement: Insert, table: Table, values: dict[str, Any], guard: Any) -> Insert:
    primary_key = [column.name for column in table.primary_key]
    return statement.on_conflict_do_update(index_elements=primary_key, set_=values, where=guard)


def _claim(dialect: Dialect, due: Any) -> Executable:
    """Claim what is due and not paused, skipping what others have locked. The outer UPDATE checks that again."""
    table = schema.reservations
    now, until = bindparam("now", type_=BigInteger), bindparam("until", type_=BigInteger)
    candidates = (
        select(*dialect.row_id(table))
        .where(due, table.c.due_time <= now, schema.is_not_paused)
        .order_by(table.c.due_time)
        .limit(bindparam("most", type_=BigInteger))
        .with_for_update(skip_locked=True)
        .cte("candidates")
    )
    chosen = tuple_(*dialect.row_id(table)).in_(select(candidates))
    # What is due though it is settled is a hold to renew: the same intent, one revision later. Attempts begin anew
    # only where it still holds, so that an API that grants what has run out already is asked ever less often.
    settled = table.c.observed_revision == table.c.revision
    holding = and_(settled, table.c.expire_time > now)
    values = {
        "revision": table.c.revision + case((settled, 1), else_=0),
        "lease_epoch": table.c.lease_epoch + 1,
        "attempt_count": case((holding, 1), else_=table.c.attempt_count + 1),
        "lease_expire_time": until,
        "due_time": until,
    }
    return update(table).where(chosen, table.c.due_time <= now).values(values).returning(table)


def _lease(dialect: Dialect) -> Executable:
    table = schema.reservations
    mine = (
        select(*dialect.row_id(table))
        .where(dialect.in_keys(table, CLAIM), table.c.lease_expire_time.is_not(None))
        .with_for_update(skip_locked=True)
        .cte("mine")
    )
    chosen = tuple_(*dialect.row_id(table)).in_(select(mine))
    values = {"lease_expire_time": bindparam("until", type_=BigInteger), "due_time": bindparam("due", type_=BigInteger)}
    return update(table).where(chosen).values(values)
