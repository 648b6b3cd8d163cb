"""A reconciler that runs one round at a time, and the calls that it makes."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from cart_grpc import app
from cart_grpc.background.clock_watcher import ClockWatcher
from cart_grpc.background.config import ReconcilerConfig
from cart_grpc.background.reconciler import Reconciler
from cart_grpc.protocol.reservation import Answer, Intent, Reservation
from cart_grpc.reservation_api import transports
from cart_grpc.reservation_api.api import UNRECORDED, Applied, Attempt, ReservationApi
from cart_grpc.reservation_api.credentials import NO_FILES, CredentialFiles
from cart_grpc.settings import Settings
from cart_grpc.store.store import Store
from tests.background.clock import MonotonicClock
from tests.store.writes import snapshot


class ListedCalls:
    """A Reservation API that lists its calls: the skus in each. `max_batch` may be lowered."""

    def __init__(self, inner: ReservationApi) -> None:
        self._inner = inner
        self.max_batch = inner.max_batch
        self.singles: list[str] = []
        self.batches: list[list[str]] = []
        self.bug: Exception | None = None

    async def apply(self, intent: Intent, *, timeout: float, attempt: Attempt = UNRECORDED) -> Answer:
        self.singles.append(intent.sku)
        return await self._inner.apply(intent, timeout=timeout, attempt=attempt)

    async def apply_batch(
        self, intents: Sequence[Intent], *, timeout: float
    ) -> AsyncGenerator[Sequence[Applied], None]:
        self.batches.append([intent.sku for intent in intents])
        async with aclosing(self._inner.apply_batch(intents, timeout=timeout)) as arriving:
            async for applied in arriving:
                yield applied
                if self.bug:
                    raise self.bug

    async def close(self) -> None:
        await self._inner.close()


@dataclass(frozen=True)
class Rounds:
    """A reconciler, its store, its calls and its clock."""

    store: Store
    reconciler: Reconciler
    calls: ListedCalls
    clock: MonotonicClock

    async def start(self) -> int:
        """Run one round. Returns the number of claims whose calls it started."""
        return (await self.reconciler.run_once()).total

    async def until_in_flight(self, count: int) -> None:
        """Wait until `count` claims are in flight."""
        async with asyncio.timeout(20):
            while self.reconciler.in_flight != count:
                await asyncio.sleep(0.005)

    async def step(self) -> int:
        """Run one round and wait until its calls have ended. Returns the number of claims."""
        started = await self.start()
        await self.until_in_flight(0)
        return started

    async def reservations(self) -> dict[str, Reservation]:
        """The reservations of the cart, by sku."""
        return {line.item.sku: line.reservation for line in (await snapshot(self.store)).lines}

    async def settle(self) -> None:
        """Run rounds until every reservation is settled."""
        async with asyncio.timeout(30):
            while not all(row.settled for row in (await self.reservations()).values()):
                await self.step()


@asynccontextmanager
async def running_rounds(
    settings: Settings, url: str, files: CredentialFiles = NO_FILES, **config: int
) -> AsyncIterator[Rounds]:
    """A reconciler whose rows are due again soon after a failed attempt. `config` replaces its configuration."""
    clock = MonotonicClock()
    values = {"backoff_initial_us": 1_000, "backoff_max_us": 1_000, **config}
    async with app.running_store(settings) as store:
        calls = ListedCalls(transports.connect(url, files))
        watcher = ClockWatcher(store.clock(app.monotonic_us, 0))
        reconciler = Reconciler(store, calls, ReconcilerConfig(**values), clock, watcher.run_once)
        yield Rounds(store, reconciler, calls, clock)
        await reconciler.stop(0)
        await calls.close()
