"""Virtual time: an event loop that never sleeps, and processes that can be paused or killed between two callbacks."""

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Coroutine
from typing import Any, NoReturn

MAX_CALLBACKS = 150_000
"""Many times the number that any run needs."""

MIN_DELAY = 1e-5
"""In seconds."""

OUTSIDE = contextvars.Context()
"""The context of callbacks that belong to no process: the network, the database, the callers."""

_process: contextvars.ContextVar["Process"] = contextvars.ContextVar("process")


class RunawayError(Exception):
    """The run does not end."""


class Process:
    """A simulated process: all tasks and callbacks started in its context. A kill ends them, a pause stops them."""

    def __init__(self, loop: "VirtualLoop", name: str) -> None:
        self.name = name
        self.context = OUTSIDE.copy()
        self.context.run(_process.set, self)
        self.dead = False
        self.paused = False
        self.died: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._collected: list[asyncio.Handle] = []
        # Keep references until the run is over. Otherwise the garbage collector decides when `finally` blocks run.
        self.tasks: list[asyncio.Task[Any]] = []

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` as a task of this process."""
        return self._loop.create_task(work, context=self.context.copy())

    async def outcome(self, task: asyncio.Task[Any], seconds: float) -> None:
        """Wait until `task` ends, this process dies, or `seconds` pass. Marks the task's exception as retrieved."""
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        ends: set[asyncio.Future[Any]] = {task, self.died}
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)

    def kill(self) -> None:
        """Run no further callback of this process. Messages that it sent still arrive."""
        if not self.dead:
            self.dead = True
            self.died.set_result(None)

    def pause(self) -> None:
        """Collect this process's callbacks until `resume`."""
        self.paused = True

    def resume(self) -> None:
        """Run the callbacks that were collected during the pause, in their order."""
        self.paused = False
        if not self.dead:
            self._loop.put_back(self._collected)
            self._collected.clear()

    def admits(self, handle: asyncio.Handle) -> bool:
        """Whether `handle` may run now. If not, keep it."""
        if self.dead or self.paused:
            self._collected.append(handle)
            return False
        return True

    def finish_tasks(self) -> None:
        """After the run: let the tasks end, so that the garbage collector ends none of them."""
        self.dead = False
        self.resume()

    def unhandled_errors(self) -> list[BaseException]:
        """The exceptions of this process's tasks that no code retrieved."""
        ended = [task for task in self.tasks if task.done() and not task.cancelled()]
        return [error for task in ended if task._log_traceback and (error := task.exception())]


class VirtualLoop(asyncio.BaseEventLoop):
    """Run all ready callbacks, then move the clock to the next timer. No threads, no sockets.

    This uses three private names of `BaseEventLoop`, unchanged since Python 3.4: `_ready`, `_scheduled`, `_run_once`.
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
        """Like asyncio's, but at least 10 µs later: waiting for a slower clock would otherwise never advance time."""
        return self.call_at(self._now + max(delay, MIN_DELAY), callback, *args, context=context)

    def put_back(self, handles: list[asyncio.Handle]) -> None:
        """Make `handles` ready again."""
        self._ready.extend(handles)

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        while not ready:
            if not scheduled:
                raise RuntimeError("deadlock: nothing is scheduled, but a task is waiting")
            timer = heapq.heappop(scheduled)
            timer._scheduled = False
            if not timer._cancelled:
                self._now = max(self._now, timer._when)
                ready.append(timer)
        self.callback_count += len(ready)
        if self.callback_count > MAX_CALLBACKS:
            raise RunawayError(f"a busy loop: {self.callback_count} callbacks")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(_process)
            if process is None or process.admits(handle):
                handle._run()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Nothing to do: `_run_once` skips cancelled timers."""

    def run_in_executor(self, *_: Any) -> NoReturn:  # type: ignore[override]  # always raises
        raise RuntimeError("a thread would make the run non-deterministic")

    def call_soon_threadsafe(  # type: ignore[override]  # as BaseEventLoop's, without its type variables
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Only called in the loop's own thread: asyncio closes abandoned generators with it."""
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
