"""Migrated PostgreSQL databases, each used again once it is as new: to make one costs more than most tests.

They have four shards. Beside these, in the schema `public`, are parents of their tables, which no server uses: a
statement of a test reads and changes the rows of all shards there.
"""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Final

from cart_grpc import app
from cart_grpc.store.engine import Engine, connect
from cart_grpc.store.schema import VERSION_TABLE, metadata
from cart_grpc.store.shards import schema_names
from tests.postgres import PostgresServer

# A change of the schema or of the planner's statistics writes rows of these catalogs. PostgreSQL counts the rows that
# were written since the database was copied. Reading the counts is far cheaper than reading the catalogs.
_CATALOGS = (
    "pg_attribute", "pg_class", "pg_constraint", "pg_extension", "pg_index", "pg_namespace", "pg_proc", "pg_statistic",
    "pg_trigger", "pg_type",
)  # fmt: skip
_WRITTEN = " + ".join(
    f"pg_stat_get_tuples_{written}('{name}'::regclass)"
    for name in _CATALOGS
    for written in ("inserted", "updated", "deleted")
)
# ANALYZE writes these in place, which is not counted.
_SIZES = "SELECT (sum(relpages), sum(reltuples)) FROM pg_class WHERE oid > 16383"
_SETTINGS = "SELECT (count(*), string_agg(setconfig::text, '')) FROM pg_db_role_setting WHERE setdatabase IN (0, d.oid)"
# All that a test can change besides the rows of our tables, as one text.
_READ_STATE = f"""
    SELECT concat_ws(' ', d.datconnlimit, d.datacl, {_WRITTEN}, ({_SIZES})::text, ({_SETTINGS})::text)
    FROM pg_database AS d WHERE datname = current_database()
"""  # noqa: S608 - our own text
# A session adds its rows to the counts when it ends. HAVING leaves no row to print.
_END_SESSIONS = """
    SELECT FROM pg_stat_get_activity(NULL)
    WHERE datid = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND pid <> pg_backend_pid() AND backend_type = 'client backend'
    HAVING count(pg_terminate_backend(pid, 5000)) < 0
"""
_EMPTY = "; ".join(f"DELETE FROM {name}" for name in metadata.tables)  # noqa: S608 - our own text
_numbers = itertools.count()
SHARDS: Final = 4
# In the name of a database with several shards.
_MARK: Final = "sharded"
# The database that is copied.
SHARDED: Final = f"{_MARK}_cart"


def shards_of(url: str) -> int:
    """The number of shards of a database of the tests."""
    return SHARDS if f"/{_MARK}_" in url else 1


def open_database(url: str) -> Engine:
    """Connect to a database of the tests."""
    return connect(url, app.clock, shard_count=shards_of(url))


def add_parents(server: PostgresServer, name: str) -> None:
    """Give the tables of all shards parents in `public`."""
    shards = schema_names(SHARDS)
    for table in (*metadata.tables, VERSION_TABLE):
        server.run(
            f"CREATE TABLE {table} (LIKE {shards[0]}.{table})",
            *(f"ALTER TABLE {shard}.{table} INHERIT {table}" for shard in shards),
            database=name,
        )


class Databases:
    """Copies of the database `template`, which must be migrated and empty."""

    def __init__(self, server: PostgresServer, template: str) -> None:
        self._server = server
        self._template = template
        self._prefix = _MARK if template == SHARDED else "cart"
        self._state = ""
        self._free: list[tuple[str, str]] = []

    @contextlib.contextmanager
    def lend(self) -> Iterator[str]:
        """The URL of an empty database, for one test."""
        name, url = self._free.pop() if self._free else self._create()
        yield url
        if self._is_emptied(name):
            self._free.append((name, url))

    def _create(self) -> tuple[str, str]:
        name = f"{self._prefix}_{next(_numbers)}"
        url = self._server.create_database(name, template=self._template)
        self._state = self._state or self._server.run(_READ_STATE, database=name)
        return name, url

    def _is_emptied(self, name: str) -> bool:
        """Delete all rows. Return whether the database is as new: nothing but rows has changed."""
        try:
            return self._state == self._server.run(
                "SET lock_timeout = '5s'", _END_SESSIONS, _READ_STATE, _EMPTY, database=name
            )
        except RuntimeError:
            return False
