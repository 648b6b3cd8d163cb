"""Programs in the test's own folder, and a durable PostgreSQL server."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases import SHARDED
from tests.postgres import PostgresServer, running_postgres
from tests.processes.harness import Programs, running_programs

_numbers = itertools.count()


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Starts programs. Those that still run at the end of the test are killed."""
    with running_programs(tmp_path) as programs:
        yield programs


@pytest.fixture(scope="session")
def durable_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server with its default settings: fsync and synchronous_commit are on."""
    with running_postgres(durable=True) as server:
        yield server


@pytest.fixture
def durable_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new, empty, durable database. PostgreSQL's still needs `cart-grpc migrate`."""
    if backend == "sqlite":
        return f"sqlite:///{tmp_path}/cart.db"
    server: PostgresServer = request.getfixturevalue("durable_postgres")
    return server.create_database(f"sharded_process_{next(_numbers)}")


@pytest.fixture
def shared_url(postgres: PostgresServer, request: pytest.FixtureRequest) -> str:
    """The URL of a new, migrated PostgreSQL database."""
    if request.node.get_closest_marker("one_shard"):
        return postgres.create_database(f"shared_{next(_numbers)}", template="template_cart")
    return postgres.create_database(f"sharded_shared_{next(_numbers)}", template=SHARDED)
