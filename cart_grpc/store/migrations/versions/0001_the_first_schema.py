"""The first schema"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# "C" orders text by its bytes, as SQLite and Python do.
NAME = sa.Text().with_variant(sa.TEXT(collation="C"), "postgresql")
LAST = 2**62
RECONCILING = "(observed_revision < intent_revision OR superseded_by <> '') AND (checkout_id = '' OR disposition = 1)"
RISING = {
    "reservations": ("revision", "intent_revision", "observed_revision", "lease_epoch"),
    "carts": ("revision", "etag_revision"),
    "checkouts": ("etag_revision",),
}


def upgrade() -> None:
    op.create_table(
        "carts",
        sa.Column("slice", sa.SmallInteger(), nullable=False),
        sa.Column("user_id", NAME, nullable=False),
        sa.Column("cart_id", NAME, nullable=False),
        sa.Column("uid", NAME, nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("currency_code", sa.Text(), nullable=False),
        sa.Column("owns_currency", sa.Boolean(), nullable=False),
        sa.Column("ttl_us", sa.BigInteger(), nullable=True),
        sa.Column("expire_time", sa.BigInteger(), nullable=True),
        sa.Column("item_count", sa.BigInteger(), nullable=False),
        sa.Column("priced_count", sa.BigInteger(), nullable=False),
        sa.Column("total_quantity", sa.BigInteger(), nullable=False),
        sa.Column("subtotal", sa.BigInteger(), nullable=False),
        sa.Column("byte_size", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("etag_revision", sa.BigInteger(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.Column("checkout_id", NAME, nullable=False),
        sa.Column("merged_into", NAME, nullable=False),
        sa.CheckConstraint("etag_revision <= revision", name=op.f("carts_etag_revision")),
        sa.CheckConstraint(
            "priced_count BETWEEN 0 AND item_count AND total_quantity >= item_count AND subtotal >= 0",
            name=op.f("carts_totals"),
        ),
        sa.CheckConstraint("state BETWEEN 1 AND 6", name=op.f("carts_state")),
        sa.PrimaryKeyConstraint("slice", "user_id", "cart_id", name="carts_pkey"),
    )
    op.create_index(
        "carts_expire_time",
        "carts",
        ["expire_time"],
        sqlite_where=sa.text("state = 1 AND expire_time IS NOT NULL"),
        postgresql_where=sa.text("state = 1 AND expire_time IS NOT NULL"),
    )
    op.create_index(
        "carts_ended",
        "carts",
        ["update_time"],
        sqlite_where=sa.text("state IN (2, 3, 5, 6)"),
        postgresql_where=sa.text("state IN (2, 3, 5, 6)"),
    )
    op.create_index(
        "carts_merged_into",
        "carts",
        ["merged_into"],
        sqlite_where=sa.text("merged_into <> ''"),
        postgresql_where=sa.text("merged_into <> ''"),
    )
    op.create_index("carts_create_time", "carts", ["slice", "user_id", "create_time", "cart_id"])
    op.create_index("carts_update_time", "carts", ["slice", "user_id", "update_time", "cart_id"])

    op.create_table(
        "items",
        sa.Column("slice", sa.SmallInteger(), nullable=False),
        sa.Column("user_id", NAME, nullable=False),
        sa.Column("cart_id", NAME, nullable=False),
        sa.Column("item_id", NAME, nullable=False),
        sa.Column("uid", NAME, nullable=False),
        sa.Column("sku", NAME, nullable=False),
        sa.Column("options", sa.Text(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("unit_price", sa.BigInteger(), nullable=True),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("reservation_id", NAME, nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("quantity >= 1", name=op.f("items_quantity")),
        sa.CheckConstraint("unit_price >= 0", name=op.f("items_unit_price")),
        sa.PrimaryKeyConstraint("slice", "user_id", "cart_id", "item_id", name="items_pkey"),
    )
    op.create_table(
        "replies",
        sa.Column("slice", sa.SmallInteger(), nullable=False),
        sa.Column("user_id", NAME, nullable=False),
        sa.Column("request_id", NAME, nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("reply", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("slice", "user_id", "request_id", name="replies_pkey"),
    )
    op.create_index("replies_create_time", "replies", ["create_time"])
    op.create_table(
        "reservations",
        sa.Column("slice", sa.SmallInteger(), nullable=False),
        sa.Column("reservation_id", NAME, nullable=False),
        sa.Column("user_id", NAME, nullable=False),
        sa.Column("cart_id", NAME, nullable=False),
        sa.Column("item_id", NAME, nullable=False),
        sa.Column("sku", NAME, nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("disposition", sa.SmallInteger(), nullable=False),
        sa.Column("ttl_us", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("intent_revision", sa.BigInteger(), nullable=False),
        sa.Column("reserved_cap", sa.BigInteger(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("granted_quantity", sa.BigInteger(), nullable=False),
        sa.Column("expire_time", sa.BigInteger(), nullable=True),
        sa.Column("observed_revision", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("seal_reason", sa.Text(), nullable=False),
        sa.Column("waiting", sa.Boolean(), nullable=False),
        sa.Column("due_time", sa.BigInteger(), nullable=True),
        sa.Column("attempt_count", sa.BigInteger(), nullable=False),
        sa.Column("lease_epoch", sa.BigInteger(), nullable=False),
        sa.Column("lease_expire_time", sa.BigInteger(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.Column("finish_time", sa.BigInteger(), nullable=True),
        sa.Column("uncertain_until", sa.BigInteger(), nullable=True),
        sa.Column("set_aside_reason", sa.Text(), nullable=False),
        sa.Column("checkout_id", NAME, nullable=False),
        sa.Column("superseded_by", NAME, nullable=False),
        sa.Column("supersedes", sa.Boolean(), nullable=False),
        sa.CheckConstraint("disposition BETWEEN 1 AND 3", name=op.f("reservations_disposition")),
        sa.CheckConstraint("intent_revision BETWEEN 1 AND revision", name=op.f("reservations_intent_revision")),
        sa.CheckConstraint("granted_quantity >= 0", name=op.f("reservations_granted_quantity")),
        sa.CheckConstraint(
            f"revision <= {LAST} AND lease_epoch <= {LAST} AND attempt_count <= {LAST}", name=op.f("reservations_last")
        ),
        sa.CheckConstraint("observed_revision BETWEEN 0 AND revision", name=op.f("reservations_observed_revision")),
        sa.CheckConstraint("quantity >= 1", name=op.f("reservations_quantity")),
        sa.CheckConstraint("state BETWEEN 0 AND 5", name=op.f("reservations_state")),
        sa.PrimaryKeyConstraint("slice", "reservation_id", name="reservations_pkey"),
    )
    op.create_index(
        "reservations_due",
        "reservations",
        ["due_time"],
        sqlite_where=sa.text("due_time IS NOT NULL AND disposition = 1 AND checkout_id = ''"),
        postgresql_where=sa.text("due_time IS NOT NULL AND disposition = 1 AND checkout_id = ''"),
    )
    op.create_index(
        "reservations_due_checkout",
        "reservations",
        ["due_time"],
        sqlite_where=sa.text("due_time IS NOT NULL AND (disposition = 2 OR disposition = 1 AND checkout_id <> '')"),
        postgresql_where=sa.text("due_time IS NOT NULL AND (disposition = 2 OR disposition = 1 AND checkout_id <> '')"),
    )
    op.create_index(
        "reservations_checkout",
        "reservations",
        ["slice", "user_id", "checkout_id"],
        sqlite_where=sa.text("checkout_id <> ''"),
        postgresql_where=sa.text("checkout_id <> ''"),
    )
    op.create_index(
        "reservations_due_release",
        "reservations",
        ["due_time"],
        sqlite_where=sa.text("due_time IS NOT NULL AND disposition = 3"),
        postgresql_where=sa.text("due_time IS NOT NULL AND disposition = 3"),
    )
    op.create_index(
        "reservations_ending",
        "reservations",
        ["slice", "user_id"],
        sqlite_where=sa.text("(disposition = 3 OR finish_time IS NOT NULL)"),
        postgresql_where=sa.text("(disposition = 3 OR finish_time IS NOT NULL)"),
    )
    op.create_index(
        "reservations_finished",
        "reservations",
        ["finish_time"],
        sqlite_where=sa.text("finish_time IS NOT NULL"),
        postgresql_where=sa.text("finish_time IS NOT NULL"),
    )
    op.create_index(
        "reservations_reconciling",
        "reservations",
        ["slice", "user_id", "cart_id", "sku"],
        sqlite_where=sa.text(RECONCILING),
        postgresql_where=sa.text(RECONCILING),
    )
    op.create_index(
        "reservations_set_aside",
        "reservations",
        ["create_time"],
        sqlite_where=sa.text("set_aside_reason <> ''"),
        postgresql_where=sa.text("set_aside_reason <> ''"),
    )

    create_checkouts()
    op.create_table(
        "pauses",
        sa.Column("slice", sa.SmallInteger(), nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("slice", "name", name="pauses_pkey"),
    )
    op.create_table(
        "users",
        sa.Column("slice", sa.SmallInteger(), nullable=False),
        sa.Column("user_id", NAME, nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.Column("cart_count", sa.BigInteger(), nullable=False),
        sa.Column("item_count", sa.BigInteger(), nullable=False),
        sa.Column("unit_count", sa.BigInteger(), nullable=False),
        sa.Column("erase_time", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("slice", "user_id", name="users_pkey"),
    )
    op.create_index(
        "users_erase_time",
        "users",
        ["erase_time"],
        sqlite_where=sa.text("erase_time IS NOT NULL"),
        postgresql_where=sa.text("erase_time IS NOT NULL"),
    )
    op.create_table(
        "commit_markers",
        sa.Column("slice", sa.SmallInteger(), nullable=False),
        sa.Column("writer_id", NAME, nullable=False),
        sa.Column("batch_number", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("slice", "writer_id", name="commit_markers_pkey"),
    )
    op.create_table(
        "clock",
        sa.Column("slice", sa.SmallInteger(), nullable=False),
        sa.Column("set_back_time", sa.BigInteger(), nullable=False),
        sa.Column("set_back_us", sa.BigInteger(), nullable=False),
        sa.Column("next_slice", sa.SmallInteger(), nullable=False),
        sa.PrimaryKeyConstraint("slice", name="clock_pkey"),
    )

    for table, columns in RISING.items():
        keep_rising(table, columns)


def create_checkouts() -> None:
    """Create the tables of checkouts."""
    op.create_table(
        "checkouts",
        sa.Column("slice", sa.SmallInteger(), nullable=False),
        sa.Column("user_id", NAME, nullable=False),
        sa.Column("checkout_id", NAME, nullable=False),
        sa.Column("cart_id", NAME, nullable=False),
        sa.Column("cart_uid", NAME, nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("is_ready", sa.Boolean(), nullable=False),
        sa.Column("currency_code", sa.Text(), nullable=False),
        sa.Column("subtotal", sa.BigInteger(), nullable=False),
        sa.Column("item_count", sa.BigInteger(), nullable=False),
        sa.Column("total_quantity", sa.BigInteger(), nullable=False),
        sa.Column("order_reference", NAME, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("byte_size", sa.BigInteger(), nullable=False),
        sa.Column("hold_ttl_us", sa.BigInteger(), nullable=False),
        sa.Column("etag_revision", sa.BigInteger(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.Column("expire_time", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("state BETWEEN 1 AND 6", name=op.f("checkouts_state")),
        sa.PrimaryKeyConstraint("slice", "user_id", "checkout_id", name="checkouts_pkey"),
    )
    for name, columns, where in (
        ("checkouts_running", ["state", "update_time"], "state IN (1, 2, 4)"),
        ("checkouts_open", ["expire_time"], "state = 1"),
        ("checkouts_finished", ["update_time"], "state IN (3, 5, 6)"),
        ("checkouts_order_reference", ["order_reference"], "order_reference <> ''"),
    ):
        op.create_index(name, "checkouts", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
    op.create_index("checkouts_create_time", "checkouts", ["slice", "user_id", "create_time", "checkout_id"])
    op.create_table(
        "checkout_items",
        sa.Column("slice", sa.SmallInteger(), nullable=False),
        sa.Column("user_id", NAME, nullable=False),
        sa.Column("checkout_id", NAME, nullable=False),
        sa.Column("item_id", NAME, nullable=False),
        sa.Column("cart_id", NAME, nullable=False),
        sa.Column("uid", NAME, nullable=False),
        sa.Column("sku", NAME, nullable=False),
        sa.Column("options", sa.Text(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("unit_price", sa.BigInteger(), nullable=True),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("reservation_id", NAME, nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("quantity >= 1", name=op.f("checkout_items_quantity")),
        sa.CheckConstraint("unit_price >= 0", name=op.f("checkout_items_unit_price")),
        sa.PrimaryKeyConstraint("slice", "user_id", "checkout_id", "item_id", name="checkout_items_pkey"),
    )


def keep_rising(table: str, columns: tuple[str, ...]) -> None:
    """Create the triggers that reject an update which decreases a column. The statements have guards of their own."""
    fallen = " OR ".join(f"NEW.{column} < OLD.{column}" for column in columns)
    complaint = f"{table}: {', '.join(columns)} only rise"
    if op.get_context().dialect.name == "sqlite":
        op.execute(
            f"CREATE TRIGGER {table}_only_rise BEFORE UPDATE ON {table} FOR EACH ROW WHEN {fallen} "
            f"BEGIN SELECT RAISE(ABORT, '{complaint}'); END"
        )
        return
    op.execute(
        f"CREATE FUNCTION {table}_only_rise() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{complaint}' USING ERRCODE = 'check_violation'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_only_rise AFTER UPDATE ON {table} FOR EACH ROW "
        f"WHEN ({fallen}) EXECUTE FUNCTION {table}_only_rise()"
    )
