"""Gauges: each second those of this process, and every ten seconds those of what the database contains.

A gauge that is set here costs the calls nothing, and works with several workers, too.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from cart_grpc.background.loop import Loop
from cart_grpc.metrics import EVENT_LOOP_LAG

SAMPLE_SECONDS: Final = 1.0
DATABASE_SAMPLE_SECONDS: Final = 10.0
# Reading a large backlog takes long. So at most this share of the time is used for it.
MAX_SHARE: Final = 0.05


class Sampled(Protocol):
    """A part of the process with gauges."""

    def sample(self) -> None:
        """Set the gauges."""
        ...


class Sampler:
    """Lets each of `parts` set its gauges once a second, and measures how late the event loop runs it."""

    def __init__(self, parts: Sequence[Sampled]) -> None:
        self._parts = parts
        self._loop = Loop("sampler", self.run_once, self._pause)

    async def run(self) -> None:
        """Sample until cancelled."""
        await self._loop.run()

    async def run_once(self) -> None:
        """Set all gauges once."""
        for part in self._parts:
            part.sample()

    async def _pause(self, _: None) -> None:
        clock = asyncio.get_running_loop().time
        due = clock() + SAMPLE_SECONDS
        await asyncio.sleep(SAMPLE_SECONDS)
        EVENT_LOOP_LAG.observe(max(0.0, clock() - due))


class DatabaseSampler:
    """Calls `sample`, which reads the database, every ten seconds; less often if it takes long."""

    def __init__(self, sample: Callable[[], Awaitable[None]]) -> None:
        self._sample = sample
        self._took = 0.0
        self._loop = Loop("database sampler", self.run_once, self._pause)

    async def run(self) -> None:
        """Sample until cancelled."""
        await self._loop.run()

    async def run_once(self) -> None:
        """Sample once. Raises Unavailable if the database does not answer."""
        began = time.monotonic()
        try:
            await self._sample()
        finally:
            self._took = time.monotonic() - began

    async def _pause(self, _: None) -> None:
        await asyncio.sleep(max(DATABASE_SAMPLE_SECONDS, self._took / MAX_SHARE))
