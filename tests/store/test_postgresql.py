"""What is PostgreSQL's own: a planner, which must not be left to guess."""

import pytest
from sqlalchemy import Connection

from cart_grpc.store.engine import PostgresqlEngine
from cart_grpc.store.store import Store
from tests.store.test_query_plans import grow
from tests.store.writes import add, answered, before_commit, claim_one, remove

# By this session, since it told of them last: not only by this transaction.
ROWS_READ = "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables"


@pytest.fixture
def backend() -> str:
    return "postgresql"


async def test_what_was_planned_for_empty_tables_reads_no_more_once_they_have_grown(
    store: Store, engine: PostgresqlEngine
) -> None:
    async def use(sku: str) -> None:
        await store.mutate(add(sku, request_id=sku))
        await store.record(answered(await claim_one(store)))
        await store.mutate(remove(sku))

    for number in range(10):
        await use(f"before-{number}")
    # Without ANALYZE.
    await engine.transact(grow)
    read: list[int] = []

    def count(connection: Connection) -> None:
        read.append(int(connection.exec_driver_sql(ROWS_READ).scalar_one()))

    before_commit(engine, count)
    await use("after")
    assert len(read) == 4
    assert 0 < max(read) < 1_000
