"""The watcher of the pause: every process that reconciles logs once when an operator pauses and resumes all calls."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from cart_grpc.background.loop import Loop
from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.store.read.operator_reads import PauseSnapshot
from cart_grpc.units import to_seconds, to_us

log = Log(__name__)
INTERVAL_US: Final = to_us(2)


class PauseWatcher:
    """Reads the pause every two seconds. The claims themselves do not depend on it: each of them checks the pause."""

    def __init__(self, find_pause: Callable[[], Awaitable[PauseSnapshot | None]]) -> None:
        self._find_pause = find_pause
        self._seen: PauseSnapshot | None = None
        self._loop = Loop("pause watcher", self.run_once, self._pause)

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._loop.run()

    async def run_once(self) -> None:
        """Log a change since the last round. Raises DatabaseUnavailable if the database does not answer."""
        found = await self._find_pause()
        if found == self._seen:
            return
        self._seen = found
        if found:
            text = "all calls to the Reservation API are paused: %s"
            log(events.RESERVATIONS_PAUSED, text, found.reason, reason=found.reason)
        else:
            log(events.RESERVATIONS_RESUMED, "the calls to the Reservation API are not paused any more")

    async def _pause(self, _: None) -> None:
        await asyncio.sleep(to_seconds(INTERVAL_US))
