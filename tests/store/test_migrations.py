"""The migrations create the schema of the metadata, on both databases."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from cart_grpc import app, database_setup
from cart_grpc.names import user_key
from cart_grpc.settings import Settings
from cart_grpc.startup import StartupError
from cart_grpc.store import migrate, revisions, schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.migration_scripts import read_scripts
from tests.postgres import PostgresServer

# Of statements and of one schema.
pytestmark = pytest.mark.one_shard

Catalogue = dict[str, list[tuple[object, ...]]]

POSTGRESQL = {
    "columns": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity::text,
            a.attgenerated::text, pg_get_expr(d.adbin, d.adrelid), l.collname
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid AND c.relkind = 'r'
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        LEFT JOIN pg_collation l ON l.oid = a.attcollation
        WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relnamespace = 'public'::regnamespace""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, contype::text, pg_get_constraintdef(oid), convalidated
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "triggers": """
        SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid), tgenabled::text
        FROM pg_trigger WHERE NOT tgisinternal""",
    "functions": "SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
    "others": """
        SELECT relname, relkind::text FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind NOT IN ('r', 'i')""",
}
SQLITE = {
    "columns": """
        SELECT t.name, c.name, c.type, c."notnull", c.dflt_value, c.pk, c.hidden
        FROM pragma_table_list t, pragma_table_xinfo(t.name) c WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%'""",
    "tables": """SELECT name, type, "wr", "strict" FROM pragma_table_list WHERE name NOT LIKE 'sqlite_%'""",
    "sql": "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL",
}


def read_catalogue(connection: Connection) -> Catalogue:
    """Read every object that a migration can create, sorted."""
    queries = POSTGRESQL if connection.dialect.name == "postgresql" else SQLITE
    catalogue = {}
    for kind, query in queries.items():
        rows = [tuple(map(normalise, row)) for row in connection.execute(text(query))]
        catalogue[kind] = sorted((row for row in rows if "cart_grpc_version" not in str(row)), key=repr)
    return catalogue


def normalise(value: object) -> object:
    """Normalise SQL: one space between words, and the parts of a CREATE TABLE sorted."""
    if not isinstance(value, str) or not value.upper().startswith("CREATE"):
        return value
    one_line = re.sub(r"\s+", " ", value).strip()
    if not one_line.startswith("CREATE TABLE"):
        return one_line
    head, _, body = one_line.partition("(")
    return head, tuple(sorted(part.strip() for part in re.split(r",(?![^(]*\))", body.removesuffix(")"))))


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Engine]:
    async with app.open_engine(Settings(database_url=url)) as engine:
        yield engine


async def migrated(url: str) -> tuple[str | None, str]:
    async with opened(url) as engine:
        return await database_setup.upgrade(engine)


async def catalogue_of(url: str) -> Catalogue:
    async with opened(url) as engine:
        return await engine.transact(read_catalogue)


@pytest.fixture
def empty_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    return make_empty(backend, request, tmp_path, "migrated")


