"""The SQL of the write path: one function or constant for each statement. `queries` runs them.

`dialects` has the differences between SQLite and PostgreSQL.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Executable,
    Exists,
    FromClause,
    Select,
    SmallInteger,
    Table,
    Text,
    TextClause,
    Update,
    and_,
    bindparam,
    case,
    delete,
    exists,
    false,
    func,
    literal_column,
    not_,
    null,
    or_,
    select,
    tuple_,
    union,
    union_all,
    update,
)

from cart_grpc.carts.sizes import REPLY_ROOM, RESERVATION_BYTES
from cart_grpc.store import schema
from cart_grpc.store.dialects import KEYS, Dialect, Insert

# The keys by which rows are found.
USER = ("slice", "user_id")
REPLY = ("slice", "user_id", "request_id")
CART = ("slice", "user_id", "cart_id")
ITEM = ("slice", "user_id", "cart_id", "item_id")
RESERVATION = ("slice", "reservation_id")
# A reservation, if it still belongs to this user: the rows of other users are not to be locked.
OWNED_RESERVATION = ("slice", "user_id", "reservation_id")
SKU = ("slice", "user_id", "cart_id", "sku")
CLAIM = ("slice", "reservation_id", "lease_epoch")
CHECKOUT = ("slice", "user_id", "checkout_id")

# The tables that `load_batch` reads, in the order of its columns.
LOADED = (schema.users, schema.replies, schema.carts, schema.items, schema.reservations)
# The tables that `load_checkouts` reads, in the order of its columns.
LOADED_WITH_CHECKOUTS = (
    schema.checkouts,
    schema.checkout_items,
    schema.carts,
    schema.items,
    schema.reservations,
)
# The tables that a batch without checkouts writes. Replies come late: their primary key is the last constraint that can
# fail.
WRITTEN = (schema.users, schema.carts, schema.items, schema.reservations, schema.replies, schema.commit_markers)
WRITTEN_WITH_CHECKOUTS = (schema.checkouts, schema.checkout_items, *WRITTEN)


# --- Every batch --------------------------------------------------------------------------------------------------


def lock_users(dialect: Dialect) -> Executable:
    """Lock the rows of users, and insert missing ones. Returns the time, which is read after the locks are taken.

    A row that exists is locked and not changed, although the condition of the update is never true.
    """
    locked = _lock_users(dialect).returning(literal_column("1")).cte("locked")
    # Counting the locked rows makes the clock wait for the locks.
    return select(dialect.now(), func.count()).select_from(locked)


def lock_users_on_node(dialect: Dialect) -> Executable:
    """As `lock_users`, on a distributed PostgreSQL. It returns no time: the coordinator would read its own clock."""
    return dialect.on_node(_lock_users(dialect))


def _lock_users(dialect: Dialect) -> Insert:
    table = schema.users
    return _on_conflict_update(dialect.insert(table), table, {"stored_bytes": table.c.stored_bytes}, false())


def load_batch(dialect: Dialect, *, has_more: bool) -> Executable:
    """Read everything that a batch needs, and lock its reservations.

    `has_more`: the batch names whole carts or reservations, not only items and skus. Most do not. Returns one JSON text
    for each LOADED table, and whether claims are paused: this transaction may claim.
    """
    items, reservations = schema.items, schema.reservations
    of_batch = [dialect.select_by_keys(items, ITEM, "items")]
    if has_more:
        of_batch.append(dialect.select_by_keys(items, CART, "whole_carts"))
    found_items = union_all(*of_batch).cte("touched")
    named = [
        select(found_items.c.slice, found_items.c.reservation_id),
        dialect.select_by_keys(reservations, SKU, "skus", schema.reconciling, RESERVATION),
    ]
    if has_more:
        named += [
            dialect.select_by_keys(reservations, OWNED_RESERVATION, "reservations", only=RESERVATION),
            dialect.select_by_keys(reservations, CART, "whole_carts", schema.reconciling, RESERVATION),
        ]
    reservation_keys = union(*named).cte("named")
    found = (
        dialect.select_by_keys(schema.users, USER, "users"),
        dialect.select_by_keys(schema.replies, REPLY, "replies"),
        dialect.select_by_keys(schema.carts, CART, "carts"),
        select(found_items),
        _lock_reservations(dialect, reservation_keys),
    )
    return select(*map(dialect.json_rows, found), exists().where(schema.is_pause))


def load_skus(dialect: Dialect) -> Executable:
    """Read and lock the reconciling reservations of skus that only the loaded items named.

    A statement of its own: as a join in `load_batch`, SQLite would read every reconciling reservation to filter it.
    """
    named = dialect.select_by_keys(schema.reservations, SKU, KEYS, schema.reconciling, RESERVATION).cte("named")
    return select(dialect.json_rows(_lock_reservations(dialect, named)))


def load_checkouts(dialect: Dialect) -> Executable:
    """Read checkouts. Of those in `whole`, also read their items, or those of the frozen cart, and lock their rows.

    A statement of its own, because most batches name no checkout.
    """
    found = dialect.select_by_keys(schema.checkouts, CHECKOUT, "checkouts").cte("found")
    whole = dialect.select_by_keys(schema.checkouts, CHECKOUT, "whole").cte("whole")
    cart, on = dialect.join_by_index(schema.carts, CART, whole)
    is_frozen = and_(cart.c.state == literal_column("4"), cart.c.checkout_id == whole.c.checkout_id)
    carts = select(cart).select_from(whole.join(cart, on)).where(is_frozen).cte("frozen")
    item, on = dialect.join_by_index(schema.items, CART, carts)
    items = select(item).select_from(carts.join(item, on)).cte("of_cart")
    sold = dialect.select_by_keys(schema.checkout_items, CHECKOUT, "whole").cte("of_checkout")
    named = union(*(select(of.c.slice, of.c.reservation_id) for of in (items, sold))).cte("named")
    rows = (*map(select, (found, sold, carts, items)), _lock_reservations(dialect, named))
    return select(*map(dialect.json_rows, rows))


def delete_items(dialect: Dialect) -> Executable:
    """Delete items by key."""
    return delete(schema.items).where(dialect.in_keys(schema.items, ITEM))


def delete_reservations(dialect: Dialect) -> Executable:
    """Delete reservations by key: they have moved to another slice."""
    return delete(schema.reservations).where(dialect.in_keys(schema.reservations, RESERVATION))


def upsert(dialect: Dialect, table: Table) -> Insert:
    """Write whole rows of `table`, unless that would lower a column that only rises. Replies are inserted only."""
    statement = dialect.insert(table)
    if table is schema.replies:
        return statement
    values: dict[str, Any] = {
        column.name: statement.excluded[column.name] for column in table.columns if not column.primary_key
    }
    if table is schema.commit_markers:
        # A process that stops may commit after the clock was set back and before it notices. Its earlier commit must
        # still show that to the next process: see `find_set_back_since_commit`.
        earlier, later = table.c.update_time, values["update_time"]
        values["update_time"] = case((earlier > later, earlier), else_=later)
    rising = schema.RISING.get(table.name, ())
    guard = and_(*(table.c[name] <= statement.excluded[name] for name in rising)) if rising else None
    return _on_conflict_update(statement, table, values, guard)


# --- The reconciler -----------------------------------------------------------------------------------------------


def claim(dialect: Dialect, due: Any) -> Executable:
    """Claim due reservations of one lane, skipping locked rows, unless claims are paused. Returns the claimed rows."""
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
    # The same rule as `protocol.transitions.claim`, which says why.
    settled = table.c.observed_revision == table.c.revision
    live = and_(settled, table.c.expire_time > now)
    values = {
        "revision": table.c.revision + case((settled, 1), else_=0),
        "lease_epoch": table.c.lease_epoch + 1,
        "attempt_count": case((live, 1), else_=table.c.attempt_count + 1),
        "lease_expire_time": until,
        "due_time": until,
        "set_aside_reason": "",
    }
    # Check due_time again: the row may have changed between the snapshot and the lock.
    return update(table).where(chosen, table.c.due_time <= now).values(values).returning(table)


def claim_one(dialect: Dialect, due: TextClause) -> Executable:
    """As `claim`, but only the row with the key (slice, reservation_id, lease_epoch), if it is still due."""
    return claim(dialect, and_(due, dialect.in_keys(schema.reservations, CLAIM)))


def set_lease(dialect: Dialect) -> Executable:
    """Extend or end the leases of claims (slice, reservation_id, lease_epoch) that are still valid."""
    values = {"lease_expire_time": bindparam("until", type_=BigInteger), "due_time": bindparam("due", type_=BigInteger)}
    return _update_unlocked(dialect, values, schema.reservations.c.lease_expire_time.is_not(None))


def set_aside(dialect: Dialect) -> Executable:
    """Set a row (slice, reservation_id, lease_epoch) aside: no claim finds it. Returns the row's id."""
    values = {"lease_expire_time": null(), "due_time": null(), "set_aside_reason": bindparam("why", type_=Text)}
    statement = _update_unlocked(dialect, values, schema.reservations.c.due_time.is_not(None))
    return statement.returning(schema.reservations.c.reservation_id)


