"""A full, read-only, damaged or busy database refuses calls without effect, and serves them again afterwards."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial
from pathlib import Path
from sqlite3 import connect as connect_sqlite

import pytest
from sqlalchemy import Connection, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from cart_grpc import app
from cart_grpc.carts.refusals import DatabaseDamaged, DatabaseFull, DatabaseUnavailable, OutcomeUnknown
from cart_grpc.names import cart_key, user_key
from cart_grpc.store import batch_writer
from cart_grpc.store.engine import Engine, connect
from cart_grpc.store.failures import find_refusal
from cart_grpc.store.postgresql import PostgresqlEngine
from cart_grpc.store.sqlite import SqliteEngine
from cart_grpc.store.store import Store
from tests.processes.proxy import wired
from tests.store.test_ambiguous_commit import Breaking
from tests.store.writes import SKU, add, decode, snapshot

on_sqlite = pytest.mark.parametrize("backend", ["sqlite"])
on_postgresql = pytest.mark.parametrize("backend", ["postgresql"])


async def execute(engine: Engine, statement: str) -> None:
    """Run a statement on the writer's connection."""
    await engine.transact(lambda connection: connection.execute(text(statement)))


async def refused_until(store: Store, refusal: type[DatabaseUnavailable]) -> int:
    """Write until a write is refused. Return how many were not."""
    for number in range(2000):
        try:
            await store.mutate(add(key=cart_key(user_key(f"user{number}"), "default")))
        except DatabaseUnavailable as refused:
            assert type(refused) is refusal  # noqa: PT017 - the number of accepted writes is returned
            return number
    raise AssertionError("no write was refused")


@on_sqlite
async def test_a_full_disk_refuses_writes_until_there_is_room(store: Store, engine: Engine) -> None:
    await store.mutate(add())
    await execute(engine, "PRAGMA max_page_count = 60")
    count = await refused_until(store, DatabaseFull)
    assert (await snapshot(store)).cart.total_quantity == 1
    await execute(engine, "PRAGMA max_page_count = 100000")
    await store.ping()
    assert not store._write_queue.failed
    assert decode(await store.mutate(add())) == {SKU: 2}
    users = await engine.transact(
        lambda connection: connection.execute(text("SELECT count(*) FROM carts")).scalar_one()
    )
    assert users >= count + 1


@on_sqlite
async def test_a_read_only_file_refuses_writes_and_is_not_ready_until_it_is_writable(
    store: Store, engine: Engine
) -> None:
    await execute(engine, "PRAGMA query_only = ON")
    with pytest.raises(DatabaseUnavailable):
        await store.mutate(add())
    with pytest.raises(DatabaseUnavailable):
        await store.ping()
    assert isinstance(engine, SqliteEngine)
    # The next connection is writable again.
    await asyncio.get_running_loop().run_in_executor(engine._thread, engine._writer.dispose)
    await store.ping()
    assert decode(await store.mutate(add())) == {SKU: 1}


@on_sqlite
async def test_a_damaged_page_refuses_all_reads_and_writes(store: Store, tmp_path: Path) -> None:
    await store.mutate(add())
    with closing(connect_sqlite(tmp_path / "cart.db")) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = other.execute("SELECT rootpage FROM sqlite_master WHERE name = 'carts'").fetchone()
    with (tmp_path / "cart.db").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    with closing(connect_sqlite(tmp_path / "cart.db", isolation_level=None)) as other:
        # A write by another connection makes every connection drop its cached pages.
        other.execute("UPDATE commit_markers SET batch_number = batch_number")
    for _ in range(2):
        with pytest.raises(DatabaseDamaged):
            await store.mutate(add())
    with pytest.raises(DatabaseDamaged):
        await store.ping()
    with pytest.raises(DatabaseDamaged):
        await snapshot(store)


@on_sqlite
async def test_a_failed_commit_that_may_survive_in_the_log_is_outcome_unknown(
    store: Store, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_writer, "RESOLVE_SECONDS", 0.2)
    await store.mutate(add())
    # The log may still contain the transaction. Only a write can overwrite it, and that fails, too.
    Breaking(engine, committed=False, plan="x" * 30)
    with pytest.raises(OutcomeUnknown):
        await store.mutate(add(request_id="r1"))


