"""What each process of ours has: an event loop, a log, and a way to be told to stop."""

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Coroutine
from typing import Any


def run(work: Coroutine[Any, Any, int | None]) -> int:
    """Run `work` in an event loop to its end; its exit status."""
    # Calls make values by the hundred, hardly ever in a cycle; every 700 of them would be searched for one, and every
    # 70,000 all that was ever imported. Not much more rarely: a call that was broken off is a cycle with its request,
    # and with 20,000 an attacker's took 330 MiB instead of 100.
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work) or 0


def _loop_factory() -> Any:
    try:
        import uvloop  # noqa: PLC0415 - not there on Windows
    except ImportError:
        return None
    return uvloop.new_event_loop


def start_log(level: str, name: str = "") -> None:
    """Log to standard error from `level` on; `name` tells this process from others that write there."""
    line = f"%(asctime)s %(levelname)s {name and name + ' '}%(name)s %(message)s"
    logging.basicConfig(level=level, stream=sys.stderr, format=line)
    if level != "DEBUG":
        logging.getLogger("alembic").setLevel(logging.WARNING)


def stop_signal() -> asyncio.Event:
    """An event that is set by SIGTERM or Ctrl-C; a second one ends the process at once."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        stopped.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    return stopped
