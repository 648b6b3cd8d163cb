"""Waiting until the calls that are in flight are all in one batch. Only for a database inside this process.

There the writer's thread and the event loop need the same interpreter lock. While both work, they take the lock from
each other dozens of times per batch, and a transaction waits for it half of its time. If all callers are in the batch,
the event loop has nothing to do meanwhile. With 64 calls in flight, a batch has all of them instead of 23, and an
AddItem costs a fifth less CPU: 2.15 times an empty call instead of 2.7. A PostgreSQL server works on another core while
the event loop goes on, so there it gains nothing.
"""

import asyncio
import time
from collections.abc import Sized
from typing import Final

# Fewer callers do not use the lock long enough to make up for the wait.
_FEWEST: Final = 4
# The last batch may have taken long because the disk was slow or the database away.
_MAX_SECONDS: Final = 0.02
_POLL_SECONDS: Final = 0.001


class Gathering:
    """Lets a batch wait for the callers whom the last one has answered: in a loop, they call again at once.

    `queue` has the commands of the callers that wait.
    """

    def __init__(self, queue: Sized) -> None:
        self._queue = queue
        self._last_size = 0
        self._last_seconds = 0.0

    async def wait(self) -> None:
        """Return once all calls in flight are queued, but at the latest after as long as the last batch took.

        So it doubles the time until an answer at most, and a call that comes alone does not wait.
        """
        in_flight = self._last_size + len(self._queue)
        if in_flight < _FEWEST:
            return
        latest = time.monotonic() + min(self._last_seconds, _MAX_SECONDS)
        while len(self._queue) < in_flight and time.monotonic() < latest:  # noqa: ASYNC110 - cheaper than an event
            await asyncio.sleep(_POLL_SECONDS)

    def note_batch(self, size: int, seconds: float) -> None:
        """Note how many callers were in the last batch, and how long it took."""
        self._last_size, self._last_seconds = size, seconds
