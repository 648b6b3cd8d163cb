"""No export goes on after the tests of its module."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

# Of spans, of their last export, and of metrics. A stop waits for them for a moment only.
EXPORTS = ("OtelBatch", "stop-traces", "otlp-metrics")
END_SECONDS = 30


@pytest.fixture(scope="module", autouse=True)
async def ended_exports() -> AsyncIterator[None]:
    """Wait for the exports of the tests. In a later test, their retries would log lines and use `random`."""
    yield
    for thread in threading.enumerate():
        if thread.name.startswith(EXPORTS):
            # Not in this thread: the collectors of the tests answer in its event loop.
            await asyncio.to_thread(thread.join, END_SECONDS)
            assert not thread.is_alive(), thread.name
