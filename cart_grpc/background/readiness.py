"""The readiness of a process: ready while every path to the database works. The Reservation API does not matter."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from cart_grpc.background.loop import Loop
from cart_grpc.carts.refusals import DatabaseDamaged
from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.metrics import READY
from cart_grpc.store.failures import show_cause
from cart_grpc.units import to_seconds, to_us

log = Log(__name__)
INTERVAL_US = to_us(0.5)


class SetReady(Protocol):
    """Publishes whether a server should get calls."""

    async def __call__(self, *, ready: bool) -> None: ...


class ReadinessWatcher:
    """Pings the database twice a second, and publishes the result for each server.

    Changes are logged. `find_failing` returns what fails, such as "writes fail".
    """

    def __init__(
        self,
        ping: Callable[[], Awaitable[None]],
        set_ready: Sequence[SetReady],
        find_failing: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._ping = ping
        self._set_ready = set_ready
        self._find_failing = find_failing
        self._is_ready: bool | None = None
        self._damage_logged = False
        self._loop = Loop("readiness", self.run_once, self._pause)

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._loop.run()

    async def run_once(self) -> None:
        """Ping once and publish the result. Raises what the ping raised, such as DatabaseUnavailable."""
        try:
            await self._ping()
        except Exception as error:
            await self._publish(ready=False)
            self._log_cause(error)
            raise
        await self._publish(ready=True)
        if not self._is_ready:
            self._is_ready = True
            log(events.READY, "ready: every path to the database works")

    async def _publish(self, *, ready: bool) -> None:
        READY.set(ready)
        for set_ready in self._set_ready:
            await set_ready(ready=ready)

    def _log_cause(self, error: Exception) -> None:
        if isinstance(error, DatabaseDamaged) and not self._damage_logged:
            self._damage_logged = True
            text = "the database is damaged: stop, copy its files, restore a backup (docs/troubleshooting.md): %s"
            log(events.DATABASE_DAMAGED, text, show_cause(error))
        if self._is_ready is not False:
            self._is_ready = False
            failing = "; ".join(self._find_failing())
            log(events.NOT_READY, "not ready: %s", show_cause(error), failing=failing)

    async def _pause(self, _: None) -> None:
        await asyncio.sleep(to_seconds(INTERVAL_US))