def _update_unlocked(dialect: Dialect, values: dict[str, Any], where: ColumnElement[bool]) -> Update:
    """Update rows (slice, reservation_id, lease_epoch) that fulfil `where` and that no transaction has locked."""
    table = schema.reservations
    valid = (
        select(*dialect.row_id(table))
        .where(dialect.in_keys(table, CLAIM), where)
        .with_for_update(skip_locked=True)
        .cte("mine")
    )
    return update(table).where(tuple_(*dialect.row_id(table)).in_(select(valid))).values(values)


def pause(dialect: Dialect) -> Executable:
    """Pause claims, or replace the reason of the pause."""
    statement = dialect.insert(schema.pauses)
    return _on_conflict_update(statement, schema.pauses, {"reason": statement.excluded.reason})


# End the pause.
RESUME = delete(schema.pauses).where(schema.is_pause)


# --- The sweeper --------------------------------------------------------------------------------------------------


def purge_replies(dialect: Dialect) -> Executable:
    """Delete replies that are older than their retention."""
    size = func.length(schema.replies.c.reply) + REPLY_ROOM
    return _purge(dialect, schema.replies.c.create_time, size)


def purge_reservations(dialect: Dialect) -> Executable:
    """Delete reservations that are released or committed for good and belong to no item, of a cart or checkout."""
    table = schema.reservations
    shown = has(schema.items, table, (*ITEM, "reservation_id"))
    sold = has(schema.checkout_items, table, (*CHECKOUT, "item_id", "reservation_id"))
    size: ColumnElement[int] = literal_column(str(RESERVATION_BYTES))
    return _purge(dialect, table.c.finish_time, size, schema.finished, not_(shown), not_(sold))


