"""PostgreSQL only: a process uses the connections that it gets, and reads again if a connection was dead."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from sqlalchemy.exc import DBAPIError

from cart_grpc import app
from cart_grpc.carts.model import CartState
from cart_grpc.carts.refusals import DatabaseUnavailable
from cart_grpc.names import cart_key, user_key
from cart_grpc.protocol.lanes import HOLD_LANE
from cart_grpc.store.engine import connect
from cart_grpc.store.postgresql import PostgresqlEngine
from cart_grpc.store.read.operator_reads import BACKLOG, ReservationPage
from cart_grpc.store.read.reads import Page
from cart_grpc.store.store import Store
from tests.postgres import SUPERUSER, PostgresServer
from tests.store.roles import administer, as_plain_role, open_readers
from tests.store.writes import KEY, add

PAGE = Page(KEY.user, 5, frozenset({CartState.ACTIVE}), "name", False, None)
READS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "a cart": lambda store: store.reads.find_cart(KEY),
    "a list of carts": lambda store: store.reads.list_carts(PAGE),
    "idle carts": lambda store: store.reads.find_idle_carts(5),
    "due reservations": lambda store: store.reads.has_due(HOLD_LANE),
    "the backlog": lambda store: store.operator_reads.get_stats(),
    "a list of reservations": lambda store: store.operator_reads.list(ReservationPage(5, BACKLOG, 0, 0, None)),
}


@pytest.fixture
def backend() -> str:
    return "postgresql"


@pytest.fixture
async def few(database_url: str) -> AsyncIterator[Store]:
    """A store whose role may have three connections: one for writes, one for each kind of read."""
    _, url = await as_plain_role(database_url, "CONNECTION LIMIT 3")
    engine = connect(url, app.clock)
    await open_readers(engine)
    store = Store(engine, app.new_id, queue_size=1000)
    await store.start()
    yield store
    await store.close()
    await engine.close()


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
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("the database grants 3 of 9 connections; calls wait for these: too many connections")


async def test_a_database_that_grants_no_connection_refuses_at_once(database_url: str) -> None:
    _, url = await as_plain_role(database_url, "CONNECTION LIMIT 0")
    engine = connect(url, app.clock)
    with pytest.raises(DBAPIError, match="too many connections for role"):
        await open_readers(engine)
    await engine.close()


async def test_a_call_that_waits_gets_the_connection_of_a_call_that_gave_up(few: Store) -> None:
    gate = asyncio.Event()
    engine = few._engine
    assert isinstance(engine, PostgresqlEngine)

    async def hold() -> None:
        async with engine._query_reader.connect():
            await gate.wait()

    holding = asyncio.create_task(hold())
    while not engine._query_reader._open:
        await asyncio.sleep(0)
    reads = [asyncio.create_task(few.reads.list_carts(PAGE)) for _ in range(3)]
    while len(engine._query_reader._waiting) < 3:
        await asyncio.sleep(0.001)
    reads[0].cancel()
    gate.set()
    reads[1].cancel()
    assert await reads[2] == []
    await holding


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
