"""A store on a fresh database, without a service around it."""

from collections.abc import AsyncIterator

import pytest

from cart_grpc import app
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.engine import Engine
from cart_grpc.store.store import Store
from cart_grpc.store.write_queue import WriteQueue
from tests.databases import open_database
from tests.store.writes import Wrapped


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[Engine]:
    """The connected database."""
    engine = open_database(database_url)
    yield engine
    await engine.close()


@pytest.fixture
async def store(engine: Engine) -> AsyncIterator[Store]:
    """The store, started."""
    store = Store(engine, app.new_id, queue_size=1000)
    await store.start()
    yield store
    await store.close()


@pytest.fixture
async def queue(engine: Engine) -> AsyncIterator[WriteQueue]:
    """The write queue, started. Commands that are submitted without an await in between share a batch."""
    queue = WriteQueue(engine, ChangeNotifier(), app.new_id, 1000)
    await queue.start()
    yield queue
    await queue.close()


@pytest.fixture
def counted(engine: Engine) -> Wrapped:
    return Wrapped(engine)


@pytest.fixture
async def idle(counted: Wrapped) -> WriteQueue:
    """A write queue that is not started. Commands that are submitted before `start` share a batch."""
    return WriteQueue(counted, ChangeNotifier(), app.new_id, 1000)
