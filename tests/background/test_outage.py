"""An outage of the Reservation API: how few calls it gets meanwhile, and how fast the backlog goes out afterwards."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from cart_grpc import app
from cart_grpc.background.clock_watcher import ClockWatcher
from cart_grpc.background.config import ReconcilerConfig
from cart_grpc.background.reconciler import Reconciler
from cart_grpc.reservation_api import transports
from cart_grpc.reservation_api.api import ReservationApi, SingleCalls
from cart_grpc.settings import Settings
from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.simulator import Simulator
from cart_grpc.store.store import Store
from cart_grpc.units import US_PER_SECOND
from tests.background.clock import MonotonicClock
from tests.store.writes import KEY, add, clear, snapshot

ITEMS = 20
UP, DOWN = Faults(latency_us=30_000_000), Faults(down=True)


@dataclass(frozen=True)
class Outage:
    """A reconciler that runs one round at a time, and the API that it calls."""

    store: Store
    reconciler: Reconciler
    simulator: Simulator
    clock: MonotonicClock

    async def step(self) -> int:
        """Run one round and wait until its calls have ended. Returns the number of calls."""
        started = (await self.reconciler.run_once()).total
        async with asyncio.timeout(20):
            while self.reconciler.in_flight:
                await asyncio.sleep(0.005)
        return started

    async def step_until_something_starts(self) -> int:
        """Repeat `step` until a reservation is due and its call starts. Returns the number of calls."""
        async with asyncio.timeout(20):
            while not (started := await self.step()):
                await asyncio.sleep(0.005)
        return started

    async def step_until_the_breaker_opens(self) -> None:
        """Repeat `step` until the API counts as down."""
        while self.reconciler.find_breaker_open_us() is None:
            await self.step_until_something_starts()


@pytest.fixture
async def outage(settings: Settings, simulator: Simulator, simulator_url: str) -> AsyncIterator[Outage]:
    """Twenty items whose reservations are due while the API is down."""
    clock = MonotonicClock()
    config = ReconcilerConfig(
        breaker_threshold=5, probe_interval_us=US_PER_SECOND, backoff_initial_us=1_000, backoff_max_us=1_000
    )
    async with app.running_store(settings) as store:
        api = transports.connect(simulator_url)
        for number in range(ITEMS):
            await store.mutate(add(f"sku-{number}"))
        simulator.faults = DOWN
        watcher = ClockWatcher(store.clock(app.monotonic_us, 0))
        yield Outage(store, Reconciler(store, api, config, clock, watcher.run_once), simulator, clock)
        await api.close()


async def attempts(store: Store) -> list[int]:
    """The attempt count of each item's reservation."""
    found = await store.reads.find_cart(KEY)
    assert found
    return sorted(line.reservation.attempt_count for line in found.lines)


async def test_while_the_api_is_down_it_gets_one_probe_per_second_and_no_attempt_is_counted(outage: Outage) -> None:
    await outage.step_until_the_breaker_opens()
    calls, counted = outage.simulator.call_count, await attempts(outage.store)
    for _ in range(10):
        assert await outage.step() == 0
    assert outage.simulator.call_count == calls
    for probe in range(1, 4):
        outage.clock.now += US_PER_SECOND
        assert await outage.step_until_something_starts() == 1
        assert await outage.step() == 0
        assert outage.simulator.call_count == calls + probe
    assert await attempts(outage.store) == counted


async def test_after_an_outage_the_backlog_is_settled_with_at_most_a_fifth_more_calls_than_items(
    outage: Outage,
) -> None:
    await outage.step_until_the_breaker_opens()
    outage.simulator.faults, calls = UP, outage.simulator.call_count
    outage.clock.now += US_PER_SECOND
    assert await outage.step_until_something_starts() == 1
    settled = 1
    while settled < ITEMS:
        settled += await outage.step_until_something_starts()
    found = await outage.store.reads.find_cart(KEY)
    assert found
    assert not found.reconciling
    assert outage.simulator.call_count - calls <= 1.2 * ITEMS


async def test_items_can_be_removed_during_an_outage_and_are_released_after_it(outage: Outage) -> None:
    await outage.step_until_the_breaker_opens()
    await outage.store.mutate(clear())
    outage.simulator.faults = UP
    outage.clock.now += US_PER_SECOND
    while (await snapshot(outage.store)).is_releasing(None):
        await outage.step_until_something_starts()
    assert all(outage.simulator.levels(f"sku-{number}").held == 0 for number in range(ITEMS))


class Failing(SingleCalls):
    """A Reservation API whose client has a bug."""

    def __init__(self, inner: ReservationApi) -> None:
        self.inner = inner
        self.failing = True

    async def apply(self, intent: object, *, timeout: float, attempt: object = None) -> object:
        if self.failing:
            raise RuntimeError("a bug")
        return await self.inner.apply(intent, timeout=timeout)  # type: ignore[arg-type]

    async def close(self) -> None:
        await self.inner.close()


async def test_the_reconciler_recovers_from_a_bug_in_a_transport(
    settings: Settings, simulator: Simulator, simulator_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = MonotonicClock()
    api = Failing(transports.connect(simulator_url))
    config = ReconcilerConfig(backoff_initial_us=1_000, backoff_max_us=1_000)
    async with app.running_store(settings) as store:
        for number in range(ITEMS):
            await store.mutate(add(f"sku-{number}"))
        watcher = ClockWatcher(store.clock(app.monotonic_us, 0))
        reconciler = Reconciler(store, api, config, clock, watcher.run_once)  # type: ignore[arg-type]
        outage = Outage(store, reconciler, simulator, clock)
        await outage.step()
        api.failing = False
        while True:
            clock.now += US_PER_SECOND
            await outage.step_until_something_starts()
            found = await store.reads.find_cart(KEY)
            if found and not found.reconciling:
                break
        await api.close()
    assert "unexpected error in the call" in caplog.text
