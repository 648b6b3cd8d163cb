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

# A change of the schema or of the planner's statistics changes the number of rows of a catalog, or the newest
# transaction in it. A copy of a database has the catalogs of its template.
_CATALOGS = (
    "pg_attribute", "pg_class", "pg_constraint", "pg_extension", "pg_index", "pg_namespace", "pg_proc", "pg_statistic",
    "pg_trigger", "pg_type",
)  # fmt: skip
# ANALYZE writes these in place, which is no new transaction in pg_class.
_SIZES = "SELECT (sum(relpages), sum(reltuples)) FROM pg_class WHERE relnamespace > 16383"
_SETTINGS = "SELECT count(*), string_agg(setconfig::text, '') FROM pg_db_role_setting WHERE setdatabase IN (0, d.oid)"
# All that a test can change besides the rows of our tables, as one text.
_STATE = "SELECT concat_ws(' ', d.datconnlimit, d.datacl, {}) FROM pg_database AS d WHERE datname = current_database()"
READ_STATE = _STATE.format(
    ", ".join(
        f"({query})::text"
        for query in (
            *(f"SELECT (count(*), max(xmin::text::bigint)) FROM {name}" for name in _CATALOGS),  # noqa: S608 - our own text
            _SIZES,
            f"SELECT s FROM ({_SETTINGS}) AS s",  # noqa: S608 - our own text
        )
    )
)
_END_SESSIONS = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
)
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
        self._state = server.run(READ_STATE, database=template)
        self._prefix = _MARK if template == SHARDED else "cart"
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
        return name, self._server.create_database(name, template=self._template)

    def _is_emptied(self, name: str) -> bool:
        """Delete all rows, unless more than rows has changed. Return whether the database is as new."""
        empty = f"""
            DO $$ DECLARE one text; BEGIN
              IF ({READ_STATE}) <> '{self._state}' THEN RAISE 'the database has changed'; END IF;
              FOR one IN SELECT tablename FROM pg_tables
                WHERE schemaname = 'public' AND tablename NOT IN ('cart_shards', '{VERSION_TABLE}')
              LOOP EXECUTE format('DELETE FROM %I', one); END LOOP;
            END $$
        """  # noqa: S608 - our own tables' names
        try:
            self._server.run("SET lock_timeout = '5s'", _END_SESSIONS, empty, database=name)
        except RuntimeError:
            return False
        return True
