"""Migrate a database to the schema of this release, and find out which schema it has.

Alembic is imported only if there is something to migrate: importing it takes a fifth of a server's start.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

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
    """Return the revision of the database, None if it is empty."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def upgrade(connection: Connection) -> tuple[str | None, str]:
    """Migrate to `latest_revision` in the connection's transaction. Return the revisions before and after.

    Does nothing if the database has that revision, or one that this release does not know: a newer release migrated it.
    """
    if connection.dialect.name == "postgresql":
        # An index on a large table takes longer than the usual timeouts, and so does waiting for another replica.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text(_LOCK))
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
