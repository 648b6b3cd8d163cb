"""Waiting for a condition."""

import asyncio
from collections.abc import Callable
from typing import Final

_PAUSE_SECONDS: Final = 0.002


async def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until `holds` returns something true. Raises TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(_PAUSE_SECONDS)
