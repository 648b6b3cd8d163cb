"""Rare events with several shards, in virtual time: the seeds meet them too seldom."""

import itertools
from random import Random

import pytest

from cart_grpc.background.clock_watcher import ClockWatcher
from cart_grpc.names import cart_key, user_key
from cart_grpc.store import write_queue
from cart_grpc.store.store import Store
from cart_grpc.units import to_us
from tests.simulation.clock import SimulatedClock
from tests.simulation.database import Database, DatabaseFaults, SimulatedEngine, discard
from tests.simulation.loop import Process, VirtualLoop
from tests.simulation.rows import read_reservations
from tests.simulation.template import MOST_SHARDS, template
from tests.store.test_merge import merge
from tests.store.writes import add

# Of two shards; neither is the first.
SOURCE, TARGET = (cart_key(user_key(name), "default") for name in ("alice", "carol"))


def test_a_start_notices_that_the_clock_was_set_back_after_a_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_queue, "spanning_queries", lambda _, count: template().spanning[count])
    loop = VirtualLoop()
    clock = SimulatedClock(loop, follows=False)
    database = Database(loop, clock, DatabaseFaults(), Random(1), discard, shard_count=MOST_SHARDS)
    numbers = itertools.count()

    def open_store(name: str) -> Store:
        engine = SimulatedEngine(database, Process(loop, name))
        return Store(engine, lambda: f"{next(numbers):032x}", queue_size=100)

    async def merge_and_crash() -> None:
        store = open_store("first")
        await store.start()
        for key in (SOURCE, TARGET):
            await store.mutate(add(key=key))
        clock.set_to(to_us(3600))
        await store.mutate(merge(SOURCE, TARGET))

    async def start() -> None:
        store = open_store("second")
        await store.start()
        await ClockWatcher(store.clock(lambda: to_us(loop.time()), 0)).run_once()

    loop.run_until_complete(merge_and_crash())
    clock.set_to(0)
    loop.run_until_complete(start())
    loop.close()
    due_times = [row.due_time for row in read_reservations(database.raw) if row.due_time is not None]
    assert due_times
    assert max(due_times) <= clock.now()
