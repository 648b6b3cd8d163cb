"""The database goes down and comes back, or loads other settings."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest
from sqlalchemy import Connection, make_url

from cart_grpc import app, database_setup
from cart_grpc.carts.refusals import DatabaseUnavailable, OutcomeUnknown
from cart_grpc.store import batch_writer, migration_run
from cart_grpc.store.engine import connect
from cart_grpc.store.postgresql import PostgresqlEngine
from cart_grpc.store.postgresql_session import SETTINGS
from cart_grpc.store.store import Store
from tests.postgres import SUPERUSER, PostgresServer, running_postgres
from tests.store.roles import administer
from tests.store.test_postgresql_session import HOSTILE, show
from tests.store.writes import SKU, add, before_commit, claim, decode, snapshot


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A server of its own, which a test may stop. It is durable, so commits survive a kill."""
    with running_postgres(durable=True) as server:
        yield server


@pytest.fixture
async def engine(own_postgres: PostgresServer, request: pytest.FixtureRequest) -> AsyncIterator[PostgresqlEngine]:
    own_postgres.start()
    url = own_postgres.create_database(f"cart_{abs(hash(request.node.name))}")
    engine = connect(url, app.clock)
    assert isinstance(engine, PostgresqlEngine)
    await migration_run.run(engine)
    yield engine
    await engine.close()
    own_postgres.start()


async def test_calls_are_refused_while_the_database_is_down_and_succeed_when_it_is_back(
    store: Store, own_postgres: PostgresServer
) -> None:
    await store.mutate(add())
    own_postgres.stop()
    writes = [asyncio.create_task(store.mutate(add(request_id=f"r{number}"))) for number in range(3)]
    for refused in await asyncio.gather(*writes, return_exceptions=True):
        assert isinstance(refused, DatabaseUnavailable)
    with pytest.raises(DatabaseUnavailable):
        await store.ping()
    with pytest.raises(DatabaseUnavailable):
        await claim(store)
    own_postgres.start()
    assert decode(await store.mutate(add())) == {SKU: 2}
    assert (await snapshot(store)).cart.revision == 2
    assert len(await claim(store)) == 1


async def test_a_write_survives_a_restart_of_the_database(store: Store, own_postgres: PostgresServer) -> None:
    await store.mutate(add())
    own_postgres.stop()
    writing = asyncio.create_task(store.mutate(add()))
    await asyncio.sleep(0)
    own_postgres.start()
    assert decode(await writing) == {SKU: 2}
    assert (await snapshot(store)).cart.revision == 2


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "not committed"])
async def test_a_commit_that_cannot_be_resolved_is_outcome_unknown_and_a_replay_resolves_it(
    store: Store,
    engine: PostgresqlEngine,
    own_postgres: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    committed: bool,
) -> None:
    monkeypatch.setattr(batch_writer, "RESOLVE_SECONDS", 0.2)
    await store.mutate(add())

    def pull_the_plug(connection: Connection) -> None:
        end()
        if committed:
            connection.exec_driver_sql("COMMIT")
        own_postgres.kill()
        connection.exec_driver_sql("SELECT 1")

    end = before_commit(engine, pull_the_plug)
    with pytest.raises(OutcomeUnknown):
        await store.mutate(add(request_id="r1"))
    own_postgres.start()
    assert decode(await store.mutate(add(request_id="r1"))) == {SKU: 2}
    found = await snapshot(store)
    assert (found.cart.total_quantity, found.cart.revision) == (2, 2)


async def test_a_broken_commit_is_resolved_when_the_database_is_back_in_time(
    store: Store, engine: PostgresqlEngine, own_postgres: PostgresServer
) -> None:
    def pull_the_plug(connection: Connection) -> None:
        end()
        connection.exec_driver_sql("COMMIT")
        own_postgres.kill()
        connection.exec_driver_sql("SELECT 1")

    end = before_commit(engine, pull_the_plug)
    writing = asyncio.create_task(store.mutate(add()))
    async with asyncio.timeout(20):
        while not _is_down(own_postgres):
            await asyncio.sleep(0.01)
    own_postgres.start()
    assert decode(await writing) == {SKU: 1}
    assert (await snapshot(store)).cart.revision == 1


def _is_down(server: PostgresServer) -> bool:
    try:
        return server.pid < 0
    except RuntimeError:
        return True


async def test_acknowledged_changes_survive_a_crash_although_the_database_does_not_wait_for_the_disk(
    own_postgres: PostgresServer,
) -> None:
    own_postgres.start()
    url = own_postgres.create_database("lazy")
    await administer(
        url,
        "ALTER DATABASE lazy SET synchronous_commit = off",
        # Nobody else writes the log to disk meanwhile.
        "ALTER SYSTEM SET wal_writer_delay = '10s'",
        "SELECT pg_reload_conf()",
    )
    engine = connect(url, app.clock)
    await database_setup.upgrade(engine)
    store = Store(engine, app.new_id, queue_size=1000)
    await store.start()
    for _ in range(5):
        await store.mutate(add())
    own_postgres.kill()
    own_postgres.start()
    assert (await snapshot(store)).cart.total_quantity == 5
    await store.close()
    await engine.close()


async def test_a_running_session_keeps_its_settings_when_the_server_reloads_other_ones(
    own_postgres: PostgresServer,
) -> None:
    own_postgres.start()
    url = own_postgres.create_database("reloaded")
    engine = connect(url, app.clock)
    await engine.transact(show("synchronous_commit"))
    kept = SETTINGS.keys() - {"session_replication_role", "zero_damaged_pages", "ignore_checksum_failure"}
    # Without Citus, there is no such setting when the session begins.
    kept -= {"citus.override_table_visibility"}
    try:
        await administer(url, *(f"ALTER SYSTEM SET {name} = '{HOSTILE[name]}'" for name in kept))
        await administer(url, "SELECT pg_reload_conf()")
        async with asyncio.timeout(20):
            while not await _is_reloaded(url):
                await asyncio.sleep(0.01)
        assert await engine.transact(show(*kept)) == {name: SETTINGS[name] for name in kept}
    finally:
        await administer(url, "ALTER SYSTEM RESET ALL", "SELECT pg_reload_conf()")
    await engine.close()


async def _is_reloaded(url: str) -> bool:
    parsed = make_url(url)
    connection = await asyncpg.connect(host=str(parsed.query["host"]), user=SUPERUSER, database=parsed.database)
    try:
        return bool(await connection.fetchval("SHOW synchronous_commit") == HOSTILE["synchronous_commit"])
    finally:
        await connection.close()
