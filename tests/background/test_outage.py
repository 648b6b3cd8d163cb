"""The Reservation API is down, and comes back: what it hears meanwhile, and how fast everything goes out afterwards."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from cart_grpc import app
from cart_grpc.background.breaker import Breaker
from cart_grpc.background.reconciler import Reconciler, ReconcilerConfig
from cart_grpc.reservation_api import transports
from cart_grpc.reservation_api.api import ReservationApi
from cart_grpc.settings import Settings
from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.simulator import Simulator
from cart_grpc.store.store import Store
from tests.store.writes import KEY, add, clear, snapshot

ITEMS = 20
UP, DOWN = Faults(latency_us=30_000_000), Faults(down=True)


class Seconds:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Outage:
    """A reconciler that does one step at a time, and the API it calls."""

    store: Store
    reconciler: Reconciler
    simulator: Simulator
    seconds: Seconds

    async def step(self) -> int:
        """One step and the end of all its calls. Returns how many were started."""
        started = await self.reconciler.run_once()
        async with asyncio.timeout(20):
            while self.reconciler.in_flight:
                await asyncio.sleep(0.005)
        return started

    async def step_until_something_starts(self) -> int:
        """As `step`, as often as it takes until what was put off for a moment is due."""
        async with asyncio.timeout(20):
            while not (started := await self.step()):
                await asyncio.sleep(0.005)
        return started


@pytest.fixture
async def outage(settings: Settings, simulator: Simulator, simulator_url: str) -> AsyncIterator[Outage]:
    """Twenty items that wait for an API which is down."""
    seconds = Seconds()
    config = ReconcilerConfig(breaker_threshold=5, probe_interval=1.0, backoff_initial=0.001, backoff_max=0.001)
    async with app.running_store(settings) as store:
        api = transports.connect(simulator_url)
        for number in range(ITEMS):
            await store.mutate(add(f"sku-{number}"))
        simulator.faults = DOWN
        yield Outage(store, Reconciler(store, api, config, seconds), simulator, seconds)
        await api.close()


async def attempts(store: Store) -> list[int]:
    """How often each item's reservation was tried."""
    found = await store.reads.find_cart(KEY)
    assert found
    return sorted(line.reservation.attempt_count for line in found.lines)


async def test_while_the_api_is_down_it_hears_one_probe_a_second_and_no_attempts_are_spent(outage: Outage) -> None:
    assert await outage.step() == ITEMS
    heard, counts_as_attempt = outage.simulator.call_count, await attempts(outage.store)
    for _ in range(10):
        assert await outage.step() == 0
    assert outage.simulator.call_count == heard
    for probe in range(1, 4):
        outage.seconds.now += 1.0
        assert await outage.step_until_something_starts() == 1
        assert await outage.step() == 0
        assert outage.simulator.call_count == heard + probe
    assert await attempts(outage.store) == counts_as_attempt


async def test_the_first_answer_after_an_outage_lets_everything_out_in_hardly_more_calls_than_waited(
    outage: Outage,
) -> None:
    await outage.step()
    outage.simulator.faults, heard = UP, outage.simulator.call_count
    outage.seconds.now += 1.0
    assert await outage.step_until_something_starts() == 1
    settled = 1
    while settled < ITEMS:
        settled += await outage.step_until_something_starts()
    found = await outage.store.reads.find_cart(KEY)
    assert found
    assert not found.reconciling
    assert outage.simulator.call_count - heard <= 1.2 * ITEMS


async def test_adding_and_removing_go_on_during_an_outage(outage: Outage) -> None:
    await outage.step()
    await outage.store.mutate(clear())
    outage.simulator.faults = UP
    outage.seconds.now += 1.0
    while (await snapshot(outage.store)).is_releasing(None):
        await outage.step_until_something_starts()
    assert all(outage.simulator.levels(f"sku-{number}").held == 0 for number in range(ITEMS))


class Failing:
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


async def test_a_bug_in_a_transport_stops_nothing_for_good(
    settings: Settings, simulator: Simulator, simulator_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = Seconds()
    api = Failing(transports.connect(simulator_url))
    config = ReconcilerConfig(backoff_initial=0.001, backoff_max=0.001)
    async with app.running_store(settings) as store:
        for number in range(ITEMS):
            await store.mutate(add(f"sku-{number}"))
        outage = Outage(store, Reconciler(store, api, config, seconds), simulator, seconds)  # type: ignore[arg-type]
        await outage.step()
        api.failing = False
        while True:
            seconds.now += 1.0
            await outage.step_until_something_starts()
            found = await store.reads.find_cart(KEY)
            if found and not found.reconciling:
                break
        await api.close()
    assert "unforeseen" in caplog.text


def test_a_breaker_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(Seconds(), threshold=3)
    for _ in range(2):
        breaker.failed()
    breaker.succeeded()
    assert not any(breaker.failed() for _ in range(2))
    assert breaker.permits(7) == 7
    assert breaker.failed()
    assert breaker.permits(7) == 0


def test_a_probe_that_hangs_does_not_keep_the_next_one_back() -> None:
    seconds = Seconds()
    breaker = Breaker(seconds, threshold=1, probe_interval=1.0)
    breaker.failed()
    assert breaker.seconds_to_probe() == 1.0
    seconds.now += 1.0
    assert breaker.permits(7) == 1
    breaker.probing()
    assert breaker.permits(7) == 0
    seconds.now += 1.0
    assert breaker.permits(7) == 1
    assert breaker.succeeded()
    assert (breaker.permits(7), breaker.seconds_to_probe()) == (7, 0.0)
