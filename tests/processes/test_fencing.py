"""Two replicas' reconcilers share one PostgreSQL. The tests control latency: late answers must change nothing."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2
from sqlalchemy import Connection, select

from cart_grpc import app
from cart_grpc.background.clock_watcher import ClockWatcher
from cart_grpc.background.config import ReconcilerConfig
from cart_grpc.background.reconciler import Reconciler
from cart_grpc.protocol.reservation import Observed
from cart_grpc.reservation_api import transports
from cart_grpc.reservation_api.api import UNRECORDED, Answer, Attempt, Intent, ReservationApi, SingleCalls
from cart_grpc.settings import Settings
from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.server import SimulatorServer
from cart_grpc.simulator.simulator import Simulator
from cart_grpc.simulator.stock import Stock
from cart_grpc.store import schema
from cart_grpc.units import to_us
from tests.databases import shards_of
from tests.gate import Gate
from tests.service.conftest import Replica, running_replica

State = cart_pb2.Reservation.State


@dataclass(frozen=True)
class Path:
    """A replica's reconciler and its path to the shared Reservation API.

    `gate` delays messages before they take effect, `answers` delays the answers. `reconciler.run_once` never extends a
    lease, so to the other replica this one looks stopped.
    """

    reconciler: Reconciler
    simulator: Simulator
    gate: Gate
    answers: Gate


class SlowAnswers(SingleCalls):
    """A ReservationApi whose answers wait for a gate."""

    def __init__(self, api: ReservationApi, gate: Gate) -> None:
        self._api = api
        self._gate = gate

    async def apply(self, intent: Intent, *, timeout: float, attempt: Attempt = UNRECORDED) -> Answer:
        answer = await self._api.apply(intent, timeout=timeout, attempt=attempt)
        await self._gate.sleep(0)
        return answer

    async def close(self) -> None:
        await self._api.close()


@dataclass(frozen=True)
class Pair:
    """Two replicas' reconcilers, one stock, and a server that does not reconcile."""

    serving: Replica
    one: Path
    two: Path
    settings: Settings

    async def rows(self) -> list[Any]:
        """Return the database's rows of reservations."""

        def read(connection: Connection) -> list[Any]:
            return list(connection.execute(select(schema.reservations)).all())

        async with app.open_engine(self.settings) as engine:
            return await engine.transact(read)

    async def row(self) -> Any:
        (row,) = await self.rows()
        return row

    async def until_recorded(self, revision: int) -> Any:
        """Wait until `revision` is observed, and return the row."""
        async with asyncio.timeout(20):
            while (row := await self.row()).observed_revision < revision:
                await asyncio.sleep(0.01)
            return row


@pytest.fixture
def lease() -> float:
    """Seconds of a lease. Short, for tests with a stopped replica; others override it."""
    return 0.3


no_lease_ends = pytest.mark.parametrize("lease", [60.0])


@pytest.fixture
async def pair(shared_url: str, lease: float, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Pair]:
    """Two replicas. Neither may log an error during the test."""
    settings = Settings(
        listen="127.0.0.1:0", database_url=shared_url, database_shards=shards_of(shared_url), lame_duck=0.0
    )
    stock = Stock(default_total=1_000)
    async with AsyncExitStack() as stack:
        serving = await stack.enter_async_context(running_replica(settings, reconcile=False))
        one, two = [await _path(stack, settings, stock, lease) for _ in range(2)]
        yield Pair(serving, one, two, settings)
    assert [record.message for record in caplog.get_records("call") if record.levelname == "ERROR"] == []


