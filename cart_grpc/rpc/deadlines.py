"""Deadlines: the server ends calls that take too long, and those that still run when it has to stop.

All calls have the same time-out, so the first to start is the first to end: a dictionary keeps them in order, and one
timer serves all of them. A timer for each call, as asyncio.timeout() makes it, costs 6 % of an empty call on uvloop.
The single timer costs less than 1 %. (Measured as server CPU per call: 120 interleaved rounds on one server.)
"""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from cart_grpc.carts.refusals import CallRefused, CallTimeout, ShuttingDown

T = TypeVar("T")


class Deadlines:
    """Ends calls that take longer than `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: dict[asyncio.Task[Any] | None, float] = {}
        self._extended: set[asyncio.Task[Any] | None] = set()
        self._ended: dict[asyncio.Task[Any] | None, CallRefused] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, work: Awaitable[T]) -> T:
        """Return the result of `work`, which runs in the current task. Raises CallTimeout or ShuttingDown."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        self._due[task] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._end_overdue)
        try:
            return await work
        except asyncio.CancelledError:
            # If the caller cancelled the call, too, the cancellation goes on.
            if task in self._ended and task and task.uncancel() == 0:
                raise self._ended[task] from None
            raise
        finally:
            self._due.pop(task, None)
            self._ended.pop(task, None)

    async def extend(self, work: Awaitable[T], seconds: float) -> T:
        """Return the result of `work`, with a longer time-out: `seconds` more than other calls, counted from now.

        Call it inside the `work` of `run`, for the remainder of that call.

        Raises CallTimeout.
        """
        task = asyncio.current_task()
        self._due.pop(task, None)
        self._extended.add(task)
        seconds += self._seconds
        timeout = asyncio.timeout(seconds)
        try:
            async with timeout:
                return await work
        except TimeoutError:
            if timeout.expired():
                raise CallTimeout(seconds) from None
            raise
        finally:
            self._extended.discard(task)

    def running(self) -> set[asyncio.Task[Any]]:
        """The tasks of the running calls. gRPC ends such a task once the caller has the reply."""
        return {task for task in (*self._due, *self._extended) if task}

    def end_all(self) -> None:
        """End every running call with ShuttingDown."""
        for task in (*self._due, *self._extended):
            self._end(task, ShuttingDown(was_running=True))
        self._due.clear()
        self._extended.clear()

    def _end_overdue(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._due:
            task, due = next(iter(self._due.items()))
            if due > now:
                self._timer = loop.call_at(due, self._end_overdue)
                return
            del self._due[task]
            self._end(task, CallTimeout(self._seconds))

    def _end(self, task: asyncio.Task[Any] | None, refusal: CallRefused) -> None:
        self._ended[task] = refusal
        if task:
            task.cancel()
