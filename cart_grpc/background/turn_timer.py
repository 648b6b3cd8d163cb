"""How slow the event loop is."""

import asyncio

from cart_grpc.units import to_seconds, to_us

# If one turn of the event loop takes longer than this, callers wait too.
LAGGING_TURN_US = to_us(0.01)


class TurnTimer:
    """Measures how long one turn of the event loop takes. `is_lagging`: so long that callers notice."""

    def __init__(self) -> None:
        self.is_lagging = False
        self._is_measuring = False

    def start(self) -> None:
        """Measure the turn that begins now, unless one is measured already."""
        if not self._is_measuring:
            self._is_measuring = True
            loop = asyncio.get_running_loop()
            loop.call_soon(self._end, loop.time())

    def _end(self, began: float) -> None:
        self._is_measuring = False
        self.is_lagging = asyncio.get_running_loop().time() - began > to_seconds(LAGGING_TURN_US)

    async def measure(self) -> None:
        """Measure a turn and wait for the result."""
        self.start()
        await asyncio.sleep(0)
