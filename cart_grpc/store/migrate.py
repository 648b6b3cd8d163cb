"""Find out which schema a database has, and run one migration."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text

from cart_grpc.store import surroundings
from cart_grpc.store.failures import NotMigrated, Unsuitable
from cart_grpc.store.migration_scripts import Script, read_scripts
from cart_grpc.store.postgresql_session import MIGRATES, SETTINGS, find_older_sessions
from cart_grpc.store.revisions import FIRST, LATEST, VERSIONS, known_revisions
from cart_grpc.store.schema import VERSION_TABLE, metadata

# An advisory lock. A process that migrates a schema shares it, and holds the lock of that schema exclusively. A process
# that creates the schemas holds this one exclusively. So does an older release that migrates.
_TURN: Final = 4849335204291
_SCHEMA: Final = f"{MIGRATES}, quote_ident(current_schema())::regnamespace::oid::int"
_CREATE: Final = f"SELECT pg_try_advisory_xact_lock({_TURN})"
_BEGIN: Final = f"SELECT pg_try_advisory_{{lock}}_shared({_TURN}) AND pg_try_advisory_{{lock}}({_SCHEMA})"
_END: Final = f"SELECT pg_advisory_unlock_shared({_TURN}), pg_advisory_unlock({_SCHEMA})"
_BUILDS: Final = re.compile(r"CREATE INDEX CONCURRENTLY IF NOT EXISTS (\w+)")
_IS_INVALID: Final = text("SELECT NOT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
# A statement that waits for a lock on a table makes all later ones wait behind it. So it gives up soon: see
# `migration_run`. Plans and look-ups of a release that runs need their locks for milliseconds.
LOCK_TIMEOUT = "500ms"


class NotOurTurn(Exception):
    """Another process migrates the database."""


@dataclass(frozen=True, slots=True)
class Step:
    """One migration that was run: the revisions before and after, and the title of its script.

    If both revisions are equal, nothing was left to do.
    """

    before: str | None
    after: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class _Record:
    """The row of the version table: the schema of the database, and of the oldest release that may use it."""

    revision: str
    oldest_revision: str


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the database, None if it has none of our tables.

    Raises Unsuitable if the revision is neither ours nor a newer release's, if this release is too old for the
    database, or if a table is missing.
    """
    tables = set(inspect(connection).get_table_names())
    present, missing = tables & set(metadata.tables), set(metadata.tables) - tables
    if VERSION_TABLE not in tables:
        if present:
            raise Unsuitable(f"another program has made {_names(present)} in it; use another database or schema")
        return None
    record = _read_record(connection)
    revision, oldest = record.revision, record.oldest_revision
    if oldest > LATEST:
        raise Unsuitable(
            f"it is at schema {revision}, for releases with schema {oldest} or newer; this one has schema {LATEST}: "
            "start a newer release, or restore a backup"
        )
    # An older release may have had fewer tables. A newer one keeps those that this release needs.
    if missing and (revision == LATEST or not is_known(revision)):
        raise Unsuitable(f"it lacks {_names(missing)}; restore a backup")
    return revision


def _read_record(connection: Connection) -> _Record:
    # Schema 0001 has one column. A session keeps the result's columns of a statement, and shards may differ.
    columns = ", ".join(column["name"] for column in inspect(connection).get_columns(VERSION_TABLE))
    rows = connection.execute(text(f"SELECT {columns} FROM {VERSION_TABLE}")).mappings().all()  # noqa: S608 - our names
    revisions = [str(row["version_num"]) for row in rows]
    if len(revisions) != 1 or not (is_known(revisions[0]) or _is_newer(revisions[0])):
        found = ", ".join(revisions) or "no revision"
        raise Unsuitable(f"{VERSION_TABLE} contains {found}, which is not a revision of cart-grpc")
    return _Record(revisions[0], str(rows[0].get("oldest_revision", FIRST)))


def check_revision(connection: Connection) -> str:
    """Return the revision of the database.

    Raises Unsuitable if this release cannot use the database's schema, NotMigrated if it can after a migration.
    """
    revision = current_revision(connection)
    if revision is None or (is_known(revision) and revision != LATEST):
        raise NotMigrated(f"it is at schema {revision or '(none)'}; run `cart-grpc migrate` first")
    return revision


def take_creation(connection: Connection) -> None:
    """Keep other processes from creating schemas and from migrating until the transaction ends. Raises NotOurTurn."""
    _take(connection, _CREATE)


