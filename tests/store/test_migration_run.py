"""Migrations run while other processes use the database, and some wait for these."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from cart_grpc import app, database_setup
from cart_grpc.carts.refusals import DatabaseUnavailable
from cart_grpc.commands.direct import Pause
from cart_grpc.settings import Settings
from cart_grpc.startup import NotYet, StartupError
from cart_grpc.store import migrate, migration_run
from cart_grpc.store.failures import Unsuitable
from cart_grpc.store.migrations.operations import refuse_releases_before
from cart_grpc.store.postgresql_session import IN_USE
from cart_grpc.store.revisions import LATEST
from tests.databases import shards_of
from tests.store.test_migration_rules import ADD_COLUMN, write_migration
from tests.store.test_migrations import opened

# Of statements and of one schema.
pytestmark = pytest.mark.one_shard

INSERT_MARKER = "INSERT INTO commit_markers (slice, writer_id, batch_number, update_time) VALUES (0, $1, 1, 1)"
CONTRACTS = f'oldest_revision = "{LATEST}"'
CONTRACTION = f'refuse_releases_before("{LATEST}"); op.drop_index("carts_merged_into")'
INDEX = 'build_index("carts_note", "carts", ["uid"])'


class Lines(list[str]):
    """The lines that a migration reports."""

    async def until(self, part: str) -> None:
        async with asyncio.timeout(30):
            while not any(part in line for line in self):
                await asyncio.sleep(0.01)


@asynccontextmanager
async def session(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        yield connection
    finally:
        await connection.close()


async def run(url: str, versions: Path, lines: Lines) -> tuple[str | None, str]:
    async with opened(url) as engine:
        return await migration_run.run(engine, lines.append, versions)


@pytest.mark.parametrize("backend", ["postgresql"])
async def test_callers_go_on_while_a_migration_waits_for_a_long_transaction(database_url: str, tmp_path: Path) -> None:
    write_migration(tmp_path, ADD_COLUMN.format("").replace('"carts"', '"commit_markers"'))
    lines = Lines()
    async with session(database_url) as reader, session(database_url) as writer:
        async with reader.transaction():
            # As pg_dump does.
            await reader.execute("LOCK TABLE commit_markers IN ACCESS SHARE MODE")
            running = asyncio.create_task(run(database_url, tmp_path, lines))
            await lines.until(f"a table is locked; the oldest transaction is 0 s old: pid {reader.get_server_pid()}")
            async with asyncio.timeout(migration_run.PAUSE_SECONDS):
                await writer.execute(INSERT_MARKER, "w")
            assert not running.done()
        assert await running == (LATEST, "9999")
    assert "schema 9999: An example" in lines[-1]


@pytest.mark.parametrize("backend", ["postgresql"])
async def test_an_index_is_built_while_a_transaction_holds_its_table_and_other_callers_write(
    database_url: str, tmp_path: Path
) -> None:
    write_migration(tmp_path, INDEX, "transactional = False")
    async with session(database_url) as holder, session(database_url) as writer:
        async with holder.transaction():
            await holder.execute("LOCK TABLE carts IN ROW EXCLUSIVE MODE")
            running = asyncio.create_task(run(database_url, tmp_path, Lines()))
            async with asyncio.timeout(30):
                while not await writer.fetchval("SELECT count(*) FROM pg_stat_progress_create_index"):
                    await asyncio.sleep(0.01)
            await writer.execute("UPDATE carts SET uid = uid")
            assert not running.done()
        assert await running == (LATEST, "9999")
        assert await writer.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = 'carts_note'::regclass")


@pytest.mark.parametrize("backend", ["postgresql"])
async def test_an_index_whose_build_was_cut_off_is_built_again(database_url: str, tmp_path: Path) -> None:
    write_migration(tmp_path, INDEX, "transactional = False")
    async with session(database_url) as holder, session(database_url) as other:
        async with holder.transaction():
            await holder.execute("LOCK TABLE carts IN ROW EXCLUSIVE MODE")
            first = asyncio.create_task(run(database_url, tmp_path, Lines()))
            builder = None
            async with asyncio.timeout(30):
                while not builder:
                    builder = await other.fetchval("SELECT pid FROM pg_stat_progress_create_index")
                    await asyncio.sleep(0.01)
            await other.execute("SELECT pg_terminate_backend($1, 5000)", builder)
            with pytest.raises(Exception, match=r"terminating|closed"):
                await first
        is_valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'carts_note'::regclass"
        assert await other.fetchval(is_valid) is False
        assert await run(database_url, tmp_path, Lines()) == (LATEST, "9999")
        assert await other.fetchval(is_valid) is True


@pytest.mark.parametrize("backend", ["postgresql"])
async def test_a_contraction_refuses_while_an_older_release_is_connected(database_url: str, tmp_path: Path) -> None:
    write_migration(tmp_path, CONTRACTION, CONTRACTS)
    async with session(database_url) as old:
        # All that a session of schema 0001 holds.
        await old.execute(f"SELECT pg_advisory_lock_shared({IN_USE})")
        pid = old.get_server_pid()
        with pytest.raises(Unsuitable, match=rf"older ones are connected \(pid {pid}\); stop them"):
            await run(database_url, tmp_path, Lines())
        assert await old.fetchval("SELECT to_regclass('carts_merged_into')")
    assert await run(database_url, tmp_path, Lines()) == (LATEST, "9999")


async def test_after_a_contraction_an_older_release_cannot_write_and_this_one_can(
    database_url: str, tmp_path: Path
) -> None:
    write_migration(tmp_path, CONTRACTION, CONTRACTS)
    await run(database_url, tmp_path, Lines())
    marker = INSERT_MARKER.replace("$1", "'old'")
    async with opened(database_url) as engine:
        with pytest.raises(DBAPIError, match=f"too old for the database: start one with schema {LATEST}") as old:
            await engine.transact(lambda connection: connection.exec_driver_sql(marker))
        # A release that knows nothing of this record does not start either, and shows the text.
        refused = database_setup.unusable(engine, old.value)
        assert "start one with schema" in str(refused)
        assert not isinstance(refused, NotYet)
    async with app.running_store(Settings(database_url=database_url, database_shards=shards_of(database_url))) as store:
        await store.pause(Pause("a test"))


async def test_a_release_that_is_too_old_does_not_start_and_says_what_to_do(database_url: str) -> None:
    async with opened(database_url) as engine:
        await engine.transact(contract_to_9999)
        for start in (database_setup.check, database_setup.upgrade):
            with pytest.raises(StartupError, match=f"or newer; this one has schema {LATEST}: start a newer release"):
                await start(engine)


@pytest.mark.parametrize("backend", ["postgresql"])
async def test_a_process_that_a_contraction_left_behind_writes_nothing_and_is_not_ready(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with app.running_store(Settings(database_url=database_url, database_shards=shards_of(database_url))) as store:
        async with opened(database_url) as engine:
            await engine.transact(contract_to_9999)
        for refused in (store.pause(Pause("a test")), store.ping()):
            with pytest.raises(DatabaseUnavailable):
                await refused
    assert "writes fail: this release of cart-grpc is too old for the database" in caplog.text


def contract_to_9999(connection: Connection) -> None:
    with Operations.context(MigrationContext.configure(connection)):
        refuse_releases_before("9999")


async def test_pending_migrations_are_listed_without_running_them(database_url: str, tmp_path: Path) -> None:
    write_migration(tmp_path, ADD_COLUMN.format(""))
    async with opened(database_url) as engine:
        pending = await engine.transact(lambda connection: migrate.find_pending(connection, tmp_path))
        assert [(script.revision, script.title) for script in pending] == [("9999", "An example")]
        assert await engine.transact(migrate.current_revision) == LATEST
        assert await database_setup.find_pending(engine) == []
