"""A ping goes through each path to the database: writes, reads of carts, reads of lists."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, func, select, text

from cart_grpc import app
from cart_grpc.carts.refusals import DatabaseUnavailable
from cart_grpc.store import store as store_module
from cart_grpc.store.connection_pool import find_driver
from cart_grpc.store.engine import Engine
from cart_grpc.store.postgresql import PostgresqlEngine
from cart_grpc.store.store import Store
from tests.databases import open_database
from tests.postgres import SUPERUSER, PostgresServer
from tests.store.writes import Wrapped, add

T = TypeVar("T")
# The log's name of each path, the engine's method, and PostgreSQL's pool.
PATHS = (
    ("writes", "transact", "_writer"),
    ("reads of carts", "read", "_reader"),
    ("reads of lists", "query", "_query_reader"),
)
each_path = pytest.mark.parametrize(("path", "method", "pool"), PATHS, ids=[path[1] for path in PATHS])
_numbers = itertools.count()


class Breakable(Wrapped):
    """An engine, one of whose paths fails or hangs."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.broken = ""
        self.go_on: asyncio.Event | None = None

    async def transact(self, work: Callable[[Connection], T]) -> T:
        return await self._run("transact", self.inner.transact, work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await self._run("read", self.inner.read, work)

    async def query(self, work: Callable[[Connection], T]) -> T:
        return await self._run("query", self.inner.query, work)

    async def _run(self, method: str, run: Callable[..., Any], work: Callable[[Connection], T]) -> T:
        if method == self.broken and self.go_on:
            await self.go_on.wait()
        elif method == self.broken:
            raise ConnectionResetError("the cause")
        return await run(work)  # type: ignore[no-any-return]


@pytest.fixture
async def engine_and_store(engine: Engine) -> AsyncIterator[tuple[Breakable, Store]]:
    breakable = Breakable(engine)
    store = Store(breakable, app.new_id, queue_size=100)
    await store.start()
    for path in (store._write_queue, store.reads, store._reader):
        path.failures._quiet_seconds = 0
    yield breakable, store
    await store.close()


@pytest.fixture
async def limited(postgres: PostgresServer, database_url: str) -> AsyncIterator[tuple[PostgresqlEngine, Store, str]]:
    """A store, and the role of its own that it uses."""
    role = f"ping_{next(_numbers)}"
    postgres.run(f"CREATE ROLE {role} LOGIN SUPERUSER")
    engine = open_database(database_url.replace(f"{SUPERUSER}@", f"{role}@"))
    assert isinstance(engine, PostgresqlEngine)
    store = Store(engine, app.new_id, queue_size=100)
    await store.start()
    yield engine, store, role
    await store.close()
    await engine.close()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


@each_path
async def test_a_ping_fails_while_one_path_fails_and_its_cause_and_its_end_are_logged_once(
    engine_and_store: tuple[Breakable, Store], lines: Callable[[], list[str]], path: str, method: str, pool: str
) -> None:
    engine, store = engine_and_store
    await store.ping()
    engine.broken = method
    for _ in range(3):
        with pytest.raises(DatabaseUnavailable):
            await store.ping()
    engine.broken = ""
    await store.ping()
    await store.ping()
    failed, worked = lines()
    assert failed == f"{path} fail: the cause"
    assert worked.startswith(f"{path} work again after ")


@each_path
async def test_a_ping_does_not_wait_for_a_path_that_hangs(
    engine_and_store: tuple[Breakable, Store],
    lines: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    method: str,
    pool: str,
) -> None:
    engine, store = engine_and_store
    await store.ping()
    monkeypatch.setattr(store_module, "PING_SECONDS", 0.5)
    engine.broken, engine.go_on = method, asyncio.Event()
    with pytest.raises(DatabaseUnavailable):
        await store.ping()
    assert lines() == [f"{path} fail: no answer in time"]
    engine.go_on.set()
    monkeypatch.setattr(store_module, "PING_SECONDS", 20)
    await store.ping()


async def test_a_full_queue_of_reads_does_not_fail_a_ping(engine_and_store: tuple[Breakable, Store]) -> None:
    _, store = engine_and_store
    store.reads.carts[0]._queue_size = 0
    await store.ping()


@pytest.mark.parametrize("backend", ["postgresql"])
async def test_long_reads_that_use_all_connections_do_not_fail_a_ping(
    engine_and_store: tuple[Breakable, Store],
) -> None:
    engine, store = engine_and_store
    await store.ping()
    long_reads = [asyncio.create_task(store._reader.fetch(select(func.pg_sleep(60)), {})) for _ in range(4)]
    sleeping = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    async with asyncio.timeout(20):
        while await engine.transact(lambda connection: connection.execute(sleeping).scalar_one()) < 4:
            await asyncio.sleep(0.01)
    await store.ping()
    assert not any(one.done() for one in long_reads)
    for one in long_reads:
        one.cancel()
    await asyncio.gather(*long_reads, return_exceptions=True)


@pytest.mark.parametrize("backend", ["postgresql"])
@each_path
async def test_a_session_that_postgresql_ends_and_refuses_to_open_again_fails_a_ping(
    postgres: PostgresServer,
    limited: tuple[PostgresqlEngine, Store, str],
    lines: Callable[[], list[str]],
    path: str,
    method: str,
    pool: str,
) -> None:
    engine, store, role = limited
    await store.ping()
    async with getattr(engine, pool).connect() as connection:
        pid = find_driver(connection).get_server_pid()
    postgres.run(f"ALTER ROLE {role} NOLOGIN", f"SELECT pg_terminate_backend({pid})")
    with pytest.raises(DatabaseUnavailable):
        await store.ping()
    assert lines() == [f'{path} fail: role "{role}" is not permitted to log in']
    postgres.run(f"ALTER ROLE {role} LOGIN")
    await store.ping()
    await store.mutate(add())


@pytest.mark.parametrize("backend", ["postgresql"])
async def test_a_ping_of_a_read_only_database_replaces_the_connection_of_the_writer(
    engine_and_store: tuple[Breakable, Store], lines: Callable[[], list[str]]
) -> None:
    """A server that is not ready gets no calls, so nothing but the ping finds the new primary."""
    engine, store = engine_and_store
    await engine.inner.transact(lambda connection: connection.exec_driver_sql("SET default_transaction_read_only = on"))
    with pytest.raises(DatabaseUnavailable):
        await store.ping()
    assert lines() == ["writes fail: the database is read-only"]
    await store.ping()