def purge_carts(dialect: Dialect) -> Executable:
    """Delete ended carts without items and without reconciling reservations."""
    table = schema.carts
    has_items = has(schema.items, table, CART)
    is_reconciling = has(schema.reservations, table, CART, schema.reconciling)
    return _purge(dialect, table.c.update_time, table.c.byte_size, schema.ended, not_(has_items), not_(is_reconciling))


def purge_checkouts(dialect: Dialect) -> Executable:
    """Delete checkouts that have ended. Also returns the id of each."""
    table = schema.checkouts
    return _purge(dialect, table.c.update_time, table.c.byte_size, schema.finished_checkouts, also=("checkout_id",))


def delete_checkout_items(dialect: Dialect) -> Executable:
    """Delete the items of checkouts by the keys of these."""
    return delete(schema.checkout_items).where(dialect.in_keys(schema.checkout_items, CHECKOUT))


def subtract_stored_bytes(dialect: Dialect) -> Executable:
    """Subtract the `stored_bytes` of the given rows from those of the same users, whose rows are locked."""
    table, statement = schema.users, dialect.insert(schema.users)
    purged = statement.excluded.stored_bytes
    rest = case((table.c.stored_bytes > purged, table.c.stored_bytes - purged), else_=0)
    return _on_conflict_update(statement, table, {"stored_bytes": rest})


def purge_users(dialect: Dialect) -> Executable:
    """Delete those of the given users for whom nothing is stored. `lock_users` inserts the row again."""
    users = schema.users
    return delete(users).where(dialect.in_keys(users, USER), users.c.stored_bytes == 0, users.c.erase_time.is_(None))


# --- The clock ----------------------------------------------------------------------------------------------------

# The row of `clock`. FOR UPDATE: one process at a time writes a step down, or applies it.
LOCK_CLOCK = select(schema.clock).where(schema.clock.c.slice == 0).with_for_update()
# The same, for a batch that must not commit while a step is applied.
SHARE_CLOCK = select(schema.clock).where(schema.clock.c.slice == 0).with_for_update(read=True)
# The time of the last commit of any process.
LAST_COMMIT_TIME = select(func.coalesce(func.max(schema.commit_markers.c.update_time), 0))
# Let no commit be later than `now`.
LIMIT_COMMIT_TIMES = (
    update(schema.commit_markers)
    .where(schema.commit_markers.c.update_time > bindparam("now", type_=BigInteger))
    .values(update_time=bindparam("now", type_=BigInteger))
)

