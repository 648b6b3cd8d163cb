"""The tables, for both databases.

Every key begins with `slice`, a small stable hash of the user (see `cart_grpc.names`). It costs nothing on one
database, and a distributed PostgreSQL can use it to shard. Times and durations are int64 microseconds. Guards in the
statements, and triggers behind them, keep the columns in RISING from decreasing.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    TextClause,
    and_,
    event,
    exists,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from cart_grpc.protocol.lanes import CHECKOUT_LANE, HOLD_LANE, RELEASE_LANE, Lane

metadata = MetaData(
    naming_convention={"ix": "%(table_name)s_%(column_0_N_name)s", "ck": "%(table_name)s_%(constraint_name)s"}
)
# Alembic's default, alembic_version, may belong to another program in the same database.
VERSION_TABLE = "cart_grpc_version"

# "C" orders text by its bytes, as SQLite and Python do, so locks and pages have the same order everywhere.
Name = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
# 64 bits on both databases. PostgreSQL's INTEGER has 32.
Int64 = BigInteger()
# Nothing that is raised one by one gets near it.
LAST = 2**62

users = Table(
    "users",
    metadata,
    Column("slice", SmallInteger, nullable=False),
    Column("user_id", Name, nullable=False),
    # The bytes that the user's carts, checkouts, replies and reservations count.
    Column("stored_bytes", Int64, nullable=False),
    # The carts that have not ended, their items, and the units of these.
    Column("cart_count", Int64, nullable=False),
    Column("item_count", Int64, nullable=False),
    Column("unit_count", Int64, nullable=False),
    # When an operator began to erase the user.
    Column("erase_time", Int64),
    PrimaryKeyConstraint("slice", "user_id", name="users_pkey"),
)

commit_markers = Table(
    "commit_markers",
    metadata,
    Column("slice", SmallInteger, nullable=False),
    Column("writer_id", Name, nullable=False),
    Column("batch_number", Int64, nullable=False),
    Column("update_time", Int64, nullable=False),
    PrimaryKeyConstraint("slice", "writer_id", name="commit_markers_pkey"),
)

replies = Table(
    "replies",
    metadata,
    Column("slice", SmallInteger, nullable=False),
    Column("user_id", Name, nullable=False),
    Column("request_id", Name, nullable=False),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("reply", LargeBinary, nullable=False),
    Column("create_time", Int64, nullable=False),
    PrimaryKeyConstraint("slice", "user_id", "request_id", name="replies_pkey"),
)

carts = Table(
    "carts",
    metadata,
    Column("slice", SmallInteger, nullable=False),
    Column("user_id", Name, nullable=False),
    Column("cart_id", Name, nullable=False),
    Column("uid", Name, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("labels", Text, nullable=False),
    Column("currency_code", Text, nullable=False),
    Column("owns_currency", Boolean, nullable=False),
    Column("ttl_us", Int64),
    Column("expire_time", Int64),
    Column("item_count", Int64, nullable=False),
    Column("priced_count", Int64, nullable=False),
    Column("total_quantity", Int64, nullable=False),
    Column("subtotal", Int64, nullable=False),
    Column("byte_size", Int64, nullable=False),
    Column("revision", Int64, nullable=False),
    Column("etag_revision", Int64, nullable=False),
    Column("create_time", Int64, nullable=False),
    Column("update_time", Int64, nullable=False),
    Column("checkout_id", Name, nullable=False),
    Column("merged_into", Name, nullable=False),
    PrimaryKeyConstraint("slice", "user_id", "cart_id", name="carts_pkey"),
    CheckConstraint("state BETWEEN 1 AND 6", name="state"),
    CheckConstraint(
        "priced_count BETWEEN 0 AND item_count AND total_quantity >= item_count AND subtotal >= 0", name="totals"
    ),
    CheckConstraint("etag_revision <= revision", name="etag_revision"),
)

items = Table(
    "items",
    metadata,
    Column("slice", SmallInteger, nullable=False),
    Column("user_id", Name, nullable=False),
    Column("cart_id", Name, nullable=False),
    Column("item_id", Name, nullable=False),
    Column("uid", Name, nullable=False),
    Column("sku", Name, nullable=False),
    Column("options", Text, nullable=False),
    Column("quantity", Int64, nullable=False),
    Column("unit_price", Int64),
    Column("labels", Text, nullable=False),
    Column("reservation_id", Name, nullable=False),
    Column("create_time", Int64, nullable=False),
    Column("update_time", Int64, nullable=False),
    PrimaryKeyConstraint("slice", "user_id", "cart_id", "item_id", name="items_pkey"),
    CheckConstraint("quantity >= 1", name="quantity"),
    CheckConstraint("unit_price >= 0", name="unit_price"),
)

reservations = Table(
    "reservations",
    metadata,
    Column("slice", SmallInteger, nullable=False),
    Column("reservation_id", Name, nullable=False),
    Column("user_id", Name, nullable=False),
    Column("cart_id", Name, nullable=False),
    Column("item_id", Name, nullable=False),
    Column("sku", Name, nullable=False),
    Column("quantity", Int64, nullable=False),
    Column("disposition", SmallInteger, nullable=False),
    Column("ttl_us", Int64, nullable=False),
    Column("revision", Int64, nullable=False),
    Column("intent_revision", Int64, nullable=False),
    Column("reserved_cap", Int64, nullable=False),
    Column("create_time", Int64, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("granted_quantity", Int64, nullable=False),
    Column("expire_time", Int64),
    Column("observed_revision", Int64, nullable=False),
    Column("reason", Text, nullable=False),
    Column("seal_reason", Text, nullable=False),
    Column("waiting", Boolean, nullable=False),
    Column("due_time", Int64),
    Column("attempt_count", Int64, nullable=False),
    Column("lease_epoch", Int64, nullable=False),
    Column("lease_expire_time", Int64),
    Column("last_error", Text, nullable=False),
    Column("finish_time", Int64),
    Column("uncertain_until", Int64),
    Column("set_aside_reason", Text, nullable=False),
    Column("checkout_id", Name, nullable=False),
    Column("superseded_by", Name, nullable=False),
    Column("supersedes", Boolean, nullable=False),
    Column("trace_context", Text),
    PrimaryKeyConstraint("slice", "reservation_id", name="reservations_pkey"),
    CheckConstraint("quantity >= 1", name="quantity"),
    CheckConstraint("disposition BETWEEN 1 AND 3", name="disposition"),
    CheckConstraint("state BETWEEN 0 AND 5", name="state"),
    CheckConstraint("observed_revision BETWEEN 0 AND revision", name="observed_revision"),
    CheckConstraint("intent_revision BETWEEN 1 AND revision", name="intent_revision"),
    CheckConstraint("granted_quantity >= 0", name="granted_quantity"),
    # PostgreSQL refuses to raise a number beyond 64 bits. SQLite would go on with a float.
    CheckConstraint(f"revision <= {LAST} AND lease_epoch <= {LAST} AND attempt_count <= {LAST}", name="last"),
)

checkouts = Table(
    "checkouts",
    metadata,
    Column("slice", SmallInteger, nullable=False),
    Column("user_id", Name, nullable=False),
    Column("checkout_id", Name, nullable=False),
    Column("cart_id", Name, nullable=False),
    Column("cart_uid", Name, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("is_ready", Boolean, nullable=False),
    Column("currency_code", Text, nullable=False),
    Column("subtotal", Int64, nullable=False),
    Column("item_count", Int64, nullable=False),
    Column("total_quantity", Int64, nullable=False),
    Column("order_reference", Name, nullable=False),
    Column("reason", Text, nullable=False),
    Column("byte_size", Int64, nullable=False),
    Column("hold_ttl_us", Int64, nullable=False),
    Column("etag_revision", Int64, nullable=False),
    Column("create_time", Int64, nullable=False),
    Column("update_time", Int64, nullable=False),
    Column("expire_time", Int64, nullable=False),
    PrimaryKeyConstraint("slice", "user_id", "checkout_id", name="checkouts_pkey"),
    CheckConstraint("state BETWEEN 1 AND 6", name="state"),
)

# The items that have passed to a checkout.
checkout_items = Table(
    "checkout_items",
    metadata,
    Column("slice", SmallInteger, nullable=False),
    Column("user_id", Name, nullable=False),
    Column("checkout_id", Name, nullable=False),
    Column("item_id", Name, nullable=False),
    Column("cart_id", Name, nullable=False),
    Column("uid", Name, nullable=False),
    Column("sku", Name, nullable=False),
    Column("options", Text, nullable=False),
    Column("quantity", Int64, nullable=False),
    Column("unit_price", Int64),
    Column("labels", Text, nullable=False),
    Column("reservation_id", Name, nullable=False),
    Column("create_time", Int64, nullable=False),
    Column("update_time", Int64, nullable=False),
    PrimaryKeyConstraint("slice", "user_id", "checkout_id", "item_id", name="checkout_items_pkey"),
    CheckConstraint("quantity >= 1", name="quantity"),
    CheckConstraint("unit_price >= 0", name="unit_price"),
)

# A row exists while an operator pauses what `name` says.
pauses = Table(
    "pauses",
    metadata,
    Column("slice", SmallInteger, nullable=False),
    Column("name", Name, nullable=False),
    Column("reason", Text, nullable=False),
    Column("create_time", Int64, nullable=False),
    PrimaryKeyConstraint("slice", "name", name="pauses_pkey"),
)

# One row, of slice 0, once the database's clock was set back: see `clock_steps`.
clock = Table(
    "clock",
    metadata,
    Column("slice", SmallInteger, nullable=False),
    Column("set_back_time", Int64, nullable=False),
    Column("set_back_us", Int64, nullable=False),
    Column("next_slice", SmallInteger, nullable=False),
    PrimaryKeyConstraint("slice", name="clock_pkey"),
)

RESERVATIONS_PAUSE = "reservations"
is_pause = and_(pauses.c.slice == 0, pauses.c.name == RESERVATIONS_PAUSE)
is_not_paused = ~exists().where(is_pause)

# The numbers are those of Disposition, as literals: a statement uses a partial index only if it repeats the index's
# condition. The conditions of the lanes are those of `protocol.lanes.lane_of`.
due = text("due_time IS NOT NULL AND disposition = 1 AND checkout_id = ''")
due_release = text("due_time IS NOT NULL AND disposition = 3")
due_checkout = text("due_time IS NOT NULL AND (disposition = 2 OR disposition = 1 AND checkout_id <> '')")
LANES: dict[Lane, TextClause] = {CHECKOUT_LANE: due_checkout, RELEASE_LANE: due_release, HOLD_LANE: due}
# Reservations of a cart. A superseded hold is still to be released.
reconciling = text(
    "(observed_revision < intent_revision OR superseded_by <> '') AND (checkout_id = '' OR disposition = 1)"
)

# For claims. Rows with nothing to do are in neither index, so they do not make a claim slower.
Index("reservations_due", reservations.c.due_time, sqlite_where=due, postgresql_where=due)
Index("reservations_due_release", reservations.c.due_time, sqlite_where=due_release, postgresql_where=due_release)
Index("reservations_due_checkout", reservations.c.due_time, sqlite_where=due_checkout, postgresql_where=due_checkout)
# For older holds of a sku that is added again, and for whether a cart is reconciling.
Index(
    "reservations_reconciling",
    *(reservations.c[name] for name in ("slice", "user_id", "cart_id", "sku")),
    sqlite_where=reconciling,
    postgresql_where=reconciling,
)
# For operators: these rows are due in neither index, and may be renewals, which do not count as reconciling.
set_aside = text("set_aside_reason <> ''")
Index("reservations_set_aside", reservations.c.create_time, sqlite_where=set_aside, postgresql_where=set_aside)
# For the erasure of a user: of the other reservations, the unfinished ones have an item or a checkout. AddItem does not
# pay for it.
ending = text("(disposition = 3 OR finish_time IS NOT NULL)")
Index(
    "reservations_ending",
    *(reservations.c[name] for name in ("slice", "user_id")),
    sqlite_where=ending,
    postgresql_where=ending,
)
# For the sweeper.
expiring = text("state = 1 AND expire_time IS NOT NULL")
finished = text("finish_time IS NOT NULL")
ended = text("state IN (2, 3, 5, 6)")
Index("carts_expire_time", carts.c.expire_time, sqlite_where=expiring, postgresql_where=expiring)
Index("carts_ended", carts.c.update_time, sqlite_where=ended, postgresql_where=ended)
Index("reservations_finished", reservations.c.finish_time, sqlite_where=finished, postgresql_where=finished)
Index("replies_create_time", replies.c.create_time)
# For a checkout, to find its reservations.
of_checkout = text("checkout_id <> ''")
Index(
    "reservations_checkout",
    *(reservations.c[name] for name in ("slice", "user_id", "checkout_id")),
    sqlite_where=of_checkout,
    postgresql_where=of_checkout,
)
# For the sweeper, and for operators: OPEN, COMPLETING and FAILED.
running = text("state IN (1, 2, 4)")
is_open = text("state = 1")
finished_checkouts = text("state IN (3, 5, 6)")
Index("checkouts_running", checkouts.c.state, checkouts.c.update_time, sqlite_where=running, postgresql_where=running)
Index("checkouts_open", checkouts.c.expire_time, sqlite_where=is_open, postgresql_where=is_open)
Index(
    "checkouts_finished", checkouts.c.update_time, sqlite_where=finished_checkouts, postgresql_where=finished_checkouts
)
# For lists.
Index("checkouts_create_time", *(checkouts.c[name] for name in ("slice", "user_id", "create_time", "checkout_id")))
has_order = text("order_reference <> ''")
Index("checkouts_order_reference", checkouts.c.order_reference, sqlite_where=has_order, postgresql_where=has_order)
# For the erasure of a user.
merged = text("merged_into <> ''")
Index("carts_merged_into", carts.c.merged_into, sqlite_where=merged, postgresql_where=merged)
erasing = text("erase_time IS NOT NULL")
Index("users_erase_time", users.c.erase_time, sqlite_where=erasing, postgresql_where=erasing)
Index("carts_create_time", *(carts.c[name] for name in ("slice", "user_id", "create_time", "cart_id")))
Index("carts_update_time", *(carts.c[name] for name in ("slice", "user_id", "update_time", "cart_id")))

RISING = {
    "reservations": ("revision", "intent_revision", "observed_revision", "lease_epoch"),
    "carts": ("revision", "etag_revision"),
    "checkouts": ("etag_revision",),
}


def rising_guards(dialect: str) -> list[str]:
    """Return the DDL of the triggers that keep the columns in RISING from decreasing, for `sqlite` or `postgresql`."""
    statements = []
    for table, columns in RISING.items():
        fallen = " OR ".join(f"NEW.{column} < OLD.{column}" for column in columns)
        complaint = f"{table}: {', '.join(columns)} only rise"
        if dialect == "sqlite":
            statements.append(
                f"CREATE TRIGGER {table}_only_rise BEFORE UPDATE ON {table} FOR EACH ROW WHEN {fallen} "
                f"BEGIN SELECT RAISE(ABORT, '{complaint}'); END"
            )
            continue
        statements.append(
            f"CREATE FUNCTION {table}_only_rise() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{complaint}' USING ERRCODE = 'check_violation'; END $$"
        )
        # After the update: before it, PostgreSQL would lock each row once more, and write that down in its log.
        statements.append(
            f"CREATE TRIGGER {table}_only_rise AFTER UPDATE ON {table} FOR EACH ROW "
            f"WHEN ({fallen}) EXECUTE FUNCTION {table}_only_rise()"
        )
    return statements


@event.listens_for(metadata, "after_create")
def _create_guards(_target: MetaData, connection: Connection, **_: object) -> None:
    for statement in rising_guards(connection.dialect.name):
        connection.exec_driver_sql(statement)
