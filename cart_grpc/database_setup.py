"""Makes a database ready for this release, or says in one line why it cannot be used."""

from collections.abc import Sequence
from functools import partial

from sqlalchemy import Connection

from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.startup import NotYet, StartupError
from cart_grpc.store import migration_run, restore, shard_setup, surroundings
from cart_grpc.store.engine import Engine
from cart_grpc.store.failures import may_pass, show_cause
from cart_grpc.store.migration_scripts import Script
from cart_grpc.store.shards import use_schema

log = Log(__name__)


def _log_progress(line: str) -> None:
    log(events.MIGRATION_PROGRESS, "%s", line)


async def upgrade(engine: Engine, report: migration_run.Report = _log_progress) -> tuple[str | None, str]:
    """Migrate the database to the schema of this release. Returns the revisions before and after.

    `report` gets a line for each migration and each wait. Raises StartupError.
    """
    try:
        return await migration_run.run(engine, report)
    except Exception as error:
        raise unusable(engine, error) from error


async def find_pending(engine: Engine) -> Sequence[Script]:
    """Return the migrations that the database lacks, oldest first. Raises StartupError."""
    try:
        return await engine.transact(partial(shard_setup.find_pending, _schemas(engine)))
    except Exception as error:
        raise unusable(engine, error) from error


async def check(engine: Engine) -> None:
    """Raise StartupError if the database does not answer, or cannot be used as it is; NotYet if waiting may help."""

    def read(connection: Connection) -> None:
        surroundings.check_encoding(connection)
        shard_setup.check(_schemas(engine), connection)

    try:
        await engine.transact(read)
    except Exception as error:
        raise unusable(engine, error) from error


async def warn_of_risks(engine: Engine) -> None:
    """Log in one line the settings because of which a power failure can lose acknowledged writes."""
    if risks := await engine.transact(surroundings.find_risks):
        text = "PostgreSQL runs with %s: a power failure can lose acknowledged writes"
        log(events.DURABILITY_RISK, text, " and ".join(risks))


async def raise_revisions(engine: Engine) -> int:
    """Raise the revision of every unfinished reservation above any that was ever sent. For a restored database.

    Returns the number of reservations. Raises StartupError if the database is in use, does not answer or has another
    schema, or if a SQLite file has a log: that of the file which was there before would damage the copy.
    """
    if engine.has_log:
        raise StartupError(
            f"CART_DATABASE_URL: the database {engine.name} has a log (-wal), but a backup has none: remove it and "
            "repeat. If a server has used the restored file, start it again and stop it with SIGTERM instead"
        )
    await check(engine)
    try:
        return await engine.transact(partial(_raise_in_all, engine))
    except restore.InUse as error:
        raise StartupError(f"CART_DATABASE_URL: the database {engine.name} {error}") from None
    except Exception as error:
        raise unusable(engine, error) from error


def _raise_in_all(engine: Engine, connection: Connection) -> int:
    """Raise the revisions in all shards, or in none. No server is let in before all are raised."""
    raised, schemas = 0, _schemas(engine)
    use_schema(connection, schemas[0])
    restore.keep_servers_out(connection)
    for schema in schemas:
        use_schema(connection, schema)
        raised += restore.raise_revisions(connection, engine.dialect)
    use_schema(connection, None)
    return raised


def _schemas(engine: Engine) -> list[str | None]:
    return [shard.schema for shard in engine.shards]


def unusable(engine: Engine, error: BaseException) -> StartupError:
    """Return the error for a database that cannot be used; NotYet if waiting may help."""
    log(events.DATABASE_UNUSABLE, "the database cannot be used", exc_info=error)
    # A SQLite file is not away: whatever is wrong with it stays wrong. But a busy machine may answer late.
    is_late = isinstance(error.__cause__, TimeoutError)
    kind = NotYet if is_late or (engine.is_shared and may_pass(error)) else StartupError
    return kind(show_unusable(engine.name, error))


def show_unusable(database: str, error: BaseException) -> str:
    """Return the line that names the database, without its password, and quotes the driver's first line."""
    return f"CART_DATABASE_URL: the database {database} cannot be used: {show_cause(error)}"
