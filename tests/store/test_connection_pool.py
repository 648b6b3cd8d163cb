"""PostgreSQL only: a process uses the connections that it gets, and reads again if a connection was dead."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import asyncpg
import pytest
from sqlalchemy import Connection, make_url
from sqlalchemy.exc import DBAPIError

from cart_grpc import app
from cart_grpc.carts.model import CartState
from cart_grpc.carts.refusals import DatabaseUnavailable
from cart_grpc.names import cart_key, user_key
from cart_grpc.protocol.lanes import HOLD_LANE
from cart_grpc.store import connection_pool
from cart_grpc.store.postgresql import PostgresqlEngine
from cart_grpc.store.read.operator_reads import BACKLOG
from cart_grpc.store.read.reads import Page
from cart_grpc.store.read.reservation_search import ReservationPage
from cart_grpc.store.store import Store
from tests.databases import open_database
from tests.postgres import SUPERUSER, PostgresServer
from tests.store.roles import administer, as_plain_role, open_readers
from tests.store.writes import KEY, SKU, add, decode, snapshot

PAGE = Page(KEY.user, 5, frozenset({CartState.ACTIVE}), "name", False, None)
READS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "a cart": lambda store: store.reads.find_cart(KEY),
    "a list of carts": lambda store: store.reads.list_carts(PAGE),
    "idle carts": lambda store: store.reads.find_idle_carts(5),
    "due reservations": lambda store: store.reads.has_due(HOLD_LANE),
    "the backlog": lambda store: store.operator_reads.get_stats(),
    "a list of reservations": lambda store: store.reservation_searches.find(ReservationPage(5, BACKLOG, 0, 0, None)),
}


@pytest.fixture
def backend() -> str:
    return "postgresql"


@pytest.fixture
async def few(database_url: str) -> AsyncIterator[Store]:
    """A store whose role may have three connections: one for writes, one for each kind of read."""
    _, url = await as_plain_role(database_url, "CONNECTION LIMIT 3")
    engine = open_database(url)
    await open_readers(engine)
    store = Store(engine, app.new_id, queue_size=1000)
    await store.start()
    yield store
    await store.close()
    await engine.close()


@pytest.mark.one_shard
async def test_calls_wait_for_the_few_connections_that_a_role_may_have_and_the_log_says_so_once(
    few: Store, caplog: pytest.LogCaptureFixture
) -> None:
    await few.mutate(add())
    keys = [cart_key(user_key(f"user{number}"), "default") for number in range(10)]
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            await asyncio.gather(
                *(few.mutate(add(key=key)) for key in keys), *(read(few) for read in [*READS.values()] * 5)
            )
        line = "the database grants 3 of 9 connections; calls wait for these: too many connections for role"
        async with asyncio.timeout(20):
            while line not in caplog.text:
                await asyncio.sleep(0.01)
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


@pytest.mark.one_shard
async def test_the_log_says_when_the_database_grants_all_connections_again(
    few: Store, database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_pool, "REST_SECONDS", 0.05)
    engine = few._engine
    assert isinstance(engine, PostgresqlEngine)
    with caplog.at_level(logging.INFO):
        async with engine._reader.connect():
            waiting = asyncio.create_task(engine.read(lambda _: None))
            async with asyncio.timeout(20):
                while "the database grants 3 of 9" not in caplog.text:
                    await asyncio.sleep(0.01)
            await administer(database_url, f"ALTER ROLE {few_role(engine)} CONNECTION LIMIT 9")
            await waiting
        async with AsyncExitStack() as stack, asyncio.timeout(20):
            for pool in (engine._reader, engine._query_reader):
                for _ in range(4):
                    await stack.enter_async_context(pool.connect())
    assert "the database grants all 9 connections" in caplog.text


def few_role(engine: PostgresqlEngine) -> str:
    """The name of the engine's role."""
    return engine.name.partition("//")[2].partition("@")[0]


async def test_a_database_that_grants_no_connection_refuses_at_once(database_url: str) -> None:
    _, url = await as_plain_role(database_url, "CONNECTION LIMIT 0")
    engine = open_database(url)
    with pytest.raises(DBAPIError, match="too many connections for role"):
        await open_readers(engine)
    await engine.close()


async def test_a_call_that_waits_gets_the_connection_of_a_call_that_gave_up(few: Store) -> None:
    engine = few._engine
    assert isinstance(engine, PostgresqlEngine)
    pool = engine._query_reader
    lent = pool.connect()
    await lent.__aenter__()
    reads = [asyncio.create_task(few.reads.list_carts(PAGE)) for _ in range(3)]
    while len(pool._waiting) < 3 or pool._opening:
        await asyncio.sleep(0.001)
    reads[1].cancel()
    # This wakes the first of them, which gives up before it runs.
    await lent.__aexit__(None, None, None)
    reads[0].cancel()
    async with asyncio.timeout(10):
        assert await reads[2] == []


