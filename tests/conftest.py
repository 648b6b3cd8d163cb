"""Shared by all suites: both databases, a fresh one for each test, and the order in which tests start."""

import asyncio
import gc
import os
import shutil
import signal
from collections.abc import Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from cart_grpc import app, database_setup
from cart_grpc.settings import Settings
from cart_grpc.store import store as store_module
from tests.citus.cluster import LentDatabase
from tests.databases import SHARDED, Databases, add_parents, shards_of
from tests.postgres import PostgresServer, running_postgres

# A busy machine must not fail a test that does not measure time.
hypothesis_settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("busy")

# FirstNormalObjectId - 1 in PostgreSQL's access/transam.h.
LAST_OWN_TYPE = 16383
# asyncpg prepares its statement again if the question had no name, too. Here nothing was asked, and it does no harm.
NAMELESS = SimpleNamespace(name="")


def pytest_configure() -> None:
    """Let programs that the tests start get SIGINT. A shell makes its background jobs and their children ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first (Graham's LPT rule), or one worker would end alone with a test of half a minute.

    A test that needs more than the usual time has a time limit of its own. The other tests of processes come next:
    each starts servers and takes seconds. At night none has one: a random machine that
    is interrupted fails for other reasons than it shows.
    """
    for item in items:
        if item.get_closest_marker("night"):
            item.add_marker(pytest.mark.timeout(0), append=False)

    def rank(item: pytest.Item) -> tuple[float, bool]:
        limit = item.get_closest_marker("timeout")
        return (-limit.args[0] if limit else 0, "tests/processes/" not in item.nodeid)

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """Keep the garbage collector off all that is imported and collected, as the server does at its start.

    Otherwise each full collection scans thousands of tests, which takes longer than most of them.
    """
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def shared_introspection() -> Iterator[None]:
    """Let asyncpg ask once, not once for each connection, how PostgreSQL's own types are made.

    They are the same in every database. The question takes the server longer than most tests' own statements.
    """
    connections: Any = asyncpg.Connection
    ask = connections._introspect_types
    answers: dict[frozenset[int], object] = {}

    async def introspect(connection: object, types: Collection[int], timeout: float | None) -> tuple[object, object]:
        key = frozenset(types)
        if key in answers:
            return answers[key], NAMELESS
        answer, statement = await ask(connection, types, timeout)
        if max(types) <= LAST_OWN_TYPE:
            answers[key] = answer
        return answer, statement

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "_introspect_types", introspect)
        yield


@pytest.fixture(scope="session", autouse=True)
def patient_pings() -> Iterator[None]:
    """Let the servers that tests share stand still while a test without an event loop runs.

    Otherwise a ping that was under way times out: the next test finds its server not ready, and its lines in the log.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "PING_SECONDS", 60.0)
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for this worker's whole run, with migrated databases to copy.

    `sharded_cart` has several shards, `template_cart` has one.
    """
    with running_postgres() as server:
        asyncio.run(_migrate(server.create_database("template_cart")))
        asyncio.run(_migrate(server.create_database(SHARDED)))
        add_parents(server, SHARDED)
        yield server


@pytest.fixture(scope="session")
def plain_databases(postgres: PostgresServer) -> Databases:
    """Databases with one shard."""
    return Databases(postgres, "template_cart")


@pytest.fixture(scope="session")
def databases(request: pytest.FixtureRequest) -> Iterator[Databases | LentDatabase]:
    """The PostgreSQL databases of this worker's tests, on the cluster of CITUS_URL if it is set."""
    if url := os.environ.get("CITUS_URL"):
        lent = LentDatabase(url)
        yield lent
        lent.close()
    else:
        yield Databases(request.getfixturevalue("postgres"), SHARDED)


async def _migrate(url: str) -> None:
    async with app.open_engine(Settings(database_url=url, database_shards=shards_of(url))) as engine:
        await database_setup.upgrade(engine)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the schema of this release, to copy."""
    file = tmp_path_factory.mktemp("template") / "cart.db"
    asyncio.run(_migrate(f"sqlite:///{file}"))
    return file


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    """The database under test. Every test that requests it runs on each database."""
    return str(request.param)


@pytest.fixture
def database_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, migrated."""
    if backend == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_file"), tmp_path / "cart.db")
        yield f"sqlite:///{tmp_path}/cart.db"
        return
    # A test of statements, or of one schema, keeps one shard.
    lender = "plain_databases" if request.node.get_closest_marker("one_shard") else "databases"
    databases: Databases | LentDatabase = request.getfixturevalue(lender)
    with databases.lend() as url:
        yield url
