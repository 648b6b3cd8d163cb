"""The trace context of the call that last changed a reservation's intent"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nullable and without a default: no row is written, and a release that does not know the column can insert.
    op.add_column("reservations", sa.Column("trace_context", sa.Text(), nullable=True))