async def _path(stack: AsyncExitStack, settings: Settings, stock: Stock, lease: float) -> Path:
    gate, answers = Gate(), Gate()
    answers.open()
    simulator = Simulator(
        stock,
        faults=Faults(latency_us=1),
        numbers=random.Random(1),
        clock=lambda: time.time_ns() // 1000,
        sleep=gate.sleep,
    )
    server = SimulatorServer(simulator)
    ports = await server.start("127.0.0.1:0", None)
    stack.push_async_callback(server.stop, 0)
    api = SlowAnswers(transports.connect(f"grpc://127.0.0.1:{ports.grpc}"), answers)
    stack.push_async_callback(api.close)
    store = await stack.enter_async_context(app.running_store(settings))
    config = ReconcilerConfig(lease_us=to_us(lease), poll_interval_us=20_000, backoff_max_us=50_000)
    watcher = ClockWatcher(store.clock(app.monotonic_us, config.longest_attempt_us))
    reconciler = Reconciler(store, api, config, app.monotonic_us, watcher.run_once)
    stack.push_async_callback(reconciler.stop, 0)
    return Path(reconciler, simulator, gate, answers)


async def _take_over(path: Path) -> None:
    """Wait until the other replica's lease ends, and claim its work."""
    async with asyncio.timeout(20):
        while not (await path.reconciler.run_once()).total:
            await asyncio.sleep(0.02)


async def _end_calls(path: Path) -> None:
    """Let the calls of `path` end and record them."""
    path.gate.open()
    path.answers.open()
    await path.reconciler.stop(to_us(20))


@no_lease_ends
async def test_a_replica_does_not_call_for_a_reservation_that_another_has_claimed(pair: Pair) -> None:
    await pair.serving.add()
    assert (await pair.one.reconciler.run_once()).total == 1
    assert (await pair.two.reconciler.run_once()).total == 0
    await _end_calls(pair.one)
    assert (await pair.row()).state == Observed.HELD
    assert (pair.one.simulator.call_count, pair.two.simulator.call_count) == (1, 0)


@pytest.mark.parametrize("lease", [1.5])
async def test_a_call_longer_than_a_lease_keeps_its_claim(pair: Pair, lease: float) -> None:
    await pair.serving.add()
    running = asyncio.create_task(pair.one.reconciler.run())
    await pair.one.gate.until_waiting(1)
    over = time.monotonic() + 1.5 * lease
    while time.monotonic() < over:
        assert (await pair.two.reconciler.run_once()).total == 0
        await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await _end_calls(pair.one)
    row = await pair.row()
    assert (row.state, row.lease_epoch) == (Observed.HELD, 1)


async def test_an_answer_after_a_takeover_changes_nothing(pair: Pair) -> None:
    await pair.serving.add(quantity=2)
    await pair.one.reconciler.run_once()
    await pair.one.gate.until_waiting(1)
    pair.two.gate.open()
    await _take_over(pair.two)
    taken_over = await pair.until_recorded(1)
    await _end_calls(pair.one)
    assert await pair.row() == taken_over
    assert [effect.quantity_after for effect in pair.one.simulator.effects()] == [2]


async def test_a_failure_after_a_takeover_leaves_the_new_claim_alone(pair: Pair) -> None:
    await pair.serving.add()
    await pair.one.reconciler.run_once()
    await pair.one.gate.until_waiting(1)
    await _take_over(pair.two)
    taken_over = await pair.row()
    await pair.two.gate.until_waiting(1)
    pair.one.simulator.faults = Faults(down=True)
    await pair.one.simulator.stop(0)
    await _end_calls(pair.one)
    assert await pair.row() == taken_over
    await _end_calls(pair.two)
    assert (await pair.row()).state == Observed.HELD


async def test_an_answer_for_an_old_quantity_after_a_takeover_changes_nothing(pair: Pair) -> None:
    await pair.serving.add(quantity=5)
    await pair.one.reconciler.run_once()
    await pair.one.gate.until_waiting(1)
    await pair.serving.add(quantity=2)
    pair.two.gate.open()
    await _take_over(pair.two)
    taken_over = await pair.until_recorded(2)
    assert (taken_over.granted_quantity, taken_over.revision) == (7, 2)
    await _end_calls(pair.one)
    assert await pair.row() == taken_over
    assert pair.one.simulator.levels("espresso-beans").held == 7


