"""The tables of all simulations: one SQLite connection for each Python process, and the statements that run on it.

Each shard is an attached database, whose name the statements name as they name a schema of PostgreSQL.
"""

import gc
import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Final, TypeVar

from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import StaticPool

from cart_grpc.protocol.reservation import Reservation
from cart_grpc.store import schema
from cart_grpc.store.dialects import Dialect, SqliteDialect
from cart_grpc.store.prepared import Rows
from cart_grpc.store.queries import WriteQueries
from cart_grpc.store.shards import schema_names, shard_index, use_schema
from cart_grpc.store.spanning_queries import SpanningQueries

T = TypeVar("T")
MOST_SHARDS: Final = 4
# The number of the database that is not attached, in the views of all shards.
MAIN: Final = -1


class _WatchedQueries(WriteQueries):
    """The real statements. `note` is called when a transaction pauses or resumes claims."""

    note: Callable[[str], None]

    def pause(self, connection: Connection, reason: str, now: int) -> None:
        super().pause(connection, reason, now)
        self.note("pause")

    def resume(self, connection: Connection) -> None:
        super().resume(connection)
        self.note("resumption")


class _LoggedQueries(_WatchedQueries):
    """Logs how many answers were recorded without reading, and how many were refused."""

    log_event: Callable[..., None]

    def settle(self, connection: Connection, changes: Sequence[tuple[Reservation, Reservation, bool]]) -> set[str]:
        settled = super().settle(connection, changes)
        self.log_event("settled", len(settled), "refused" if len(settled) < len(changes) else "")
        return settled


class _WatchedSpanningQueries(_WatchedQueries, SpanningQueries):
    """Also calls `note` when a transaction writes rows of two shards."""

    def __init__(self, dialect: Dialect, schemas: Sequence[str]) -> None:
        super().__init__(dialect, schemas)
        # BEGIN IMMEDIATE locks all attached databases.
        self._lock_users = False

    def write(self, connection: Connection, rows: Mapping[str, Rows]) -> None:
        super().write(connection, rows)
        slices = {int(row[0]) for name, of_table in rows.items() if name != "commit_markers" for row in of_table}
        if len({shard_index(each, len(self._schemas)) for each in slices}) > 1:
            self.note("merge")


class Template:
    """One connection per Python process, so that compiled and prepared statements serve every seed.

    The views `all_users`, `all_carts` and so on have the rows of all shards, and in the column `shard` the number of
    the shard: MAIN for a database that has one.
    """

    def __init__(self) -> None:
        self.clock: Callable[[], int] = int
        self.dialect: Dialect = SqliteDialect(lambda: self.clock())  # noqa: PLW0108 - each run sets another
        self.raw = sqlite3.connect(
            ":memory:", isolation_level=None, check_same_thread=False, cached_statements=200 * (1 + MOST_SHARDS)
        )
        engine = create_engine("sqlite+pysqlite://", creator=lambda: self.raw, poolclass=StaticPool)
        self.connection: Connection = engine.connect()
        schema.metadata.create_all(self.connection)
        self.connection.commit()
        self._names = ["main", *schema_names(MOST_SHARDS)]
        for name in self._names[1:]:
            self._attach(name)
        for table in schema.metadata.tables:
            of_shard = "SELECT {} AS shard, * FROM {}.{}".format
            parts = [of_shard(shard, name, table) for shard, name in enumerate(self._names, MAIN)]
            self.raw.execute(f"CREATE TEMP VIEW all_{table} AS {' UNION ALL '.join(parts)}")
        # Built once: SQLAlchemy caches compiled statements by object.
        self.queries = _LoggedQueries(self.dialect, lock_users=False)
        self.spanning = {
            count: _WatchedSpanningQueries(self.dialect, schema_names(count)) for count in (2, MOST_SHARDS)
        }
        # Otherwise each garbage collection would scan all imported modules.
        gc.freeze()

    def _attach(self, name: str) -> None:
        """Attach a database with the same tables, indexes and triggers as the main one."""
        self.raw.execute(f"ATTACH ':memory:' AS {name}")
        for (statement,) in self.raw.execute("SELECT sql FROM main.sqlite_master WHERE sql IS NOT NULL").fetchall():
            self.raw.execute(re.sub(r"^CREATE (TABLE|INDEX|TRIGGER) ", rf"\g<0>{name}.", statement))

    def clear(self) -> None:
        """Empty every table."""
        for table in schema.metadata.tables:
            for name in self._names:
                self.raw.execute(f"DELETE FROM {name}.{table}")  # noqa: S608 - our own tables' names


@cache
def template() -> Template:
    return Template()


def in_schema(connection: Connection, name: str | None, work: Callable[[Connection], T]) -> T:
    """Run `work` while the statements of `connection` name a schema; None: while they name none."""
    if name is None:
        return work(connection)
    use_schema(connection, name)
    try:
        return work(connection)
    finally:
        use_schema(connection, None)
