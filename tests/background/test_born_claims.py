"""The reconciler as the owner of born claims: it gives room for them, calls for them, and hands them back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import pytest
from sqlalchemy import Connection

from cart_grpc import app
from cart_grpc.background.clock_watcher import ClockWatcher
from cart_grpc.background.config import ReconcilerConfig
from cart_grpc.background.reconciler import Reconciler
from cart_grpc.protocol.lanes import CHECKOUT_LANE, HOLD_LANE, LANES, RELEASE_LANE
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.reservation_api import transports
from cart_grpc.settings import Settings
from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.simulator import Simulator
from cart_grpc.store.store import Store
from cart_grpc.units import to_us
from tests.gate import Gate
from tests.store.writes import KEY, add, claim, remove, snapshot

T = TypeVar("T")
# No round of the reconciler finds a row unless a hint wakes it.
HOUR_US = to_us(3600)
DOWN = Faults(down=True)


@dataclass(frozen=True)
class Running:
    """A running reconciler and its store."""

    store: Store
    reconciler: Reconciler

    async def reservations(self) -> list[Reservation]:
        return [line.reservation for line in (await snapshot(self.store)).lines]

    async def until(self, holds: Callable[[Reservation], bool]) -> None:
        """Wait until `holds` is true for the reservation of each item."""
        async with asyncio.timeout(20):
            while not all(map(holds, await self.reservations())):
                await asyncio.sleep(0.01)

    async def claim_others(self) -> list[Reservation]:
        """Claim the due reservations, as another process."""
        return [row for lane in (HOLD_LANE, RELEASE_LANE) for row in await claim(self.store, lane)]


@asynccontextmanager
async def running(settings: Settings, url: str, **config: int) -> AsyncIterator[Running]:
    values = {"poll_interval_us": HOUR_US, "backoff_initial_us": 1, "backoff_max_us": 1, **config}
    async with app.running_store(settings) as store:
        api = transports.connect(url)
        watcher = ClockWatcher(store.clock(app.monotonic_us, 0))
        reconciler = Reconciler(store, api, ReconcilerConfig(**values), app.monotonic_us, watcher.run_once)
        task = asyncio.create_task(reconciler.run())
        # The first round looks for due rows without a hint. Wait until it is over.
        async with asyncio.timeout(20):
            while store.notifier.claimant is None or not store.notifier.due._waiters:
                await asyncio.sleep(0.001)
        yield Running(store, reconciler)
        await reconciler.stop(0)
        await task
        await api.close()


async def test_an_item_is_reserved_and_released_without_a_round_of_the_reconciler(
    settings: Settings, simulator: Simulator, simulator_url: str
) -> None:
    async with running(settings, simulator_url, poll_interval_us=HOUR_US) as service:
        await service.store.mutate(add("a"))
        assert not service.store.notifier.due.is_set()
        await service.until(lambda row: row.settled)
        await service.store.mutate(remove("a"))
        async with asyncio.timeout(20):
            while (await snapshot(service.store)).is_releasing(None) or service.reconciler.in_flight:
                await asyncio.sleep(0.01)
        assert simulator.levels("a").held == 0


@pytest.mark.parametrize("limit", [1, 3])
async def test_there_are_never_more_calls_in_flight_than_allowed_and_each_item_gets_its_turn(
    settings: Settings, simulator_url: str, gate: Gate, limit: int
) -> None:
    gate.close()
    async with running(settings, simulator_url, max_in_flight=limit) as service:
        await asyncio.gather(*(service.store.mutate(add(f"sku-{number}")) for number in range(8)))
        async with asyncio.timeout(20):
            while service.reconciler.in_flight < limit:
                await asyncio.sleep(0.01)
        most = service.reconciler.in_flight
        gate.open()
        async with asyncio.timeout(20):
            while not all(row.settled for row in await service.reservations()):
                most = max(most, service.reconciler.in_flight)
                await asyncio.sleep(0)
        assert most == limit
        assert all(row.lease_epoch == 1 for row in await service.reservations())


async def test_the_room_of_a_batch_is_nobody_elses_until_the_batch_has_ended(
    settings: Settings, simulator_url: str
) -> None:
    async with running(settings, simulator_url, max_in_flight=3) as service:
        reconciler = service.reconciler
        with reconciler.reserve_room() as first, reconciler.reserve_room() as second:
            assert first.claims == {CHECKOUT_LANE: 3, HOLD_LANE: 3, RELEASE_LANE: 3}
            assert second.claims == {}
            await service.store.mutate(add("a"))
            assert (await reconciler.run_once()).total == 0
        await service.until(lambda row: row.settled)
        async with asyncio.timeout(20):
            while True:
                with reconciler.reserve_room() as third:
                    if third.claims == first.claims:
                        break
                # A lane has a backlog until a round finds nothing more.
                await reconciler.run_once()


async def test_claims_that_are_born_together_go_to_their_own_lanes(
    settings: Settings, simulator_url: str, gate: Gate
) -> None:
    async with running(settings, simulator_url) as service:
        await service.store.mutate(add("a"))
        await service.until(lambda row: row.settled)
        gate.close()
        await asyncio.gather(service.store.mutate(remove("a")), service.store.mutate(add("b")))
        lanes = {lane.name: [row.sku for row in lane.open.values()] for lane in service.reconciler._lanes.values()}
        assert lanes == {CHECKOUT_LANE: [], RELEASE_LANE: ["a"], HOLD_LANE: ["b"]}
        gate.open()
        await service.until(lambda row: row.settled)


async def test_nothing_is_born_claimed_while_the_api_is_down(
    settings: Settings, simulator: Simulator, simulator_url: str
) -> None:
    simulator.faults = DOWN
    async with running(settings, simulator_url, breaker_threshold=1, probe_interval_us=HOUR_US) as service:
        await service.store.mutate(add("a"))
        async with asyncio.timeout(20):
            while service.reconciler.find_breaker_open_us() is None or service.reconciler.in_flight:
                await asyncio.sleep(0.01)
        await service.store.mutate(add("b"))
        [b] = [row for row in await service.reservations() if row.sku == "b"]
        assert (b.lease_epoch, b.lease_expire_time) == (0, None)


async def test_a_stop_hands_back_born_claims_whose_calls_hang(
    settings: Settings, simulator_url: str, gate: Gate
) -> None:
    gate.close()
    async with running(settings, simulator_url) as service:
        await asyncio.gather(*(service.store.mutate(add(sku)) for sku in "abc"))
        await gate.until_waiting(1)
        await service.reconciler.stop(0)
        assert all(row.lease_expire_time is None for row in await service.reservations())
        assert len(await service.claim_others()) == 3


async def test_a_stop_hands_back_claims_of_a_transaction_that_had_begun(
    settings: Settings, simulator: Simulator, simulator_url: str
) -> None:
    committed, go_on = asyncio.Event(), asyncio.Event()

    async with running(settings, simulator_url) as service:
        engine = service.store._engine
        transact = engine.transact

        async def slow(work: Callable[[Connection], T]) -> T:
            result = await transact(work)
            committed.set()
            await go_on.wait()
            return result

        engine.transact = slow  # type: ignore[method-assign]
        adding = asyncio.create_task(service.store.mutate(add("a")))
        await committed.wait()
        stopping = asyncio.create_task(service.reconciler.stop(to_us(20)))
        await asyncio.sleep(0.05)
        assert not stopping.done()
        go_on.set()
        await stopping
        await adding
        assert simulator.call_count == 0
        [row] = await service.reservations()
        assert (row.lease_epoch, row.lease_expire_time) == (1, None)
        assert await service.claim_others()


async def test_nothing_is_born_claimed_after_a_stop(settings: Settings, simulator_url: str) -> None:
    async with running(settings, simulator_url) as service:
        await service.reconciler.stop(0)
        await service.store.mutate(add("a"))
        [row] = await service.reservations()
        assert row.lease_epoch == 0


async def test_while_a_lane_has_a_backlog_its_older_rows_go_first(settings: Settings, simulator_url: str) -> None:
    async with running(settings, simulator_url) as service:
        service.reconciler._lanes[HOLD_LANE].backlog = True
        with service.reconciler.reserve_room() as room:
            assert set(room.claims) == {CHECKOUT_LANE, RELEASE_LANE}
        # The batch woke a round, which found nothing more.
        async with asyncio.timeout(20):
            while service.reconciler._lanes[HOLD_LANE].backlog:
                await asyncio.sleep(0.01)
        with service.reconciler.reserve_room() as room:
            assert set(room.claims) == set(LANES)


async def test_a_process_without_a_reconciler_claims_nothing(settings: Settings) -> None:
    async with app.running_store(settings) as store:
        await store.mutate(add())
        found = await store.reads.find_cart(KEY)
        assert found
        assert found.lines[0].reservation.lease_epoch == 0
