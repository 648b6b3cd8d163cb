"""Virtual time: an event loop that never waits, and processes that can be frozen and killed between two callbacks."""

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Coroutine
from typing import Any, NoReturn

MOST_CALLBACKS = 150_000
"""Many times what any run reads."""

FINEST = 1e-5

OUTSIDE = contextvars.Context()
"""The context of what belongs to no process: the network, the database, the callers."""

_process: contextvars.ContextVar["Process"] = contextvars.ContextVar("process")


class RunawayError(Exception):
    """A run that does not come to its end."""


class Process:
    """What a kill ends and a pause freezes: every task and callback that was started in its context."""

    def __init__(self, loop: "VirtualLoop", name: str) -> None:
        self.name = name
        self.context = OUTSIDE.copy()
        self.context.run(_process.set, self)
        self.dead = False
        self.paused = False
        self.died: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._frozen: list[asyncio.Handle] = []
        # Held until the run is over: a task that is collected runs its `finally` blocks when the collector pleases.
        self.tasks: list[asyncio.Task[Any]] = []

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` as a task of this process."""
        return self._loop.create_task(work, context=self.context.copy())

    async def outcome(self, task: asyncio.Task[Any], seconds: float) -> None:
        """Wait until `task` of this process has ended, the process has, or the time is over; nobody need fetch more."""
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        ends: set[asyncio.Future[Any]] = {task, self.died}
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)

    def kill(self) -> None:
        """Nothing of it happens any more. What it has sent is on its way all the same."""
        if not self.dead:
            self.dead = True
            self.died.set_result(None)

    def pause(self) -> None:
        """It does nothing until `resume`, and then goes on as if nothing had happened."""
        self.paused = True

    def resume(self) -> None:
        """Go on: with all that came to pass meanwhile, in its order."""
        self.paused = False
        if not self.dead:
            self._loop.put_back(self._frozen)
            self._frozen.clear()

    def admits(self, handle: asyncio.Handle) -> bool:
        """Whether `handle` may run now."""
        if self.dead or self.paused:
            self._frozen.append(handle)
            return False
        return True

    def bury(self) -> None:
        """After the run: let its tasks end, so that nothing is left to the garbage collector."""
        self.dead = False
        self.resume()

    def unheard_errors(self) -> list[BaseException]:
        """What its tasks raised and nobody asked for."""
        ended = [task for task in self.tasks if task.done() and not task.cancelled()]
        return [error for task in ended if task._log_traceback and (error := task.exception())]


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs what is ready, and then moves the clock to what comes next. No threads, no sockets.

    It stands on three names of `BaseEventLoop` that are not public, unchanged since Python 3.4: `_ready`,
    `_scheduled`, `_run_once`.
    """

    _ready: deque[Any]
    _scheduled: list[Any]

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self.callback_count = 0
        self.set_task_factory(_make_task)  # type: ignore[arg-type]  # its type says more than asyncio does

    def time(self) -> float:
        return self._now

    def call_later(  # type: ignore[override]  # as BaseEventLoop's, without its type variables
        self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """No timer is finer than 10 µs: who waits for a clock that runs slower than this one would wait for ever."""
        return self.call_at(self._now + max(delay, FINEST), callback, *args, context=context)

    def put_back(self, handles: list[asyncio.Handle]) -> None:
        """Make `handles` ready again."""
        self._ready.extend(handles)

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        while not ready:
            if not scheduled:
                raise RuntimeError("nothing will ever happen again, and somebody waits for it")
            timer = heapq.heappop(scheduled)
            timer._scheduled = False
            if not timer._cancelled:
                self._now = max(self._now, timer._when)
                ready.append(timer)
        self.callback_count += len(ready)
        if self.callback_count > MOST_CALLBACKS:
            raise RunawayError(f"something runs without a pause: {self.callback_count} callbacks")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(_process)
            if process is None or process.admits(handle):
                handle._run()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer is passed over when its time comes."""

    def run_in_executor(self, *_: Any) -> NoReturn:  # type: ignore[override]  # refused, whatever it is given
        raise RuntimeError("a thread would not be the same in the next run")

    def call_soon_threadsafe(  # type: ignore[override]  # as BaseEventLoop's, without its type variables
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Only ever called in the loop's own thread: asyncio closes forgotten generators through it."""
        return self.call_soon(callback, *args, context=context)


def _make_task(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, Any],
    context: contextvars.Context | None = None,
    **options: Any,
) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, context=context, **options)
    process = context.get(_process) if context is not None else _process.get(None)
    if process is not None:
        process.tasks.append(task)
    return task
