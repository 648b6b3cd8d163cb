"""Latency under a test's control: sleeps that end when the test says so."""

import asyncio


class Gate:
    """Replaces `asyncio.sleep` as a source of latency. The gate starts closed."""

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
        """Wait until `count` sleeps have begun since the gate was made."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._waiting >= count)

    def open(self) -> None:
        """End all sleeps. New sleeps end at once."""
        self._opened.set()

    def close(self) -> None:
        """Make new sleeps wait again."""
        self._opened.clear()
