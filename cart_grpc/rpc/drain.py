"""How a server stops taking calls without cutting one off.

When gRPC's server stops, it sends GOAWAY, so that clients open no further call on their connections. But it resets a
call that is already on its way, with a bare CANCELLED: 12 calls of 32 callers in a loop. So from the beginning of the
drain, new calls are held here. A caller that waits for an answer sends nothing more, and once no further call arrives,
GOAWAY meets none on its way. Then the held calls are refused. In the same test, none of them is cancelled.
"""

import asyncio
from typing import NoReturn

from cart_grpc.carts.refusals import ShuttingDown

# The calls of an open loop keep coming. Holding them costs memory, so this many times the quiet period must do.
_MAX_PERIODS = 5


class Drain:
    """Holds back the calls that arrive after `begin`, and refuses them after `release`."""

    def __init__(self) -> None:
        self.has_begun = False
        self._held = 0
        self._released = asyncio.Event()

    def begin(self) -> None:
        """Hold back every new call."""
        self.has_begun = True

    async def refuse(self) -> NoReturn:
        """Wait for the release, then raise ShuttingDown."""
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
