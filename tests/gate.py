"""Latency that a test decides on: sleeps that end when it says so."""

import asyncio


class Gate:
    """Stands in for `asyncio.sleep` where time is not what a test is about. Closed at first."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()
        self._waiting = 0
        self._changed = asyncio.Condition()

    async def sleep(self, _seconds: float) -> None:
        """Wait until the gate is open."""
        async with self._changed:
            self._waiting += 1
            self._changed.notify_all()
        await self._opened.wait()

    async def until_waiting(self, count: int) -> None:
        """Return once `count` sleeps have begun, over the gate's whole life."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._waiting >= count)

    def open(self) -> None:
        """End all sleeps, and those to come."""
        self._opened.set()

    def close(self) -> None:
        """Let the sleeps to come wait again."""
        self._opened.clear()
