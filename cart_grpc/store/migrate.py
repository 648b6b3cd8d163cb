"""Bringing a database to the schema of this release, and telling whether it is there.

Alembic is loaded only where there is something to migrate: it takes a fifth of the time that a server takes to start.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

if TYPE_CHECKING:
    from alembic.config import Config

_VERSIONS = Path(__file__).parent / "migrations" / "versions"
# Two replicas that start together migrate one after the other.
_LOCK = "SELECT pg_advisory_xact_lock(4849335204291)"


def config() -> "Config":
    """Alembic's configuration: the scripts inside this package."""
    from alembic.config import Config  # noqa: PLC0415 - see above

    alembic = Config()
    alembic.set_main_option("script_location", "cart_grpc.store:migrations")
    alembic.set_main_option("path_separator", "os")
    return alembic


def known_revisions() -> list[str]:
    """The revisions that this release has heard of, the latest last: each script's name begins with its own."""
    return sorted(path.name.partition("_")[0] for path in _VERSIONS.glob("[0-9]*.py"))


def latest_revision() -> str:
    """The revision that this release reads."""
    return known_revisions()[-1]


def current_revision(connection: Connection) -> str | None:
    """The revision that the database is at, None where it is empty."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def upgrade(connection: Connection) -> tuple[str | None, str]:
    """Bring the database to `latest_revision`, in the connection's transaction. Returns the revisions before and after.

    A database that is there already is left alone; one that is ahead (a newer release migrated it) is, too.
    """
    if connection.dialect.name == "postgresql":
        # An index on a large table takes longer than a call may, and so does waiting for a replica that makes one.
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
    """Whether this release has heard of a revision; a newer release may have migrated further."""
    return revision in known_revisions()
