"""A real PgBouncer in front of PostgreSQL: session pooling works, the other modes are refused at start."""

import asyncio
from contextlib import suppress
from datetime import timedelta

import asyncpg
import grpc
import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2
from pydantic import SecretStr

from cart_grpc import app, database_setup
from cart_grpc.settings import Settings
from cart_grpc.startup import StartupError
from cart_grpc.store.engine import connect
from cart_grpc.store.postgresql_session import SETTINGS
from tests.debian.pgbouncer import PgBouncer, running_pgbouncer
from tests.postgres import SUPERUSER, PostgresServer
from tests.service.conftest import CART, Replica, running_replica
from tests.store.roles import open_readers
from tests.store.test_postgresql_session import HOSTILE, show

pytestmark = pytest.mark.debian
State = cart_pb2.Reservation.State


@pytest.fixture
def backend() -> str:
    return "postgresql"


@pytest.fixture
def database(database_url: str) -> str:
    """The name of a migrated database."""
    return database_url.partition("?")[0].rpartition("/")[2]


def url_of(address: str, database: str) -> str:
    return f"postgresql://{SUPERUSER}@{address}/{database}"


def behind(pooler: PgBouncer, database: str, settings: Settings) -> Settings:
    """`settings` with the database behind the pooler."""
    return settings.with_changes(database_url=SecretStr(url_of(pooler.address, database)))


async def leave_hostile_settings(address: str, database: str) -> None:
    """Use every session that the pooler has, and leave each as nobody should."""
    dsn = url_of(address, database)
    sessions = [await asyncpg.connect(dsn) for _ in range(10)]
    changes = {**HOSTILE, "default_transaction_read_only": "on"}
    # The driver needs this one.
    del changes["client_encoding"]
    for session in sessions:
        await session.execute("PREPARE __asyncpg_stmt_1__ AS SELECT 1")
        await session.execute("CREATE TEMP TABLE carts (name text)")
        await session.execute("; ".join(f"SET {name} = '{value}'" for name, value in changes.items()))
    for session in sessions:
        await session.close()


@pytest.mark.parametrize("reset", ["DISCARD ALL", ""], ids=["reset", "not reset"])
async def test_everything_works_behind_a_pooler_of_sessions(
    postgres: PostgresServer, database: str, settings: Settings, reset: str
) -> None:
    pooling = {"pool_mode": "session", "server_reset_query": reset, "default_pool_size": "20"}
    with running_pgbouncer(postgres, **pooling) as pooler:
        await leave_hostile_settings(pooler.address, database)
        engine = connect(url_of(pooler.address, database), app.clock)
        for run in (engine.transact, engine.read, engine.query):
            assert await run(show(*SETTINGS)) == SETTINGS
        await engine.close()
        async with running_replica(
            settings.with_changes(database_url=SecretStr(url_of(pooler.address, database)))
        ) as client:
            await use(client)


async def use(client: Replica) -> None:
    """Take the main path, and every kind of read."""
    added = await client.add(quantity=2, max_wait=timedelta(seconds=10), request_id="r1")
    assert added.reservation.state == State.STATE_RESERVED
    again = await client.add(quantity=2, request_id="r1", max_wait=timedelta(seconds=10))
    assert again.quantity == 2
    listed = await client.stub.ListCarts(cart_service_pb2.ListCartsRequest(parent="users/alice"), timeout=10)
    assert [cart.name for cart in listed.carts] == [CART]
    removing = cart_service_pb2.RemoveItemRequest(name=added.name)
    await client.stub.RemoveItem(removing, timeout=20)
    cart = await client.settled()
    assert not cart.items
    many = [client.add(sku=f"sku-{number}", cart=f"users/u{number}/carts/default") for number in range(20)]
    await asyncio.gather(*many, *(client.get() for _ in range(20)))


async def open_sessions(address: str, database: str) -> None:
    """Let the pooler open several sessions, so that it has a choice."""
    clients = [await asyncpg.connect(url_of(address, database)) for _ in range(5)]
    for client in clients:
        await client.execute("BEGIN")
    for client in clients:
        await client.execute("ROLLBACK")
        await client.close()


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize("round_robin", ["0", "1"])
async def test_a_pooler_of_anything_but_sessions_is_refused_at_start(
    postgres: PostgresServer, database: str, mode: str, round_robin: str
) -> None:
    with running_pgbouncer(postgres, pool_mode=mode, server_round_robin=round_robin) as pooler:
        if mode == "transaction":
            await open_sessions(pooler.address, database)
        engine = connect(url_of(pooler.address, database), app.clock)
        with pytest.raises(StartupError, match="set pool_mode=session") as failed:
            await database_setup.check(engine)
        # Waiting does not help.
        assert type(failed.value) is StartupError
        assert "\n" not in str(failed.value)
        await engine.close()


@pytest.mark.one_shard
async def test_a_pool_that_is_smaller_than_ours_is_used_as_far_as_it_goes(
    postgres: PostgresServer, database: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with running_pgbouncer(postgres, pool_mode="session", default_pool_size="3", query_wait_timeout="1") as pooler:
        async with running_replica(
            settings.with_changes(database_url=SecretStr(url_of(pooler.address, database)))
        ) as client:
            await use(client)
            async with asyncio.timeout(20):
                while "the database grants 3 of 9 connections; calls wait for these" not in caplog.text:
                    await asyncio.sleep(0.01)
            await client.get()


@pytest.mark.one_shard
async def test_a_pool_that_is_too_small_to_start_is_an_error_and_no_hang(
    postgres: PostgresServer, database: str
) -> None:
    with running_pgbouncer(postgres, pool_mode="session", default_pool_size="2") as pooler:
        engine = connect(url_of(pooler.address, database), app.clock)
        await database_setup.check(engine)
        with pytest.raises(ConnectionError, match="a connection pooler has no server connection free for 5 s"):
            await open_readers(engine)
        await engine.close()
    with running_pgbouncer(postgres, pool_mode="session", default_pool_size="1") as pooler:
        engine = connect(url_of(pooler.address, database), app.clock)
        with pytest.raises(StartupError, match="a connection pooler has no second server connection free"):
            await database_setup.check(engine)
        await engine.close()


async def test_a_pooler_that_changes_its_mode_while_we_run_loses_nothing_and_is_named(
    postgres: PostgresServer, database: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with running_pgbouncer(postgres, pool_mode="session", default_pool_size="20") as pooler:
        async with running_replica(behind(pooler, database, settings)) as client:
            added = (await client.add()).quantity
            pooler.change("pool_mode = session", "pool_mode = transaction")
            async with asyncio.timeout(30):
                while "set pool_mode=session" not in caplog.text:
                    try:
                        added = (await client.add()).quantity
                        await client.get()
                    except grpc.aio.AioRpcError as error:
                        assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - the call may also succeed
            pooler.change("pool_mode = transaction", "pool_mode = session")
            async with asyncio.timeout(30):
                while True:
                    with suppress(grpc.aio.AioRpcError):
                        assert (await client.get()).total_quantity == added
                        break
            assert (await client.add()).quantity == added + 1
    assert "Traceback" not in caplog.text
