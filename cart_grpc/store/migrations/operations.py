"""The operations of migrations that Alembic lacks: an index that is built while callers write, and a contraction."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from cart_grpc.store.schema import VERSION_TABLE, commit_markers

_FUNCTION = f"{commit_markers.name}_refuse_old_releases"
# Every release treats this code as a database that it may not use: its calls are UNAVAILABLE, it is not ready, and its
# start fails with the text.
_ERRCODE = "insufficient_privilege"


def build_index(name: str, table: str, columns: Sequence[str], where: str | None = None) -> None:
    """Create an index on a table that may be large, while callers write. The migration needs `transactional = False`.

    A build that was cut off leaves an invalid index, which `migrate` drops first.
    """
    condition = sa.text(where) if where else None
    op.create_index(
        name,
        table,
        columns,
        if_not_exists=True,
        postgresql_concurrently=True,
        postgresql_where=condition,
        sqlite_where=condition,
    )


def refuse_releases_before(oldest_revision: str) -> None:
    """Let no release write whose schema is older than `oldest_revision`. A contracting migration begins with this.

    Each transaction that writes inserts a commit marker. So the database itself refuses a process that was cut off and
    comes back after the migration.
    """
    op.execute(f"UPDATE {VERSION_TABLE} SET oldest_revision = '{oldest_revision}'")  # noqa: S608 - our own constants
    refusal = f"this release of cart-grpc is too old for the database: start one with schema {oldest_revision} or newer"
    is_old = f"NEW.schema_revision IS NULL OR NEW.schema_revision < '{oldest_revision}'"
    head = f"CREATE TRIGGER refuse_old_releases BEFORE INSERT ON {commit_markers.name} FOR EACH ROW WHEN"
    op.execute(f"DROP TRIGGER IF EXISTS refuse_old_releases{_on(commit_markers.name)}")
    if op.get_context().dialect.name == "sqlite":
        op.execute(f"{head} {is_old} BEGIN SELECT RAISE(ABORT, '{refusal}'); END")
        return
    op.execute(
        f"CREATE OR REPLACE FUNCTION {_FUNCTION}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{refusal}' USING ERRCODE = '{_ERRCODE}'; END $$"
    )
    op.execute(f"{head} ({is_old}) EXECUTE FUNCTION {_FUNCTION}()")


def _on(table: str) -> str:
    return f" ON {table}" if op.get_context().dialect.name == "postgresql" else ""
