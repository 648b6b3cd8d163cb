"""PostgreSQL only: kept plans stay good when the tables change."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection

from cart_grpc.protocol.lanes import HOLD_LANE, RELEASE_LANE
from cart_grpc.store import schema
from cart_grpc.store.postgresql import PostgresqlEngine
from cart_grpc.store.prepared import fetch
from cart_grpc.store.read.cart_json import NOT_MODIFIED, CartJson
from cart_grpc.store.store import Store
from tests.store.checkouts import completing, sold
from tests.store.test_query_plans import fill, grow
from tests.store.writes import KEY, add, answered, claim_one, remove

T = TypeVar("T")
# Rows that this session read since it last reported statistics, which it does between transactions only.
ROWS_READ = "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables"

# Of plans, and of what one schema has.
pytestmark = pytest.mark.one_shard


@pytest.fixture
def backend() -> str:
    return "postgresql"


def collect_no_statistics(_: Connection) -> None:
    """Like a database in its first minute."""


def analyze_empty_tables(connection: Connection) -> None:
    # The rows of an earlier test may have left empty pages. ANALYZE would note that the tables have pages, but no rows.
    names = ", ".join(f'"{table.name}"' for table in schema.metadata.sorted_tables)
    connection.exec_driver_sql(f"TRUNCATE {names}")
    connection.exec_driver_sql("ANALYZE")


def reconcile(connection: Connection) -> None:
    """Make every reservation reconciling; none was."""
    connection.exec_driver_sql("UPDATE reservations SET revision = revision + 1, intent_revision = revision + 1")


def grow_and_reconcile(connection: Connection) -> None:
    grow(connection)
    reconcile(connection)


async def test_a_session_keeps_every_statement_of_its_batches(store: Store, engine: PostgresqlEngine) -> None:
    """To parse and plan the longest of them takes longer than to run it."""
    ran: set[str] = set()

    def watch(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        driver.add_query_logger(lambda record: ran.add(record.query))

    await engine.transact(watch)
    _, claimed = await completing(store, "a", "b")
    for row in claimed:
        await store.record(sold(row))
    statements = {text for text in ran if " " in text}
    kept = await engine.transact(
        lambda c: {text for (text,) in fetch(c, "SELECT statement FROM pg_prepared_statements", ())}
    )
    assert max(map(len, statements)) > 10_000
    assert statements <= kept


@pytest.mark.parametrize(
    ("prepare", "change"),
    [
        pytest.param(collect_no_statistics, grow, marks=pytest.mark.night),
        (collect_no_statistics, grow_and_reconcile),
        pytest.param(analyze_empty_tables, grow, marks=pytest.mark.night),
        (analyze_empty_tables, grow_and_reconcile),
        (fill, reconcile),
    ],
)
async def test_plans_made_before_the_tables_grew_read_only_the_rows_that_they_need(
    store: Store, engine: PostgresqlEngine, prepare: Callable[[Connection], None], change: Callable[[Connection], None]
) -> None:
    async def use(sku: str) -> None:
        await store.mutate(add(sku, request_id=sku))
        await store.record(answered(await claim_one(store)))
        assert await store.reads.find_cart(KEY)
        await store.mutate(remove(sku))
        for lane in (HOLD_LANE, RELEASE_LANE):
            await store.reads.has_due(lane)

    await engine.transact(prepare)
    # Often enough for the driver and the database to keep their prepared statements and plans.
    for number in range(10):
        await use(f"before-{number}")
    await engine.transact(change)
    with rows_read(engine) as read:
        await use("after")
    assert len(read) == 7
    assert 10 < sum(read) < 100, read


async def test_reading_an_unmodified_cart_reads_only_its_own_row(store: Store, engine: PostgresqlEngine) -> None:
    for number in range(5):
        await store.mutate(add(f"sku-{number}"))
        await store.record(answered(await claim_one(store)))
    found = await store.reads.find_json(KEY)
    assert isinstance(found, CartJson)
    for _ in range(10):
        with rows_read(engine) as read:
            assert await store.reads.find_json(KEY, found.validator) is NOT_MODIFIED
        assert read == [1]
    with rows_read(engine) as read:
        await store.reads.find_json(KEY)
    assert read[0] > 10


@contextmanager
def rows_read(engine: PostgresqlEngine) -> Iterator[list[int]]:
    """Collect how many rows each transaction and each read reads."""
    read: list[int] = []

    def counting(work: Callable[[Connection], T]) -> Callable[[Connection], T]:
        def counted(connection: Connection) -> T:
            before = _count(connection)
            result = work(connection)
            read.append(_count(connection) - before)
            return result

        return counted

    def counting_read(work: Callable[[Connection], T]) -> Callable[[Connection], T]:
        def counted_read(connection: Connection) -> T:
            fetch(connection, "BEGIN", ())
            result = counting(work)(connection)
            fetch(connection, "COMMIT", ())
            return result

        return counted_read

    with pytest.MonkeyPatch.context() as patch:
        for name, around in (("transact", counting), ("read", counting_read)):
            patch.setattr(engine, name, _around(getattr(engine, name), around))
        yield read


def _around(real: Callable[[Any], Awaitable[Any]], around: Callable[[Any], Any]) -> Callable[[Any], Awaitable[Any]]:
    return lambda work: real(around(work))


def _count(connection: Connection) -> int:
    ((rows,),) = fetch(connection, ROWS_READ, ())
    return int(rows)
