"""SQLite only: one file, one writer, and other processes that may lock the file."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from cart_grpc.carts.refusals import DatabaseDamaged, DatabaseUnavailable
from cart_grpc.commands.direct import Pause
from cart_grpc.protocol.lanes import HOLD_LANE, RELEASE_LANE, Lane
from cart_grpc.store.sqlite import SqliteEngine
from cart_grpc.store.store import Store
from tests.store.writes import SKU, add, clear, decode, snapshot


@pytest.fixture
def backend() -> str:
    return "sqlite"


async def test_a_write_waits_for_a_locked_database(store: Store, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "cart.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(store.mutate(add()))
        await asyncio.wait([writing], timeout=0.2)
        assert not writing.done()
        other.execute("ROLLBACK")
        assert decode(await writing) == {SKU: 1}


async def test_a_write_to_a_database_that_stays_locked_is_refused_without_effect(
    store: Store, engine: SqliteEngine, tmp_path: Path
) -> None:
    await store.mutate(add())
    await engine.transact(lambda connection: connection.execute(text("PRAGMA busy_timeout = 50")))
    with closing(sqlite3.connect(tmp_path / "cart.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseUnavailable):
            await store.mutate(add(request_id="r1"))
        # Readers can still read.
        assert (await snapshot(store)).cart.total_quantity == 1
        other.execute("ROLLBACK")
    assert decode(await store.mutate(add(request_id="r1"))) == {SKU: 2}


async def test_concurrent_transactions_that_read_and_then_write_lose_no_update(
    engine: SqliteEngine, tmp_path: Path
) -> None:
    read = "SELECT coalesce(max(batch_number), 0) FROM commit_markers WHERE writer_id = 'raced'"
    write = "INSERT INTO commit_markers VALUES (0, 'raced', ?, 0, '0001') ON CONFLICT DO UPDATE SET batch_number = ?"

    def read_then_write(connection: Connection) -> None:
        number = connection.exec_driver_sql(read).scalar_one() + 1
        connection.exec_driver_sql(write, (number, number))

    async def race() -> None:
        for _ in range(40):
            await engine.transact(read_then_write)

    def race_as_another_program() -> None:
        with closing(sqlite3.connect(tmp_path / "cart.db", isolation_level=None)) as other:
            for _ in range(40):
                other.execute("BEGIN IMMEDIATE")
                number = other.execute(read).fetchone()[0] + 1
                other.execute(write, (number, number))
                other.execute("COMMIT")

    await asyncio.gather(race(), asyncio.to_thread(race_as_another_program))
    assert await engine.transact(lambda connection: connection.exec_driver_sql(read).scalar_one()) == 80


async def test_the_writer_has_the_settings_that_durability_depends_on(engine: SqliteEngine) -> None:
    def pragmas(connection: Connection) -> dict[str, object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "trusted_schema")
        return {name: connection.execute(text(f"PRAGMA {name}")).scalar_one() for name in names}

    # 2 is FULL.
    assert await engine.transact(pragmas) == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "trusted_schema": 0,
    }


async def test_readers_can_neither_write_nor_checkpoint(engine: SqliteEngine) -> None:
    async with engine.reader.connect() as connection:
        assert (await connection.execute(text("PRAGMA wal_autocheckpoint"))).scalar_one() == 0
        with pytest.raises(Exception, match="readonly"):
            await connection.execute(text("DELETE FROM carts"))
    looked = await engine.read(lambda connection: connection.execute(text("PRAGMA wal_autocheckpoint")).scalar_one())
    assert looked == 0
    with pytest.raises(Exception, match="readonly"):
        await engine.read(lambda connection: connection.execute(text("DELETE FROM carts")))


async def test_an_open_read_transaction_neither_blocks_a_write_nor_sees_it(store: Store, tmp_path: Path) -> None:
    await store.mutate(add())
    with closing(sqlite3.connect(tmp_path / "cart.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        total = "SELECT total_quantity FROM carts"
        assert reader.execute(total).fetchone() == (1,)
        assert decode(await store.mutate(add())) == {SKU: 2}
        assert reader.execute(total).fetchone() == (1,)
        reader.execute("ROLLBACK")


@pytest.mark.parametrize("lane", [HOLD_LANE, RELEASE_LANE])
async def test_a_pause_is_found_without_reading_all_due_rows(store: Store, engine: SqliteEngine, lane: Lane) -> None:
    for number in range(200):
        await store.mutate(add(f"sku-{number}"))
    if lane == RELEASE_LANE:
        await store.mutate(clear())
    await store.pause(Pause("maintenance"))
    steps = 0

    def count_steps() -> int:
        nonlocal steps
        steps += 1
        return 0

    def watch(connection: Connection) -> None:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        driver.set_progress_handler(count_steps, 1)

    # The first read also reads the schema.
    assert not await store.reads.has_due(lane)
    await engine.read(watch)
    assert not await store.reads.has_due(lane)
    assert 0 < steps < 200


async def test_no_transaction_begins_after_damage_was_found_not_even_a_queued_one(engine: SqliteEngine) -> None:
    def meet_damage(_: Connection) -> None:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error

    def write(connection: Connection) -> None:
        raise AssertionError("it began")

    results = await asyncio.gather(engine.transact(meet_damage), engine.transact(write), return_exceptions=True)
    assert [type(result) for result in results] == [sqlite3.DatabaseError, DatabaseDamaged]
