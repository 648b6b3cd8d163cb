"""The readiness of a process: ready while every path to the database works. The Reservation API does not matter."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from cart_grpc.background.loop import Loop
from cart_grpc.carts.refusals import DatabaseDamaged
from cart_grpc.metrics import READY
from cart_grpc.units import to_seconds, to_us

log = logging.getLogger(__name__)
INTERVAL_US = to_us(0.5)


class SetReady(Protocol):
    """Publishes whether a server should get calls."""

    async def __call__(self, *, ready: bool) -> None: ...


class ReadinessWatcher:
    """Pings the database twice a second and publishes the result for each server."""

    def __init__(self, ping: Callable[[], Awaitable[None]], set_ready: Sequence[SetReady]) -> None:
        self._ping = ping
        self._set_ready = set_ready
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
            if isinstance(error, DatabaseDamaged):
                self._log_damage()
            raise
        await self._publish(ready=True)

    async def _publish(self, *, ready: bool) -> None:
        READY.set(ready)
        for set_ready in self._set_ready:
            await set_ready(ready=ready)

    def _log_damage(self) -> None:
        if not self._damage_logged:
            log.error("the database is damaged: stop, keep a copy of its files, and restore a backup (see README)")
        self._damage_logged = True

    async def _pause(self, _: None) -> None:
        await asyncio.sleep(to_seconds(INTERVAL_US))
