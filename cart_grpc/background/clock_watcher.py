"""The watcher of the database's clock: notices when it is set, and has the stored times moved."""

import asyncio
from typing import Final

from cart_grpc.background.loop import Loop
from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.metrics import CLOCK_STEPS
from cart_grpc.store.clock_steps import UNKNOWN_US, ClockReading, find_set_back, find_set_forward
from cart_grpc.store.database_clock import DatabaseClock
from cart_grpc.units import to_seconds, to_us

log = Log(__name__)
# Callers see a hold end two seconds early (HOLD_MARGIN_US). So a step must be noticed and applied within two seconds.
CHECK_INTERVAL_US: Final = to_us(0.5)
_BACK_STEPS: Final = CLOCK_STEPS.labels("back")
_FORWARD_STEPS: Final = CLOCK_STEPS.labels("forward")


class ClockWatcher:
    """Reads the database's clock twice a second. Any number of watchers may share a database."""

    def __init__(self, clock: DatabaseClock) -> None:
        self._clock = clock
        self._last: ClockReading | None = None
        self._is_moving = False
        self._lock = asyncio.Lock()
        self._loop = Loop("clock watcher", self.run_once, self._pause)

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._loop.run()

    async def run_once(self) -> None:
        """Compare the database's clock with this process's, the first time with the last commit. Apply a step.

        Raises Unavailable if the database does not answer.
        """
        async with self._lock:
            await self._check()

    async def _check(self) -> None:
        reading = await self._clock.read()
        if self._last and (by_us := find_set_forward(self._last, reading)):
            await self._clock.extend_attempts(by_us)
            _FORWARD_STEPS.inc()
            text = "the database's clock was set forward by %.1f s, or this machine slept"
            log(events.CLOCK_SET_FORWARD, text, to_seconds(by_us), seconds=to_seconds(by_us))
        if self._last is None or find_set_back(self._last, reading):
            noticed = await self._clock.notice(self._last)
            reading, self._is_moving = noticed.reading, noticed.row.is_moving
            if noticed.is_first:
                _BACK_STEPS.inc()
                _log_step(noticed.row.set_back_us)
        self._last = reading
        while self._is_moving:
            self._is_moving = (await self._clock.move()).is_moving

    async def _pause(self, _: None) -> None:
        await asyncio.sleep(to_seconds(CHECK_INTERVAL_US))


def _log_step(by_us: int) -> None:
    by = "while no process ran" if by_us >= UNKNOWN_US else f"by {to_seconds(by_us):.1f} s"
    log(events.CLOCK_SET_BACK, "the database's clock was set back %s: all waits and holds are adjusted", by)