async def test_the_decision_on_a_newer_revision_does_not_answer_the_newest_one(pair: Pair) -> None:
    await pair.serving.add(quantity=5)
    await pair.one.reconciler.run_once()
    await pair.one.gate.until_waiting(1)
    await pair.serving.add(quantity=2)
    pair.two.gate.open()
    await _take_over(pair.two)
    await pair.until_recorded(2)
    await pair.serving.add(quantity=1)
    # The call carries revision 1. The API refuses it and returns its decision on revision 2.
    await _end_calls(pair.one)
    before = await pair.row()
    assert (before.observed_revision, before.revision) == (2, 3)
    await _take_over(pair.two)
    assert (await pair.until_recorded(3)).granted_quantity == 8


async def test_an_answer_overtaken_by_a_newer_decision_changes_nothing(pair: Pair) -> None:
    pair.one.gate.open()
    pair.one.answers.close()
    await pair.serving.add(quantity=5)
    await pair.one.reconciler.run_once()
    await pair.one.answers.until_waiting(1)
    item = await pair.serving.add(quantity=2)
    pair.two.gate.open()
    await _take_over(pair.two)
    await pair.until_recorded(2)
    await _end_calls(pair.one)
    after = await pair.row()
    assert (after.observed_revision, after.granted_quantity) == (2, 7)
    seen = (await pair.serving.settled()).items[0]
    assert seen.name == item.name
    assert (seen.reservation.state, seen.reservation.reserved_quantity) == (State.STATE_RESERVED, 7)


async def test_a_hold_that_arrives_after_its_release_takes_no_stock(pair: Pair) -> None:
    item = await pair.serving.add(quantity=5)
    await pair.one.reconciler.run_once()
    await pair.one.gate.until_waiting(1)
    await pair.serving.stub.RemoveItem(cart_service_pb2.RemoveItemRequest(name=item.name))
    pair.two.gate.open()
    # A release is due at once: it does not wait for the lease to end.
    assert (await pair.two.reconciler.run_once()).total == 1
    released = await pair.until_recorded(2)
    await _end_calls(pair.one)
    assert await pair.row() == released
    assert released.state == Observed.RELEASED
    assert pair.one.simulator.levels("espresso-beans").held == 0


@no_lease_ends
async def test_two_replicas_share_the_work_and_make_one_call_per_reservation(pair: Pair) -> None:
    for path in (pair.one, pair.two):
        path.gate.open()
    carts = [f"users/user{number}/carts/default" for number in range(100)]
    for cart in carts:
        await pair.serving.add(cart=cart)
    running = [asyncio.create_task(path.reconciler.run()) for path in (pair.one, pair.two)]
    for cart in carts:
        await pair.serving.settled(cart)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    rows = await pair.rows()
    assert {(row.state, row.lease_epoch, row.attempt_count) for row in rows} == {(Observed.HELD, 1, 1)}
    assert pair.one.simulator.call_count + pair.two.simulator.call_count == 100


@no_lease_ends
async def test_concurrent_callers_and_reconcilers_lose_no_update(pair: Pair) -> None:
    for path in (pair.one, pair.two):
        path.gate.open()
    running = [asyncio.create_task(path.reconciler.run()) for path in (pair.one, pair.two)]

    async def change(cart: str) -> None:
        for quantity in range(1, 16):
            item = await pair.serving.add(cart=cart, quantity=quantity)
            if quantity % 5 == 0:
                await pair.serving.stub.RemoveItem(cart_service_pb2.RemoveItemRequest(name=item.name))
        await pair.serving.add(cart=cart, quantity=9)

    carts = [f"users/user{number}/carts/default" for number in range(20)]
    await asyncio.gather(*map(change, carts))
    for cart in carts:
        (item,) = (await pair.serving.settled(cart)).items
        assert (item.quantity, item.reservation.reserved_quantity) == (9, 9)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert pair.one.simulator.levels("espresso-beans").held == 9 * len(carts)
