"""Migrate a database to the schema of this release, and find out which schema it has.

Alembic is imported only if there is something to migrate: importing it takes a fifth of a server's start.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from cart_grpc.store import surroundings
from cart_grpc.store.failures import NotMigrated, Unsuitable
from cart_grpc.store.schema import VERSION_TABLE, metadata

if TYPE_CHECKING:
    from alembic.config import Config

_VERSIONS = Path(__file__).parent / "migrations" / "versions"
# An advisory lock: replicas that start at the same time migrate one after the other.
_LOCK = "SELECT pg_advisory_xact_lock(4849335204291)"


def config() -> "Config":
    """Return Alembic's configuration, which finds the scripts in this package."""
    from alembic.config import Config  # noqa: PLC0415 - see above

    alembic = Config()
    alembic.set_main_option("script_location", "cart_grpc.store:migrations")
    alembic.set_main_option("path_separator", "os")
    return alembic


def known_revisions() -> list[str]:
    """Return the revisions that this release knows, oldest first. The name of a script begins with its revision."""
    return sorted(path.name.partition("_")[0] for path in _VERSIONS.glob("[0-9]*.py"))


def latest_revision() -> str:
    """Return the revision that this release needs."""
    return known_revisions()[-1]


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the database, None if it has none of our tables.

    Raises Unsuitable if the revision is neither ours nor a newer release's, or if a table is missing.
    """
    tables = set(inspect(connection).get_table_names())
    present, missing = tables & set(metadata.tables), set(metadata.tables) - tables
    if VERSION_TABLE not in tables:
        if present:
            raise Unsuitable(f"another program has made {_names(present)} in it; use another database or schema")
        return None
    revisions = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalars().all()  # noqa: S608
    if len(revisions) != 1 or not (is_known(revisions[0]) or _is_newer(revisions[0])):
        found = ", ".join(revisions) or "no revision"
        raise Unsuitable(f"{VERSION_TABLE} contains {found}, which is not a revision of cart-grpc")
    revision = str(revisions[0])
    # An older release may have had fewer tables. A newer one keeps those that this release needs.
    if missing and (revision == latest_revision() or not is_known(revision)):
        raise Unsuitable(f"it lacks {_names(missing)}; restore a backup")
    return revision


def check_revision(connection: Connection) -> None:
    """Raise Unsuitable if this release cannot use the database's schema, NotMigrated if it can after a migration."""
    revision = current_revision(connection)
    if revision is None or (is_known(revision) and revision != latest_revision()):
        raise NotMigrated(f"it is at schema {revision or '(none)'}; run `cart-grpc migrate` first")


def upgrade(connection: Connection) -> tuple[str | None, str]:
    """Migrate to `latest_revision` in the connection's transaction. Return the revisions before and after.

    Does nothing if the database has that revision, or that of a newer release. Raises Unsuitable.
    """
    if connection.dialect.name == "postgresql":
        # An index on a large table takes longer than the usual timeouts, and so does waiting for another replica.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text(_LOCK))
    surroundings.check_encoding(connection)
    before = current_revision(connection)
    if before is not None and (before == latest_revision() or not is_known(before)):
        return before, before
    from alembic import command  # noqa: PLC0415 - see above

    alembic = config()
    alembic.attributes["connection"] = connection
    command.upgrade(alembic, "head")
    return before, current_revision(connection) or ""


def is_known(revision: str) -> bool:
    """Whether this release knows a revision. A newer release may have migrated further."""
    return revision in known_revisions()


def _is_newer(revision: str) -> bool:
    """Whether a revision has the form of ours and follows the latest that this release knows."""
    return bool(re.fullmatch(r"[0-9]{4}", revision)) and revision > latest_revision()


def _names(tables: set[str]) -> str:
    return f"the table{'s' if len(tables) > 1 else ''} {', '.join(sorted(tables))}"