# Let attempts that end after `after` and before `until` end at `until`. A row without any has no `uncertain_until`.
EXTEND_ATTEMPTS = (
    update(schema.reservations)
    .where(
        schema.reservations.c.uncertain_until > bindparam("after", type_=BigInteger),
        schema.reservations.c.uncertain_until < bindparam("until", type_=BigInteger),
    )
    .values(uncertain_until=bindparam("until", type_=BigInteger))
)


def move_times() -> Executable:
    """Move the times of reservations back by `by`, in slices from `first` to before `end`, but not to before `now`.

    A row with neither a due_time nor an attempt waits for nothing and holds nothing, unless it is set aside. Rows that
    were written after the step move, too: they are due early, which is safe. But `uncertain_until` is only cut to
    `latest`: to move it could end an attempt too early.
    """
    table, columns = schema.reservations, schema.reservations.c
    now, latest = bindparam("now", type_=BigInteger), bindparam("latest", type_=BigInteger)
    by = bindparam("by", type_=BigInteger)

    def moved(time: Column[Any]) -> Any:
        return case((time <= now, time), (time - by <= now, now), else_=time - by)

    moving = (columns.due_time, columns.lease_expire_time, columns.expire_time)
    values = {column.name: moved(column) for column in moving}
    values["uncertain_until"] = case((columns.uncertain_until > latest, latest), else_=columns.uncertain_until)
    in_slices = and_(
        columns.slice >= bindparam("first", type_=SmallInteger), columns.slice < bindparam("end", type_=SmallInteger)
    )
    waits = or_(columns.due_time.is_not(None), columns.uncertain_until.is_not(None), schema.set_aside)
    return update(table).where(in_slices, waits).values(values)


# --- Commit markers -----------------------------------------------------------------------------------------------

# The number of a writer's last committed batch. FOR UPDATE waits for a transaction of that writer that still runs.
FIND_BATCH_NUMBER = (
    select(schema.commit_markers.c.batch_number)
    .where(schema.commit_markers.c.slice == 0, schema.commit_markers.c.writer_id == bindparam("writer"))
    .with_for_update()
)
# Delete the markers of writers that have not committed for long.
DELETE_COMMIT_MARKERS = delete(schema.commit_markers).where(
    schema.commit_markers.c.update_time < bindparam("before", type_=BigInteger)
)


# --- Parts of statements ------------------------------------------------------------------------------------------


def has(other: Table, table: Table, columns: Sequence[str], where: Any = None) -> Exists:
    """Whether `other` has a row with the same `columns` as the row of `table`."""
    equal = [other.c[name] == table.c[name] for name in columns]
    return exists().where(*equal, *([] if where is None else [where]))


def _purge(
    dialect: Dialect, time: Column[Any], size: ColumnElement[int], *where: Any, also: Sequence[str] = ()
) -> Executable:
    """Delete the oldest rows by `time`, before a given time. Returns for each its user, its `size` and `also`.

    Locks the users, whose totals are to be updated. Skips rows that are locked or whose user is locked: waiting for
    them could deadlock, and the next purge finds them.
    """
    table = time.table
    over = (
        select(*dialect.row_id(table), *(table.c[name].label(f"owner_{name}") for name in USER))
        .where(*where, time < bindparam("before", type_=BigInteger))
        .order_by(time)
        .limit(bindparam("most", type_=BigInteger))
        .with_for_update(skip_locked=True, of=table)
        .cte("over")
    )
    owners = select(*(over.c[f"owner_{name}"].label(name) for name in USER)).distinct().cte("owners")
    user, on = dialect.join_by_index(schema.users, USER, owners, lock="skip")
    locked = select(*(owners.c[name] for name in USER)).select_from(owners.join(user, on)).cte("locked")
    is_locked = and_(*(over.c[f"owner_{name}"] == locked.c[name] for name in USER))
    chosen = select(*(over.c[each.name] for each in dialect.row_id(table))).select_from(over.join(locked, is_locked))
    purged = delete(table).where(tuple_(*dialect.row_id(table)).in_(chosen))
    return purged.returning(*(table.c[name] for name in USER), size.label("size"), *(table.c[name] for name in also))


def _lock_reservations(dialect: Dialect, keys: FromClause) -> Select[Any]:
    found, on = dialect.join_by_index(schema.reservations, RESERVATION, keys, lock="wait")
    return select(found).select_from(keys.join(found, on))


def _on_conflict_update(statement: Insert, table: Table, values: dict[str, Any], where: Any = None) -> Insert:
    primary_key = [column.name for column in table.primary_key]
    return statement.on_conflict_do_update(index_elements=primary_key, set_=values, where=where)
