"""The runtime of a process: its event loop and its stop signal."""

import asyncio
import gc
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.terminal import complain

try:
    import resource
except ImportError:
    # Windows has no such limit.
    resource = None  # type: ignore[assignment]

log = Log(__name__)
# Four ports that are full of connections, and everything else.
WANTED_FILES: Final = 17_000
# For the database, the Reservation API, the key set, and files that are read again.
RESERVED_FILES: Final = 250


def run(work: Coroutine[Any, Any, int | None]) -> int:
    """Run `work` in an event loop to its end. Returns the exit status."""
    # A call allocates hundreds of objects and hardly ever a cycle, so the default thresholds collect far too often:
    # every 700 objects, and everything imported every 70,000. A much higher threshold is dangerous: a cancelled call is
    # a cycle with its request, and at 20,000 an attacker's calls took 330 MiB instead of 100.
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)
    _raise_file_limit()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work) or 0


def connection_room(ports: int) -> int:
    """Return how many connections each of so many ports may have, so that files are left for everything else."""
    if resource is None:
        return WANTED_FILES
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    available = WANTED_FILES if soft == resource.RLIM_INFINITY else max(soft - RESERVED_FILES, soft // 2)
    return max(available // max(ports, 1), 1)


def _raise_file_limit() -> None:
    """Let this process open as many files as it may, up to WANTED_FILES.

    Most systems start a program with 1,024. So many silent connections would be enough: nobody else could connect, and
    no file or connection of our own could be opened.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    # macOS has a lower bound of its own.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@asynccontextmanager
async def running_task(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run `work` as a task and cancel it on exit."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _loop_factory() -> Any:
    try:
        import uvloop  # noqa: PLC0415 - not available on Windows
    except ImportError:
        return None
    return uvloop.new_event_loop


def stop_signal(message: str = "") -> asyncio.Event:
    """Return an event that SIGTERM or Ctrl-C sets. A second signal ends the process at once.

    The first signal writes `message`, if there is one: as a line to a terminal, else to the log.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(cause: signal.Signals) -> None:
        stopped.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        if message and sys.stderr.isatty():
            complain(f"{message}; Ctrl-C again ends it at once")
        elif message:
            log(events.STOPPING, "%s", message, cause=cause.name)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    return stopped
