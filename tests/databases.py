"""Migrated PostgreSQL databases, each used again once it is as new: to make one costs more than most tests."""

import contextlib
import itertools
from collections.abc import Iterator

from cart_grpc.store import schema
from tests.postgres import PostgresServer

# A change of the schema or of the planner's statistics writes rows of these catalogs. PostgreSQL counts what it has
# written since the database was copied: to read the count is a fraction of the work of reading the catalogs.
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
_SIZES = "SELECT (sum(relpages), sum(reltuples)) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
_SETTINGS = "SELECT (count(*), string_agg(setconfig::text, '')) FROM pg_db_role_setting WHERE setdatabase IN (0, d.oid)"
# All that a test can change besides the rows of our tables, as one text.
_READ_STATE = f"""
    SELECT concat_ws(' ', d.datconnlimit, d.datacl, {_WRITTEN}, ({_SIZES})::text, ({_SETTINGS})::text)
    FROM pg_database AS d WHERE datname = current_database()
"""  # noqa: S608 - our own text
# A session reports at its end what it has written. HAVING leaves no row to print.
_END_SESSIONS = """
    SELECT FROM pg_stat_get_activity(NULL)
    WHERE datid = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND pid <> pg_backend_pid() AND backend_type = 'client backend'
    HAVING count(pg_terminate_backend(pid, 5000)) < 0
"""
_EMPTY = "; ".join(f"DELETE FROM {name}" for name in schema.metadata.tables)  # noqa: S608 - our own text
_numbers = itertools.count()


class Databases:
    """Copies of the database `template`, which must be migrated and empty."""

    def __init__(self, server: PostgresServer, template: str) -> None:
        self._server = server
        self._template = template
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
        name = f"cart_{next(_numbers)}"
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