async def test_a_connection_that_breaks_during_a_ping_is_replaced(store: Store, engine: Engine) -> None:
    Breaking(engine, committed=False)
    await store.ping()
    assert decode(await store.mutate(add())) == {SKU: 1}


@pytest.fixture
async def outside(database_url: str) -> AsyncIterator[AsyncConnection]:
    """A connection of another program."""
    other = create_async_engine(database_url)
    async with other.connect() as connection:
        yield connection
    await other.dispose()


LOCK = text("SELECT 1 FROM users WHERE user_id = :user FOR UPDATE")


@on_postgresql
async def test_a_deadlock_with_another_replica_is_retried(
    store: Store, engine: Engine, outside: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = sorted(cart_key(user_key(name), "default") for name in ("alice", "bob"))
    await asyncio.gather(*(store.mutate(add(key=key)) for key in keys))
    # The session that detects the deadlock first is aborted: the writer.
    await execute(engine, "SET deadlock_timeout = '50ms'")
    await outside.execute(text("SET deadlock_timeout = '1min'"))
    states = []

    def find(error: BaseException) -> DatabaseUnavailable | None:
        states.append(getattr(error, "sqlstate", ""))
        return find_refusal(error)

    monkeypatch.setattr(batch_writer, "find_refusal", find)
    await outside.execute(LOCK, {"user": keys[1].user_id})
    # The writer locks users in order, so only a program that locks them in another order can deadlock with it.
    writing = asyncio.gather(*(store.mutate(add(key=key, request_id="r1")) for key in keys))
    await _until_waiting(outside)
    await outside.execute(LOCK, {"user": keys[0].user_id})
    await outside.rollback()
    assert [decode(reply) for reply in await writing] == [{SKU: 2}, {SKU: 2}]
    assert "40P01" in states


async def _until_waiting(connection: AsyncConnection) -> None:
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(20):
        while not (await connection.execute(waiting)).scalar_one():
            await asyncio.sleep(0.005)


@on_postgresql
async def test_a_statement_timeout_is_refused_without_effect(
    store: Store, engine: Engine, outside: AsyncConnection
) -> None:
    await store.mutate(add())
    await execute(engine, "SET statement_timeout = '50ms'")
    await outside.execute(LOCK, {"user": "alice"})
    with pytest.raises(DatabaseUnavailable):
        await store.mutate(add(request_id="r1"))
    await outside.rollback()
    await store.ping()
    assert decode(await store.mutate(add(request_id="r1"))) == {SKU: 2}


@on_postgresql
async def test_a_session_that_timed_out_idle_in_a_transaction_is_replaced(engine: Engine, store: Store) -> None:
    def stand_still(connection: Connection) -> None:
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '20ms'"))
        # This blocks the event loop, as if the process had been stopped.
        time.sleep(0.2)
        connection.execute(text("SELECT 1"))

    assert isinstance(engine, PostgresqlEngine)
    with pytest.raises(Exception, match=r".") as failed:
        await engine.transact(stand_still)
    assert type(find_refusal(failed.value)) is DatabaseUnavailable
    assert decode(await store.mutate(add())) == {SKU: 1}


@on_postgresql
async def test_a_read_only_postgresql_is_not_ready_until_it_is_writable(store: Store, engine: Engine) -> None:
    await store.mutate(add())
    await execute(engine, "SET default_transaction_read_only = on")
    with pytest.raises(DatabaseUnavailable):
        await store.ping()
    # The pool opens a new connection, because another server may be the primary now.
    assert decode(await store.mutate(add())) == {SKU: 2}
    await store.ping()


@on_postgresql
async def test_connections_have_keepalive_settings_that_break_a_silent_one_after_30_s(database_url: str) -> None:
    # A test cannot drop packets here, so check the options that tell the kernel to.
    path = f"{make_url(database_url).query['host']}/.s.PGSQL.5432"
    async with wired(partial(asyncio.open_unix_connection, path)) as wire:
        url = make_url(database_url).set(query={}, host="127.0.0.1", port=wire.port)
        engine = connect(url.render_as_string(hide_password=False), app.clock)
        assert isinstance(engine, PostgresqlEngine)
        for pool in (engine._writer, engine._reader, engine._query_reader):
            async with pool.connect() as connection:
                raw = await connection.get_raw_connection()
                sock = raw.driver_connection._transport.get_extra_info("socket")  # type: ignore[union-attr]
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
        await engine.close()
