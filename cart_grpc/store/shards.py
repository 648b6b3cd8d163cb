"""Shards: schemas of one database that contain all our tables, each for the users of some slices.

A distributed PostgreSQL places each schema on a node. On a database with one shard, the tables are in the schema that
the search path names, and no statement names a schema. With several, the statements of a shard name its schema, so
every connection can serve every shard, and PostgreSQL keeps the plans of each. To switch the search path instead costs
0.8 ms of the server's CPU time for each batch, because all plans of the session are then made anew.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cart_grpc.names import SLICES

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from cart_grpc.store.dialects import Dialect
    from cart_grpc.store.engine import Engine, Hints
    from cart_grpc.store.pool_usage import PoolUsage

T = TypeVar("T")
# Powers of two, so that every shard has the same number of slices.
COUNTS: Final = (1, 2, 4, 8, 16, 32, 64, 128)
# SQLAlchemy's option: the schema of tables that have none.
_OPTION: Final = "schema_translate_map"
# The table with the number of shards, if there are several. It is in the schema that the search path names.
RECORD: Final = "cart_shards"
# An expression: whether the database has Citus, so that shards may be on several nodes.
HAS_CITUS: Final = "to_regclass('pg_dist_placement') IS NOT NULL"


def schema_names(count: int) -> Sequence[str]:
    """The names of the schemas of `count` shards, in the order of their slices."""
    return [f"cart_shard_{number}" for number in range(count)]


def shard_index(slice_: int, count: int) -> int:
    """The number of the shard that has a slice. Shards in their order have the slices in their order."""
    return slice_ * count // SLICES


def first_slices(count: int, first: int = 0) -> Sequence[int]:
    """A slice of each shard, beginning with the shard of the slice `first`."""
    return [number * SLICES // count for number in range(shard_index(first, count), count)]


def use_schema(connection: "Connection", schema: str | None) -> None:
    """Let the statements of a connection name `schema`; None: leave it to the search path."""
    connection.execution_options(**{_OPTION: {None: schema} if schema else None})


def find_schema(connection: "Connection") -> str | None:
    """The schema that the statements of a connection name."""
    translated: Any = connection.get_execution_options().get(_OPTION)
    return translated[None] if translated else None


def is_distributed(connection: "Connection") -> bool:
    """Whether the statements of a connection name a schema that may be on another node."""
    if find_schema(connection) is None:
        return False
    known: bool | None = connection.info.get(HAS_CITUS)
    if known is None:
        known = connection.info[HAS_CITUS] = has_citus(connection)
    return known


def has_citus(connection: "Connection") -> bool:
    """Whether the database may have schemas on several nodes."""
    return connection.dialect.name == "postgresql" and bool(
        connection.exec_driver_sql(f"SELECT {HAS_CITUS}").scalar_one()
    )


class Shard:
    """One of several shards, as an engine whose statements name the schema of the shard."""

    def __init__(self, engine: "Engine", schema: str) -> None:
        self._engine = engine
        self.schema: str | None = schema
        self.name = engine.name
        self.dialect: Dialect = engine.dialect
        self.locks_users = engine.locks_users
        self.is_shared = engine.is_shared
        self.is_in_process = engine.is_in_process
        self.shards: Sequence[Engine] = (self,)

    @property
    def has_log(self) -> bool:
        return self._engine.has_log

    @property
    def hints(self) -> "Hints | None":
        return self._engine.hints

    def shard_of(self, slice_: int) -> "Engine":
        return self

    async def transact(self, work: "Callable[[Connection], T]") -> T:
        return await self._engine.transact(self._in_schema(work))

    async def read(self, work: "Callable[[Connection], T]") -> T:
        return await self._engine.read(self._in_schema(work))

    async def query(self, work: "Callable[[Connection], T]") -> T:
        return await self._engine.query(self._in_schema(work))

    def write_at_once(self, count: int) -> None:
        self._engine.write_at_once(count)

    def pools(self) -> "Sequence[PoolUsage]":
        return self._engine.pools()

    async def close(self) -> None:
        await self._engine.close()

    def _in_schema(self, work: "Callable[[Connection], T]") -> "Callable[[Connection], T]":
        def run(connection: "Connection") -> T:
            use_schema(connection, self.schema)
            try:
                return work(connection)
            finally:
                # The next work on this connection may be for another shard, or for none.
                use_schema(connection, None)

        return run
