"""Record which releases may use the database"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NAME = sa.Text().with_variant(sa.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("cart_grpc_version", sa.Column("oldest_revision", NAME, server_default="0001", nullable=False))
    op.add_column("commit_markers", sa.Column("schema_revision", NAME, nullable=True))
