"""Bringing a database to the schema of this release, and telling whether it is there."""

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

# Two replicas that start together migrate one after the other.
_LOCK = "SELECT pg_advisory_xact_lock(4849335204291)"


def config() -> Config:
    """Alembic's configuration: the scripts inside this package."""
    alembic = Config()
    alembic.set_main_option("script_location", "cart_grpc.store:migrations")
    alembic.set_main_option("path_separator", "os")
    return alembic


def latest_revision() -> str:
    """The revision that this release needs."""
    head = ScriptDirectory.from_config(config()).get_current_head()
    if head is None:
        raise LookupError("the package has no migrations")
    return head


def current_revision(connection: Connection) -> str | None:
    """The revision that the database is at, None where it is empty."""
    return MigrationContext.configure(connection).get_current_revision()


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
    if before is None or is_known(before):
        alembic = config()
        alembic.attributes["connection"] = connection
        command.upgrade(alembic, "head")
    return before, current_revision(connection) or ""


def is_known(revision: str) -> bool:
    """Whether this release has heard of a revision; a newer release may have migrated further."""
    scripts = ScriptDirectory.from_config(config())
    return any(script.revision == revision for script in scripts.walk_revisions())
