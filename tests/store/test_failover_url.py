"""A URL with several hosts: every connection, for writing and for reading, goes to the primary."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing

import pytest

from cart_grpc import app, database_setup
from cart_grpc.settings import Settings
from cart_grpc.store.database_connection import Connector, NoPrimary
from cart_grpc.store.database_url import parse
from cart_grpc.store.engine import connect
from cart_grpc.store.store import Store
from tests.ports import free_port
from tests.postgres import SUPERUSER
from tests.standby import Pair, ask, running_pair
from tests.store.writes import KEY, SKU, add, decode


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with running_pair() as servers:
        yield servers


@pytest.fixture(scope="module")
async def database(pair: Pair) -> str:
    """A migrated database; the standby has it, too."""
    async with app.open_engine(Settings(database_url=pair.primary.create_database("cart"))) as engine:
        await database_setup.upgrade(engine)
    await pair.catch_up()
    return "cart"


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never answers, like a host that is gone."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield int(server.getsockname()[1])


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    engine = connect(url, app.clock)
    store = Store(engine, app.new_id, queue_size=100)
    await store.start()
    try:
        yield store
    finally:
        await store.close()
        await engine.close()


async def check_reads_and_writes(url: str) -> None:
    async with opened(url) as store:
        before = decode(await store.mutate(add()))[SKU]
        assert decode(await store.mutate(add()))[SKU] == before + 1
        found = await store.reads.find_cart(KEY)
        assert found
        # A read that goes through the other readers.
        await store.operator_reads.get_stats()


@pytest.mark.parametrize("attribute", ["", "&target_session_attrs=read-write", "&target_session_attrs=any"])
async def test_a_standby_that_comes_first_is_passed_over(pair: Pair, database: str, attribute: str) -> None:
    hosts = f"127.0.0.1:{pair.standby.port},127.0.0.1:{pair.primary.port}"
    await check_reads_and_writes(f"postgresql://{SUPERUSER}@{hosts}/{database}?connect_timeout=5{attribute}")


async def test_a_host_that_refuses_connections_is_passed_over(pair: Pair, database: str) -> None:
    query = f"host=127.0.0.1,127.0.0.1&port={free_port()},{pair.primary.port}&target_session_attrs=primary"
    await check_reads_and_writes(f"postgresql://{SUPERUSER}@/{database}?{query}")


async def test_a_host_that_does_not_answer_is_passed_over_after_the_time_out(
    pair: Pair, database: str, silent_port: int
) -> None:
    hosts = f"127.0.0.1:{silent_port},127.0.0.1:{pair.primary.port}"
    await check_reads_and_writes(f"postgresql://{SUPERUSER}@{hosts}/{database}?connect_timeout=1")


async def test_the_error_says_for_each_host_why_it_is_not_the_primary(pair: Pair, database: str) -> None:
    dead = free_port()
    hosts = f"127.0.0.1:{pair.standby.port},127.0.0.1:{dead}"
    connector = Connector(parse(f"postgresql://{SUPERUSER}:hunter2@{hosts}/{database}"))
    with pytest.raises(NoPrimary) as failed:
        await connector.connect()
    text = str(failed.value)
    assert text.startswith(f"127.0.0.1:{pair.standby.port}: it is a standby; 127.0.0.1:{dead}: ")
    assert "hunter2" not in text


async def test_a_host_that_refuses_the_user_is_not_passed_over(pair: Pair, database: str) -> None:
    """The password would go to every host, and the last error would hide the first."""
    hosts = f"127.0.0.1:{pair.primary.port},127.0.0.1:{free_port()}"
    connector = Connector(parse(f"postgresql://nobody@{hosts}/{database}"))
    with pytest.raises(Exception, match='role "nobody" does not exist'):
        await connector.connect()


async def test_writes_and_reads_leave_a_primary_that_was_fenced_with_its_connections_alive(
    pair: Pair, database: str
) -> None:
    """Last in this module: it makes the standby another primary."""
    async with opened(pair.url(database)) as store:
        await store.mutate(add("before"))
        await store.ping()
        await pair.catch_up()
        pair.primary.configure(default_transaction_read_only="on")
        pair.standby.promote()
        await store.mutate(add("after"))
        await store.ping()
        found = await store.reads.find_cart(KEY)
        assert found
        assert "after" in {line.item.sku for line in found.lines}
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cart-grpc'"
        async with asyncio.timeout(20):
            while await ask(pair.primary, sessions):
                await asyncio.sleep(0.02)
        # Writes, reads of carts and reads of lists; and perhaps the hints to other replicas.
        assert await ask(pair.standby, sessions) >= 3
