"""Each node of a Citus cluster has a clock of its own. A shard's times are by that of its node, wherever it is."""

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from cart_grpc import app, database_setup
from cart_grpc.background.clock_watcher import ClockWatcher
from cart_grpc.names import CartKey, cart_key, user_key
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.settings import Settings
from cart_grpc.store.shards import schema_names, shard_index
from cart_grpc.store.store import Store
from tests.citus.clocks import NodeClock
from tests.citus.cluster import Database
from tests.databases import SHARDS
from tests.store.writes import HOUR, SECOND, add, claim_one, silent

pytestmark = [pytest.mark.citus, pytest.mark.timeout(120)]
SCHEMAS = schema_names(SHARDS)
AHEAD = HOUR // SECOND


@dataclass
class Setting:
    """A store on two nodes. The second one, which has the shard `moving`, has a clock that is an hour ahead."""

    database: Database
    store: Store
    clock: NodeClock
    staying: str
    moving: str

    def cart_in(self, schema: str) -> CartKey:
        """A cart in a shard."""
        keys = (cart_key(user_key(f"user-{number}"), "default") for number in range(1000))
        return next(key for key in keys if SCHEMAS[shard_index(key.slice, SHARDS)] == schema)

    async def wait_in(self, schema: str) -> Reservation:
        """Add an item whose call is tried again in a minute."""
        await self.store.mutate(add(key=self.cart_in(schema)))
        claimed = await claim_one(self.store)
        await self.store.record(silent(claimed, retry_delay=60 * SECOND))
        return claimed

    async def ahead(self, schema: str) -> float:
        """By how many seconds the time in a shard at which a call is tried again is ahead of the coordinator's time."""
        place = self.database.cluster.coordinator
        query = f"SELECT due_time / 1e6 - extract(epoch FROM now()) FROM {schema}.reservations"  # noqa: S608
        ((seconds,),) = await self.database.fetch(place, query)
        return float(seconds)

    def watcher(self) -> ClockWatcher:
        return ClockWatcher(self.store.clock(app.monotonic_us, 180 * SECOND))


@pytest.fixture
async def setting(database: Database) -> AsyncIterator[Setting]:
    nodes = database.cluster.workers[:2]
    clock = NodeClock(database, nodes[1])
    await clock.replace()
    async with app.open_engine(Settings(database_url=database.url, database_shards=SHARDS)) as engine:
        await database_setup.upgrade(engine)
        places = await database.places()
        staying, moving = (next(schema for schema in SCHEMAS if places[schema] == node) for node in nodes)
        await clock.set_ahead(AHEAD)
        store = Store(engine, app.new_id, queue_size=1000)
        await store.start()
        yield Setting(database, store, clock, staying, moving)
        await store.close()


def is_about(seconds: float) -> Any:
    return pytest.approx(seconds, abs=20)


async def test_the_times_of_a_shard_are_by_the_clock_of_its_node(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    for schema in (setting.staying, setting.moving):
        await setting.wait_in(schema)
    assert await setting.ahead(setting.staying) == is_about(60)
    assert await setting.ahead(setting.moving) == is_about(60 + AHEAD)
    with caplog.at_level(logging.WARNING):
        # The last commits are ahead of the coordinator's clock, but not of their node's.
        await setting.watcher().run_once()
    assert "clock was set" not in caplog.text


async def test_a_step_back_of_one_nodes_clock_moves_the_times_of_its_shards_and_of_no_other(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = setting.watcher()
    await watcher.run_once()
    for schema in (setting.staying, setting.moving):
        await setting.wait_in(schema)
    await setting.clock.set_ahead(0)
    with caplog.at_level(logging.WARNING):
        await watcher.run_once()
    assert "the database's clock was set back by 3600." in caplog.text
    assert await setting.ahead(setting.staying) == is_about(60)
    assert await setting.ahead(setting.moving) == is_about(60)


async def test_a_shard_that_moves_to_a_node_whose_clock_is_behind_takes_its_times_along(setting: Setting) -> None:
    watcher = setting.watcher()
    await watcher.run_once()
    await setting.wait_in(setting.moving)
    await setting.database.move(setting.moving)
    await watcher.run_once()
    assert await setting.ahead(setting.moving) == is_about(60)


async def test_after_a_move_that_no_process_saw_waits_count_as_over(setting: Setting) -> None:
    await setting.wait_in(setting.moving)
    await setting.database.move(setting.moving)
    await setting.watcher().run_once()
    assert await setting.ahead(setting.moving) == is_about(0)
