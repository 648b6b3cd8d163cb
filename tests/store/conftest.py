"""The store itself on a fresh database, without a service around it."""

from collections.abc import AsyncIterator

import pytest

from cart_grpc import app
from cart_grpc.store import migrate
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.engine import Engine, connect
from cart_grpc.store.store import Store
from cart_grpc.store.write_queue import WriteQueue


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[Engine]:
    """The database, connected and migrated."""
    engine = connect(database_url, app.clock)
    await engine.transact(migrate.upgrade)
    yield engine
    await engine.close()


@pytest.fixture
async def store(engine: Engine) -> AsyncIterator[Store]:
    """The store, open."""
    store = Store(engine, app.new_id, queue_size=1000)
    await store.start()
    yield store
    await store.close()


@pytest.fixture
async def writer(engine: Engine) -> AsyncIterator[WriteQueue]:
    """The writer, at work. What is written without waiting in between goes into one batch."""
    writer = WriteQueue(engine, ChangeNotifier(), app.new_id, 1000)
    await writer.start()
    yield writer
    await writer.close()
