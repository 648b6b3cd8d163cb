"""Servers without a reconciler, so that a cart's revision shows whether a call had an effect."""

from collections.abc import AsyncIterator

import pytest

from cart_grpc.settings import Settings
from tests.databases import SHARDED, shards_of
from tests.postgres import PostgresServer
from tests.service.conftest import Replica, running_replica


def quiet_settings(database_url: str) -> Settings:
    """Settings of a server without a Reservation API."""
    return Settings(
        listen="127.0.0.1:0",
        database_url=database_url,
        database_shards=shards_of(database_url),
        lame_duck=0.0,
        shutdown_grace=0.2,
    )


@pytest.fixture(scope="session")
async def validator(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Replica]:
    """One server on SQLite for all requests that are refused before they reach the store."""
    file = tmp_path_factory.mktemp("validator") / "cart.db"
    async with running_replica(quiet_settings(f"sqlite:///{file}"), reconcile=False) as replica:
        yield replica


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def keeper_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database for the whole run: SQLite, then PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('keeper')}/cart.db"
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return postgres.create_database("sharded_of_refusals", template=SHARDED)


@pytest.fixture(scope="session")
async def keeper(keeper_url: str) -> AsyncIterator[Replica]:
    """One server on each database for all requests that the store decides; each test has its own user."""
    async with running_replica(quiet_settings(keeper_url), reconcile=False) as replica:
        yield replica
