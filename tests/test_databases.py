"""A database that one test has used and another one gets is as new."""

import asyncpg
import pytest
from sqlalchemy import make_url

from tests.databases import SHARDED, Databases
from tests.postgres import PostgresServer


@pytest.fixture
def own(postgres: PostgresServer) -> Databases:
    return Databases(postgres, SHARDED)


def test_the_next_test_gets_the_same_database_without_rows(own: Databases, postgres: PostgresServer) -> None:
    with own.lend() as first:
        name = make_url(first).database or ""
        postgres.run("INSERT INTO pauses VALUES (0, 'reservations', 'a reason', 1)", database=name)
    with own.lend() as second:
        assert second == first
        assert postgres.run("SELECT count(*) FROM pauses", database=name) == "0"


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE items ADD extra integer",
        "ALTER TABLE cart_shard_1.carts DISABLE TRIGGER ALL",
        "ALTER DATABASE {} CONNECTION LIMIT 3",
        "ALTER DATABASE {} SET work_mem = '1MB'",
        "CREATE SCHEMA another",
        "DROP TABLE cart_shard_2.items",
        "ANALYZE",
    ],
)
def test_a_database_that_a_test_has_changed_is_not_lent_again(
    own: Databases, postgres: PostgresServer, change: str
) -> None:
    with own.lend() as first:
        name = make_url(first).database or ""
        postgres.run(change.format(name), database=name)
    with own.lend() as second:
        assert second != first


async def test_changes_of_a_session_that_is_still_open_are_found(own: Databases) -> None:
    with own.lend() as first:
        session = await asyncpg.connect(first.replace("+asyncpg", ""))
        await session.execute("ALTER TABLE items ADD extra integer")
    with own.lend() as second:
        assert second != first
    session.terminate()