async def test_a_kind_of_call_without_a_connection_gets_one_of_a_kind_that_has_several(
    few: Store, database_url: str
) -> None:
    engine = few._engine
    assert isinstance(engine, PostgresqlEngine)
    end_all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'plain%'"
    await administer(database_url, f"{end_all} AND datname = current_database()")
    # After an outage, the first kind takes them all.
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(engine._reader.connect())
        listing = asyncio.create_task(few.reads.list_carts(PAGE))
        while not engine._query_reader._opening:
            await asyncio.sleep(0.001)
    assert await listing == []
    assert decode(await few.mutate(add())) == {SKU: 1}
    assert (await snapshot(few)).cart.total_quantity == 1


@pytest.mark.parametrize("kind", READS)
async def test_a_read_whose_connection_the_database_has_ended_is_made_again(
    store: Store, engine: PostgresqlEngine, postgres: PostgresServer, database_url: str, kind: str
) -> None:
    await store.mutate(add())
    for pool in (engine._reader, engine._query_reader):
        async with pool.connect(), pool.connect():
            pass
    end_all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = "
    database = database_url.partition("?")[0].rpartition("/")[2]
    # This blocks the event loop, so the driver has not seen the end of its connections when the read begins.
    command = ("--host", str(postgres.directory), "--username", SUPERUSER, "--command", f"{end_all}'{database}'")
    postgres._run("psql", *command, "postgres")
    await READS[kind](store)


@pytest.mark.parametrize("kind", READS)
async def test_a_read_after_a_time_of_rest_gets_a_new_connection(store: Store, database_url: str, kind: str) -> None:
    await READS[kind](store)
    end_all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    await administer(database_url, f"{end_all} AND datname = current_database()")
    await READS[kind](store)


async def test_a_read_is_not_repeated_for_ever(store: Store, engine: PostgresqlEngine) -> None:
    runs = []

    def fail(connection: object) -> None:
        runs.append(connection)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await engine.query(fail)
    assert len(runs) == 5
    with pytest.raises(DatabaseUnavailable):
        await engine.query(_refuse)


def _refuse(_: object) -> None:
    raise DatabaseUnavailable


async def test_a_call_waits_for_the_place_of_a_session_that_is_ending(
    database_url: str, postgres: PostgresServer
) -> None:
    role, url = await as_plain_role(database_url, "CONNECTION LIMIT 1")
    ending = await asyncpg.connect(host=str(postgres.directory), user=role, database=make_url(url).database)
    engine = open_database(url)
    reading = asyncio.create_task(engine.read(lambda connection: connection.exec_driver_sql("SELECT 7").scalar_one()))
    async with asyncio.timeout(20):
        while f'too many connections for role "{role}"' not in postgres.log:
            await asyncio.sleep(0.005)
    await ending.close()
    assert await reading == 7
    await engine.close()


@pytest.mark.parametrize("seed", range(2))
async def test_no_connection_and_no_call_is_lost_however_calls_end(database_url: str, seed: int) -> None:
    """Calls that succeed, fail, are cancelled, or whose connection dies, on two connections or on four."""
    _, url = await as_plain_role(database_url, f"CONNECTION LIMIT {2 if seed else 4}")
    engine = open_database(url)
    assert isinstance(engine, PostgresqlEngine)
    pool, chance = engine._query_reader, random.Random(seed)
    await pool.run(lambda _: None)

    def work(connection: Connection) -> int:
        if chance.random() < 0.1:
            raise ValueError
        if chance.random() < 0.1:
            connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
        return int(connection.exec_driver_sql("SELECT 7").scalar_one())

    async def call() -> int:
        async with asyncio.timeout(chance.random() / 20 if chance.random() < 0.3 else 20):
            return await pool.run(work)

    results = await asyncio.gather(*(call() for _ in range(150)), return_exceptions=True)
    allowed = (ValueError, TimeoutError, DBAPIError)
    assert [result for result in results if result != 7 and not isinstance(result, allowed)] == []
    assert results.count(7) > 50
    while pool._opening:
        await asyncio.sleep(0.01)
    assert not pool._waiting
    assert len(pool._idle) == pool._open <= 4
    assert await pool.run(lambda connection: connection.exec_driver_sql("SELECT 8").scalar_one()) == 8
    await engine.close()
