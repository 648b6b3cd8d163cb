"""The schemas of several shards: their number is fixed when a database is created, and they are migrated together."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text

from cart_grpc import app, database_setup
from cart_grpc.startup import NotYet, StartupError
from cart_grpc.store import migrate, migration_run, shard_setup
from cart_grpc.store.engine import Engine, connect
from cart_grpc.store.revisions import LATEST, known_revisions
from cart_grpc.store.schema import VERSION_TABLE
from tests.databases import SHARDS, open_database
from tests.postgres import SUPERUSER, PostgresServer
from tests.store.test_migration_rules import ADD_COLUMN, write_migration
from tests.store.test_migration_run import INDEX, Lines, session

_numbers = itertools.count()


@pytest.fixture
def backend() -> str:
    return "postgresql"


@pytest.fixture
def empty_url(postgres: PostgresServer) -> str:
    return postgres.create_database(f"setup_{next(_numbers)}")


@asynccontextmanager
async def opened(url: str, count: int) -> AsyncIterator[Engine]:
    engine = connect(url, app.clock, shard_count=count)
    try:
        yield engine
    finally:
        await engine.close()


@pytest.mark.parametrize(("created", "other"), [(1, 4), (4, 1), (4, 8)])
async def test_another_number_is_refused_and_named(empty_url: str, created: int, other: int) -> None:
    async with opened(empty_url, created) as engine:
        await database_setup.upgrade(engine)
    async with opened(empty_url, other) as engine:
        for attempt in (database_setup.check, database_setup.upgrade, database_setup.find_pending):
            with pytest.raises(StartupError, match=f"set CART_DATABASE_SHARDS={created} instead of {other}$"):
                await attempt(engine)


async def test_a_migration_that_was_interrupted_goes_on_and_nothing_is_served_before(empty_url: str) -> None:
    async with opened(empty_url, 4) as engine:
        with pytest.raises(NotYet, match="run `cart-grpc migrate` first"):
            await database_setup.check(engine)
        # Interrupted in the second shard.
        await engine.transact(lambda connection: shard_setup.create(4, connection))
        for schema, steps in ((engine.shards[0].schema, 3), (engine.shards[1].schema, 1)):
            for _ in range(steps):
                await engine.transact(partial(shard_setup.in_schema, schema, migrate.run_next))
        with pytest.raises(NotYet, match="run `cart-grpc migrate` first"):
            await database_setup.check(engine)
        before, after = await migration_run.run(engine)
        assert (before, after) == (None, LATEST)
        await database_setup.check(engine)
        # A newer release has migrated one shard so far.
        newer = text(f"UPDATE {engine.shards[2].schema}.{VERSION_TABLE} SET version_num = '9999'")  # noqa: S608
        await engine.transact(lambda connection: connection.execute(newer))
        with pytest.raises(NotYet, match=f"its shards are at the schemas {LATEST}, 9999"):
            await database_setup.check(engine)


async def test_the_schemas_of_another_service_are_not_used(empty_url: str) -> None:
    async with opened(empty_url, 4) as engine:
        await engine.transact(lambda connection: connection.execute(text("CREATE SCHEMA cart_shard_2")))
        with pytest.raises(StartupError, match="another service has the schema cart_shard_2"):
            await database_setup.upgrade(engine)


async def test_a_schema_that_comes_first_on_the_search_path_later_hides_no_shards(empty_url: str) -> None:
    async with opened(empty_url, 4) as engine:
        await database_setup.upgrade(engine)
        # PostgreSQL looks in the schema with the name of the role first.
        await engine.transact(lambda connection: connection.execute(text(f"CREATE SCHEMA {SUPERUSER}")))
    async with opened(empty_url, 2) as engine:
        with pytest.raises(StartupError, match="set CART_DATABASE_SHARDS=4 instead of 2"):
            await database_setup.check(engine)
    async with opened(empty_url, 4) as engine:
        await database_setup.check(engine)
        assert await database_setup.upgrade(engine) == (LATEST, LATEST)


async def test_shards_are_not_served_by_a_search_path_without_their_record(empty_url: str) -> None:
    async with opened(empty_url, 4) as engine:
        await database_setup.upgrade(engine)
        await engine.transact(lambda connection: connection.execute(text("CREATE SCHEMA other")))
    # With half of the shards, a server would find no cart of most users.
    async with opened(f"{empty_url}&options=-csearch_path%3Dother", 2) as engine:
        with pytest.raises(StartupError, match="it has no record of its shards"):
            await database_setup.check(engine)
        with pytest.raises(StartupError, match="or search_path names another schema than when the shards were created"):
            await database_setup.upgrade(engine)


def test_sqlite_has_one() -> None:
    with pytest.raises(ValueError, match="SQLite has one shard"):
        connect("sqlite:///cart.db", app.clock, shard_count=4)


async def migrated(engine: Engine, lines: Lines, versions: Path) -> tuple[str | None, str]:
    """Migrate, and close the engine."""
    try:
        return await migration_run.run(engine, lines.append, versions)
    finally:
        await engine.close()


async def test_of_two_migrations_at_once_each_runs_a_part_of_the_steps(empty_url: str) -> None:
    async with opened(empty_url, 4) as first, opened(empty_url, 4) as second:
        lines = Lines()
        found = await asyncio.gather(*(migration_run.run(engine, lines.append) for engine in (first, second)))
        assert {after for _, after in found} == {LATEST}
        steps = [line.partition(" (")[0] for line in lines if ": schema " in line]
        assert len(steps) == len(set(steps)) == 4 * len(known_revisions())
        await database_setup.check(first)


async def test_a_shard_that_cannot_be_migrated_is_named_and_the_next_run_migrates_the_others(empty_url: str) -> None:
    async with opened(empty_url, 4) as engine, session(empty_url) as other:
        await engine.transact(partial(shard_setup.create, 4))
        await other.execute("CREATE TABLE cart_shard_1.carts (a int)")
        lines = Lines()
        with pytest.raises(StartupError, match=r"cart_shard_1: another program has made the table carts in it"):
            await database_setup.upgrade(engine, lines.append)
        # The other connection ended its step, and began no more.
        assert not any("cart_shard_3" in line for line in lines)
        await other.execute("DROP TABLE cart_shard_1.carts")
        assert await database_setup.upgrade(engine, lines.append) == (None, LATEST)
        await database_setup.check(engine)


async def test_shards_are_migrated_while_the_tables_of_one_are_locked(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration_run, "PAUSE_SECONDS", 0.1)
    write_migration(tmp_path, ADD_COLUMN.format(""))
    lines = Lines()
    async with session(database_url) as holder:
        async with holder.transaction():
            await holder.execute("LOCK TABLE cart_shard_0.carts IN ACCESS SHARE MODE")
            running = asyncio.create_task(migrated(open_database(database_url), lines, tmp_path))
            await lines.until(
                f"cart_shard_0: a table is locked; the oldest transaction is 0 s old: pid {holder.get_server_pid()}"
            )
            await lines.until("cart_shard_3: schema 9999")
            assert not running.done()
        assert await running == (LATEST, "9999")


async def test_indexes_of_two_shards_are_built_at_once_and_do_not_wait_for_each_other(
    database_url: str, tmp_path: Path
) -> None:
    write_migration(tmp_path, INDEX, "transactional = False")
    async with session(database_url) as holder, session(database_url) as other:
        async with holder.transaction():
            # Each build waits for this transaction, and for all older ones.
            for number in range(SHARDS):
                await holder.execute(f"LOCK TABLE cart_shard_{number}.carts IN ROW EXCLUSIVE MODE")
            running = asyncio.create_task(migrated(open_database(database_url), Lines(), tmp_path))
            async with asyncio.timeout(30):
                while await other.fetchval("SELECT count(*) FROM pg_stat_progress_create_index") < 2:
                    await asyncio.sleep(0.01)
        assert await running == (LATEST, "9999")
        valid = "SELECT count(*) FROM pg_index WHERE indisvalid AND indexrelid::regclass::text LIKE '%carts_note'"
        assert await other.fetchval(valid) == SHARDS
