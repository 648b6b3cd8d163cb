"""What every suite shares: both databases, each test with a fresh one."""

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from cart_grpc import app
from cart_grpc.settings import Settings
from tests.postgres import PostgresServer, running_postgres

_numbers = itertools.count()


class OneImage(LoadScopeScheduling):  # type: ignore[misc]
    """Whoever is free takes the next test, but one worker takes all that need the image, so that it is built once.

    xdist's own groups do nothing under pytest 9: it no longer asks for the name that they change.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if file.endswith("test_packaging.py") else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return OneImage(config, log)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL of this run's own, with an empty schema to copy."""
    with running_postgres() as server:
        asyncio.run(_migrate(server.create_database("template_cart")))
        yield server


async def _migrate(url: str) -> None:
    async with app.open_engine(Settings(database_url=url)) as engine:
        await app.migrate_database(engine)


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    """The database under test: everything that asks for it runs on each."""
    return str(request.param)


@pytest.fixture
def database_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh database, migrated where it is not the embedded one, which migrates itself."""
    if backend == "sqlite":
        return f"sqlite:///{tmp_path}/cart.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create_database(f"cart_{next(_numbers)}", template="template_cart")
