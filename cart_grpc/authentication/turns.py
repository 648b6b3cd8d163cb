"""The calls of strangers take turns, so that a flood of them leaves the event loop to those whom we know."""

import asyncio
from collections import deque
from typing import Final

from cart_grpc.carts.refusals import Overloaded

# The share of the time that the calls of strangers may take. A new token that is valid takes 0.13 ms with ES256, so
# 1,900 of them a second.
SHARE: Final = 0.25
# Strangers who come together after a pause need not wait for so many seconds of turns.
BURST_SECONDS: Final = 0.25
# The calls that wait, besides one for each connection. Each takes 27 KiB, so they take at most 108 MiB; and 40
# connections that are full of them cannot open a further call.
MAX_WAITING: Final = 4_000
# What gRPC takes for a call that is refused, and how much a turn costs at most: it may include a wait for keys.
REFUSAL_SECONDS: Final = 0.0002
MAX_TURN_SECONDS: Final = 0.002


class Turns:
    """Turns of calls whose callers are not known yet. Connections get them in rotation, and each is paid for in time.

    Without a flood nobody waits. In a flood the calls that wait keep the streams of their connections, so a connection
    can open no more of them than are answered.
    """

    def __init__(self) -> None:
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}
        self._waiting = 0
        # The time at which all turns so far are paid for.
        self._paid = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, connection: str) -> None:
        """Wait for a turn of a connection. Raises Overloaded if too many calls wait."""
        if not self._queues and self._seconds_to_wait() <= 0:
            return
        if self._waiting >= MAX_WAITING and connection in self._queues:
            raise Overloaded
        turn = asyncio.get_running_loop().create_future()
        queue = self._queues.setdefault(connection, deque())
        queue.append(turn)
        self._waiting += 1
        self._schedule()
        try:
            await turn
        except asyncio.CancelledError:
            self._forget(connection, turn)
            raise

    def pay(self, seconds: float, *, is_refused: bool) -> None:
        """Pay for a turn that has taken `seconds`."""
        cost = min(seconds, MAX_TURN_SECONDS) + REFUSAL_SECONDS * is_refused
        self._paid = max(self._paid, asyncio.get_running_loop().time()) + cost / SHARE

    def _seconds_to_wait(self) -> float:
        return self._paid - asyncio.get_running_loop().time() - BURST_SECONDS

    def _schedule(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(max(self._seconds_to_wait(), 0.0), self._give)

    def _give(self) -> None:
        """Give the next turn; the one after it when that has been paid for."""
        self._timer = None
        if self._queues and self._seconds_to_wait() <= 0:
            connection = next(iter(self._queues))
            queue = self._queues.pop(connection)
            turn = queue.popleft()
            self._waiting -= 1
            if queue:
                self._queues[connection] = queue
            # A call that was cancelled a moment ago could not leave the queue yet.
            if not turn.done():
                turn.set_result(None)
        if self._queues:
            self._schedule()

    def _forget(self, connection: str, turn: "asyncio.Future[None]") -> None:
        queue = self._queues.get(connection)
        if queue and turn in queue:
            queue.remove(turn)
            self._waiting -= 1
            if not queue:
                del self._queues[connection]