@pytest.fixture
def other_empty_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Another empty database."""
    return make_empty(backend, request, tmp_path, "made")


def make_empty(backend: str, request: pytest.FixtureRequest, folder: Path, name: str) -> str:
    if backend == "sqlite":
        return f"sqlite:///{folder}/{name}.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create_database(f"{name}_{abs(hash(request.node.nodeid))}")


async def test_the_migrations_create_the_same_schema_as_the_metadata(empty_url: str, other_empty_url: str) -> None:
    await migrated(empty_url)
    async with opened(other_empty_url) as engine:
        await engine.transact(schema.metadata.create_all)
    by_migrations, by_metadata = await catalogue_of(empty_url), await catalogue_of(other_empty_url)
    for kind, rows in by_metadata.items():
        assert by_migrations[kind] == rows, kind
    assert by_migrations.keys() == by_metadata.keys()
    found = str(by_migrations)
    # Prove that the comparison did not ignore these on both sides.
    for table in schema.metadata.tables.values():
        assert table.name in found
        for index in table.indexes:
            assert str(index.name) in found
    assert "due_time IS NOT NULL" in found
    assert "carts_only_rise" in found
    assert "reservations_only_rise" in found


async def test_a_migration_returns_the_revisions_before_and_after(empty_url: str) -> None:
    assert await migrated(empty_url) == (None, revisions.LATEST)
    async with opened(empty_url) as engine:
        assert await engine.transact(migrate.current_revision) == revisions.LATEST
        await database_setup.check(engine)


def test_the_revisions_known_without_alembic_are_those_of_alembic() -> None:
    found = [script.revision for script in read_scripts("postgresql")]
    assert revisions.known_revisions() == found
    assert found[-1] == revisions.LATEST


async def test_a_second_migration_changes_nothing(empty_url: str) -> None:
    latest = revisions.LATEST
    await migrated(empty_url)
    before = await catalogue_of(empty_url)
    async with opened(empty_url) as engine:
        await engine.transact(insert_a_cart)
        assert await database_setup.upgrade(engine) == (latest, latest)
        assert await engine.transact(read_catalogue) == before
        assert await engine.transact(count_carts) == 1


async def test_a_migration_that_fails_leaves_nothing_behind(empty_url: str) -> None:
    def work(connection: Connection) -> None:
        migrate.run_next(connection)
        raise RuntimeError("power cut")

    async with opened(empty_url) as engine:
        with pytest.raises(RuntimeError, match="power cut"):
            await engine.transact(work)
        assert await engine.transact(migrate.current_revision) is None
        assert not any((await engine.transact(read_catalogue)).values())
    assert (await migrated(empty_url))[0] is None


async def test_of_concurrent_migrations_each_step_runs_once(
    postgres: PostgresServer, request: pytest.FixtureRequest
) -> None:
    url = postgres.create_database(f"twice_{abs(hash(request.node.nodeid))}")
    lines = list[str]()

    async def run() -> str:
        async with opened(url) as engine:
            return (await database_setup.upgrade(engine, lines.append))[1]

    assert set(await asyncio.gather(*(run() for _ in range(5)))) == {revisions.LATEST}
    steps = [line.partition(":")[0] for line in lines if line.startswith("schema")]
    assert steps == [f"schema {revision}" for revision in revisions.known_revisions()]


async def test_a_database_of_a_newer_release_is_not_migrated_and_can_be_used(empty_url: str) -> None:
    await migrated(empty_url)
    before = await catalogue_of(empty_url)
    async with opened(empty_url) as engine:
        await engine.transact(
            lambda connection: connection.execute(text("UPDATE cart_grpc_version SET version_num = '9999'"))
        )
        assert await database_setup.upgrade(engine) == ("9999", "9999")
        assert await engine.transact(read_catalogue) == before
        await database_setup.check(engine)


async def test_a_start_on_an_unmigrated_database_fails_and_names_the_migrate_command(empty_url: str) -> None:
    async with opened(empty_url) as engine:
        with pytest.raises(StartupError, match=r"is at schema \(none\); run `cart-grpc migrate` first"):
            await database_setup.check(engine)


def insert_a_cart(connection: Connection) -> None:
    key = user_key("alice")
    text_columns = {"uid": "u", "labels": "{}", "currency_code": "", "checkout_id": "", "merged_into": ""}
    names = ("item_count", "priced_count", "total_quantity", "subtotal", "byte_size", "create_time", "update_time")
    numbers = dict.fromkeys(names, 0)
    connection.execute(
        schema.carts.insert().values(
            slice=key.slice,
            user_id=key.user_id,
            cart_id="c",
            state=1,
            revision=5,
            etag_revision=5,
            owns_currency=False,
            **text_columns,
            **numbers,
        )
    )


def insert_a_reservation(connection: Connection) -> None:
    names = ("user_id", "cart_id", "item_id", "sku", "reason", "seal_reason", "last_error", "set_aside_reason")
    texts = dict.fromkeys((*names, "checkout_id", "superseded_by"), "x")
    numbers = dict.fromkeys(("ttl_us", "reserved_cap", "create_time", "state", "granted_quantity", "attempt_count"), 0)
    connection.execute(
        schema.reservations.insert().values(
            slice=0, reservation_id="r", quantity=1, disposition=1,
            revision=5, intent_revision=5, observed_revision=5, lease_epoch=5, waiting=False, supersedes=False,
            **texts, **numbers,
        )
    )  # fmt: skip


def insert_a_checkout(connection: Connection) -> None:
    texts = dict.fromkeys(("user_id", "checkout_id", "cart_id", "cart_uid", "currency_code", "order_reference"), "x")
    names = (
        "subtotal",
        "item_count",
        "total_quantity",
        "byte_size",
        "hold_ttl_us",
        "create_time",
        "update_time",
        "expire_time",
    )
    connection.execute(
        schema.checkouts.insert().values(
            slice=0, state=1, is_ready=False, reason="", etag_revision=5, **texts, **dict.fromkeys(names, 0)
        )
    )


def count_carts(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM carts")).scalar_one())


@pytest.mark.parametrize(
    ("table", "column"),
    [(table, column) for table, columns in schema.RISING.items() for column in columns],
)
async def test_a_trigger_rejects_an_update_that_decreases_a_rising_column(
    database_url: str, table: str, column: str
) -> None:
    def changed(change: str) -> object:
        return lambda connection: connection.execute(text(f"UPDATE {table} SET {change}"))  # noqa: S608

    await migrated(database_url)
    async with opened(database_url) as engine:
        await engine.transact(insert_a_cart)
        await engine.transact(insert_a_reservation)
        await engine.transact(insert_a_checkout)
        higher = "revision = 8, " if column != "revision" and table != "checkouts" else ""
        await engine.transact(changed(f"{higher}{column} = 7"))  # type: ignore[arg-type]
        await engine.transact(changed(f"{column} = 7"))  # type: ignore[arg-type]
        with pytest.raises(DBAPIError, match="only rise"):
            await engine.transact(changed(f"{column} = 6"))  # type: ignore[arg-type]
        rows = await engine.transact(lambda connection: connection.execute(text(f"SELECT {column} FROM {table}")).all())  # noqa: S608
        assert [tuple(row) for row in rows] == [(7,)]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE carts SET state = 0",
        "UPDATE carts SET state = 9",
        "UPDATE carts SET item_count = -1",
        "UPDATE carts SET item_count = 1",
        "UPDATE carts SET subtotal = -1",
        "UPDATE carts SET etag_revision = 6",
        "UPDATE reservations SET quantity = 0",
        "UPDATE reservations SET disposition = 4",
        "UPDATE reservations SET state = 6",
        "UPDATE reservations SET observed_revision = 6",
        "UPDATE reservations SET granted_quantity = -1",
        "UPDATE reservations SET revision = 4611686018427387905",
        "UPDATE reservations SET attempt_count = 4611686018427387905",
    ],
)
async def test_a_check_constraint_rejects_an_impossible_row(database_url: str, change: str) -> None:
    await migrated(database_url)
    async with opened(database_url) as engine:
        await engine.transact(insert_a_cart)
        await engine.transact(insert_a_reservation)
        with pytest.raises(DBAPIError, match=r"(?i)check constraint"):
            await engine.transact(lambda connection: connection.execute(text(change)))