def _take(connection: Connection, statement: str) -> None:
    if connection.dialect.name == "postgresql" and not connection.exec_driver_sql(statement).scalar_one():
        raise NotOurTurn


def find_pending(connection: Connection, versions: Path = VERSIONS) -> Sequence[Script]:
    """Return the migrations that the schema lacks, oldest first. Raises Unsuitable."""
    return _find_newer(current_revision(connection), connection, versions)


def _find_newer(revision: str | None, connection: Connection, versions: Path) -> Sequence[Script]:
    known = known_revisions(versions)
    if revision is not None and (revision == known[-1] or revision not in known):
        return []
    return [each for each in read_scripts(connection.dialect.name, versions) if each.revision > (revision or "")]


def run_next(connection: Connection, versions: Path = VERSIONS) -> Step:
    """Run the next migration that the schema lacks, in the connection's transaction.

    Does nothing if it has the schema of this release, or of a newer one. Raises Unsuitable, NotOurTurn, or the
    database's error if a lock is not granted within LOCK_TIMEOUT.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
    _take(connection, _BEGIN.format(lock="xact_lock"))
    surroundings.check_encoding(connection)
    before = current_revision(connection)
    pending = _find_newer(before, connection, versions)
    if not pending:
        return Step(before, before or "")
    script = pending[0]
    if script.oldest_revision:
        _refuse_while_older_run(connection, script.oldest_revision, script.revision)
    if script.transactional or connection.dialect.name != "postgresql":
        _run(connection, before, script)
    else:
        _run_without_transaction(connection, before, script)
    return Step(before, script.revision, script.title)


def _run(connection: Connection, before: str | None, script: Script) -> None:
    for statement in script.statements:
        connection.exec_driver_sql(statement)
    if before is None:
        key = f"CONSTRAINT {VERSION_TABLE}_pkc PRIMARY KEY"
        connection.exec_driver_sql(f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL {key})")
        connection.exec_driver_sql(f"INSERT INTO {VERSION_TABLE} VALUES ('{script.revision}')")  # noqa: S608 - our names
    else:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '{script.revision}'")  # noqa: S608 - same


def _run_without_transaction(connection: Connection, before: str | None, script: Script) -> None:
    """Run a migration that PostgreSQL refuses in a transaction, and begin a new transaction.

    CREATE INDEX CONCURRENTLY waits for the transactions that are older than it. Nobody waits behind it meanwhile, and
    the session has no lock that one of these transactions, also of another shard's migration, could wait for.
    """
    _take(connection, _BEGIN.format(lock="lock"))
    connection.exec_driver_sql("COMMIT")
    try:
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.exec_driver_sql("SET lock_timeout = 0")
        _drop_invalid(connection, script)
        _run(connection, before, script)
        for name in ("statement_timeout", "lock_timeout"):
            connection.exec_driver_sql(f"SET {name} = '{SETTINGS[name]}'")
        connection.exec_driver_sql(_END)
        connection.exec_driver_sql("BEGIN")
    except BaseException:
        # This session has neither its settings nor an open transaction any more.
        connection.invalidate()
        raise


def _drop_invalid(connection: Connection, script: Script) -> None:
    """Drop the indexes whose build was cut off. An invalid index slows writes down and answers nothing."""
    for statement in script.statements:
        built = _BUILDS.match(statement)
        if built and connection.execute(_IS_INVALID, {"name": built[1]}).scalar():
            connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY {built[1]}")


def _refuse_while_older_run(connection: Connection, oldest: str, revision: str) -> None:
    """Raise Unsuitable while processes are connected that the migration to `revision` would leave behind."""
    if connection.dialect.name != "postgresql":
        return
    older = find_older_sessions(connection, int(oldest))
    if older:
        raise Unsuitable(
            f"schema {revision} is for releases with schema {oldest} or newer, and older ones are connected "
            f"({_show(older)}); stop them, then run `cart-grpc migrate` again"
        )


def _show(sessions: Sequence[str]) -> str:
    rest = f" and {len(sessions) - 3} more" if len(sessions) > 3 else ""
    return f"{', '.join(sessions[:3])}{rest}"


def is_known(revision: str) -> bool:
    """Whether this release knows a revision. A newer release may have migrated further."""
    return revision in known_revisions()


def _is_newer(revision: str) -> bool:
    """Whether a revision has the form of ours and follows the latest that this release knows."""
    return bool(re.fullmatch(r"[0-9]{4}", revision)) and revision > LATEST


def _names(tables: set[str]) -> str:
    return f"the table{'s' if len(tables) > 1 else ''} {', '.join(sorted(tables))}"
