"""The gauges and counters of the store that no caller can move at will."""

import asyncio
import threading

import pytest
from sqlalchemy import Connection

from cart_grpc.metrics import CLOCK_STEPS, CONNECTIONS_PENDING, QUEUED_COMMANDS
from cart_grpc.store.engine import Engine
from cart_grpc.store.pool_usage import PoolUsage, set_gauges
from cart_grpc.store.store import Store
from cart_grpc.store.write_queue import WriteQueue
from tests.counting import counting, value_of
from tests.store.test_database_clock import Setting, setting
from tests.store.writes import SECOND, add
from tests.waiting import until

__all__ = ["setting"]


async def test_commands_that_wait_are_counted_by_queue(idle: WriteQueue) -> None:
    answers = [idle.submit(add()), idle.submit(add()), idle.submit_background(add())]
    idle.sample()
    assert value_of(QUEUED_COMMANDS.labels("callers")) == 2
    assert value_of(QUEUED_COMMANDS.labels("background")) == 1
    await idle.start()
    await asyncio.gather(*answers)
    idle.sample()
    assert value_of(QUEUED_COMMANDS.labels("callers")) == 0


@pytest.mark.one_shard
async def test_transactions_that_wait_for_the_connection_are_counted(engine: Engine) -> None:
    def usage() -> PoolUsage:
        return next(pool for pool in engine.pools() if pool.name == "write")

    is_over = threading.Event()

    def hold(connection: Connection) -> None:
        if engine.is_in_process:
            is_over.wait(20)
        while not is_over.is_set():
            connection.exec_driver_sql("SELECT pg_sleep(0.01)")

    first, second = (asyncio.ensure_future(engine.transact(hold)) for _ in range(2))
    await until(lambda: usage()[2:] == (1, 1, 1))
    set_gauges(usage())
    assert value_of(CONNECTIONS_PENDING.labels("write")) == 1
    is_over.set()
    await asyncio.gather(first, second)
    assert (usage().used, usage().pending) == (0, 0)


async def test_a_step_of_the_database_clock_is_counted(setting: Setting) -> None:
    with counting(CLOCK_STEPS.labels("back")):
        await setting.set_back()
    setting.monotonic.ahead -= 3600 * SECOND
    with counting(CLOCK_STEPS.labels("forward")):
        await setting.watcher.run_once()


async def test_the_gauges_of_the_backlog_are_read_from_an_empty_database(store: Store) -> None:
    await store.backlog_gauges.sample()
