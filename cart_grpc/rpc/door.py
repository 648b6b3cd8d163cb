"""When a server takes calls: not before its store is open, and not while it stops.

A stop must not cut off a call that is on its way. When gRPC's server stops, it sends GOAWAY, so that clients open no
further call on their connections. But it resets a call that is already on its way, with a bare CANCELLED: 12 calls of
32 callers in a loop. So from the beginning of the drain, new calls are held here. A caller that waits for an answer
sends nothing more, and once no further call arrives, GOAWAY meets none on its way. Then the held calls are refused. In
the same test, none of them is cancelled.
"""

import asyncio
from typing import NoReturn

from cart_grpc.carts.refusals import DatabaseUnavailable, ShuttingDown

# The calls of an open loop keep coming. Holding them costs memory, so this many times the quiet period must do.
_MAX_PERIODS = 5


class Door:
    """Refuses calls until `open`. Holds calls back after `begin_drain`, and refuses them after `release`."""

    def __init__(self) -> None:
        self.is_open = False
        self._is_draining = False
        self._held = 0
        self._released = asyncio.Event()

    def open(self) -> None:
        """Take calls from now on."""
        self.is_open = True

    def begin_drain(self) -> None:
        """Hold back every new call."""
        self.is_open = False
        self._is_draining = True

    async def refuse(self) -> NoReturn:
        """Raise DatabaseUnavailable if there is no store yet; else wait for the release, then raise ShuttingDown."""
        if not self._is_draining:
            raise DatabaseUnavailable
        self._held += 1
        await self._released.wait()
        raise ShuttingDown

    async def quiet(self, seconds: float) -> None:
        """Return once no call has arrived for `seconds`, or after five times as long."""
        for _ in range(_MAX_PERIODS):
            held = self._held
            await asyncio.sleep(seconds)
            if self._held == held:
                return

    def release(self) -> None:
        """Refuse the calls that are held back, and all later ones at once."""
        self._released.set()
