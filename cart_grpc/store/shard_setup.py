"""The schemas of a database with several shards: their creation, the record of their number, and their revisions.

The number is recorded in the schema that the search path names. It never changes: the slices of a shard stay there.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from sqlalchemy import Connection, text

from cart_grpc.store import migrate
from cart_grpc.store.failures import NotMigrated, Unsuitable
from cart_grpc.store.migration_scripts import Script, read_scripts
from cart_grpc.store.schema import VERSION_TABLE
from cart_grpc.store.shards import RECORD, has_citus, schema_names

T = TypeVar("T")
_FIND: Final = text("SELECT to_regclass(:shards) IS NOT NULL AS is_sharded, to_regclass(:tables) IS NOT NULL AS is_one")
_EXISTING: Final = text("SELECT nspname FROM pg_namespace WHERE nspname = ANY(:names) ORDER BY nspname LIMIT 1")
# With it, Citus makes the next schemas shards, and puts each of them on a node.
_DISTRIBUTE: Final = text("SELECT set_config('citus.enable_schema_based_sharding', 'on', true)")
_COPY_TO_NODES: Final = text(f"SELECT create_reference_table('{RECORD}')")


def find_count(connection: Connection) -> int | None:
    """Return how many shards a PostgreSQL database has, None if it has none of our tables."""
    found = connection.execute(_FIND, {"shards": RECORD, "tables": VERSION_TABLE}).one()
    if found.is_sharded:
        count: int = connection.execute(text(f"SELECT shard_count FROM {RECORD}")).scalar_one()  # noqa: S608 - our constant
        return count
    return 1 if found.is_one else None


def create(count: int, connection: Connection) -> None:
    """Create the schemas of a new database, and record their number.

    Raises Unsuitable if the database has another number of shards, NotOurTurn if another process migrates it.
    """
    if connection.dialect.name != "postgresql":
        return
    migrate.take_creation(connection)
    if _check_count(count, connection) is None and count > 1:
        _create(connection, schema_names(count))


def _create(connection: Connection, names: Sequence[str]) -> None:
    existing = connection.execute(_EXISTING, {"names": names}).scalar_one_or_none()
    if existing:
        raise Unsuitable(
            f"another service has the schema {existing}, or search_path names another schema than when the shards were "
            "created; use a database of its own for several shards, or the former search_path"
        )
    distributes = has_citus(connection)
    if distributes:
        connection.execute(_DISTRIBUTE)
    for name in names:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    connection.exec_driver_sql(f"CREATE TABLE {RECORD} (shard_count smallint NOT NULL PRIMARY KEY)")
    if distributes:
        # A server may connect to any node.
        connection.execute(_COPY_TO_NODES)
    connection.exec_driver_sql(f"INSERT INTO {RECORD} VALUES ({len(names)})")  # noqa: S608 - a number


def check(schemas: Sequence[str | None], connection: Connection) -> None:
    """Raise Unsuitable if this release cannot use one of the shards, NotMigrated if it can after a migration."""
    if connection.dialect.name == "postgresql":
        found = _check_count(len(schemas), connection)
        if found is None and len(schemas) > 1:
            # Without the record, nobody knows whether this is their number, although the schemas may be there.
            raise NotMigrated("it has no record of its shards; run `cart-grpc migrate` first")
    revisions = {in_schema(schema, migrate.check_revision, connection) for schema in schemas}
    if len(revisions) > 1:
        raise NotMigrated(
            f"its shards are at the schemas {', '.join(sorted(revisions))}; run `cart-grpc migrate` first"
        )


def in_schema(schema: str | None, work: Callable[[Connection], T], connection: Connection) -> T:
    """Run `work` while the search path names `schema` and no other. A rollback restores the search path."""
    if schema is None:
        return work(connection)
    before = connection.exec_driver_sql("SHOW search_path").scalar_one()
    connection.exec_driver_sql(f"SET search_path TO {schema}, pg_temp")
    # Citus refuses triggers, because one could read other shards. Ours read only their own row.
    connection.exec_driver_sql("SET LOCAL citus.enable_unsafe_triggers = on")
    result = work(connection)
    connection.exec_driver_sql(f"SET search_path TO {before}")
    return result


def find_pending(schemas: Sequence[str | None], connection: Connection) -> Sequence[Script]:
    """Return the migrations that at least one shard lacks, oldest first. Raises Unsuitable."""
    if connection.dialect.name == "postgresql" and _check_count(len(schemas), connection) is None:
        return read_scripts(connection.dialect.name)
    lacking = [in_schema(schema, migrate.find_pending, connection) for schema in schemas]
    return max(lacking, key=len)


def _check_count(count: int, connection: Connection) -> int | None:
    """Return `count`, None if the database has none of our tables. Raises Unsuitable if it was created with another."""
    found = find_count(connection)
    if found is not None and found != count:
        raise Unsuitable(f"it was created with {found} shards; set CART_DATABASE_SHARDS={found} instead of {count}")
    return found
