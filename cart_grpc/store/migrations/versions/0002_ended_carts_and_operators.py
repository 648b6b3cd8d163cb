"""Ended carts are purged, operators can pause, and what may still take effect is remembered"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# "C" orders text by its bytes, as SQLite and Python do.
NAME = sa.Text().with_variant(sa.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("reservations", sa.Column("uncertain_until", sa.BigInteger(), nullable=True))
    op.create_table(
        "pauses",
        sa.Column("slice", sa.SmallInteger(), nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("slice", "name", name="pauses_pkey"),
    )
    op.create_index(
        "carts_ended",
        "carts",
        ["update_time"],
        sqlite_where=sa.text("state IN (4, 6, 7, 8)"),
        postgresql_where=sa.text("state IN (4, 6, 7, 8)"),
    )
