"""A server in a process of its own, for clients of both kinds: its methods block, and need no event loop."""

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.ports import free_port
from tests.processes.harness import LISTENS, Program, Programs, running_programs
from tests.processes.killable import arm

T = TypeVar("T")
KILLABLE = "tests.processes.killable"


class Shop:
    """A server on SQLite at a fixed `address`, which keeps its carts through restarts."""

    def __init__(self, programs: Programs, settings: Mapping[str, str]) -> None:
        self._programs = programs
        self._server: Program | None = None
        self.address = f"127.0.0.1:{free_port()}"
        self._settings = {
            "listen": self.address,
            "database_url": "sqlite:///cart.db",
            "reservation_poll_interval": "0.05",
            "shutdown_grace": "0.5",
            **settings,
        }

    def start(self) -> None:
        """Start the server. Returns when it listens."""
        self._server = self._programs.start("serve", **self._settings)
        _wait(self._server.says(LISTENS))

    def stop(self, by: signal.Signals = signal.SIGTERM) -> None:
        """End the server. Returns when it has ended."""
        assert self._server is not None
        self._server.send(by)
        _wait(self._server.ended(20))

    def die_before_next_reply(self) -> None:
        """Let the server commit its next change, and die before it replies. It must be KILLABLE."""
        arm(self._programs.folder, "reply unsent")

    def start_when_dead(self) -> None:
        """Wait until the server has died. Start it again."""
        assert self._server is not None
        assert _wait(self._server.ended(20)) == -signal.SIGKILL
        self.start()


@contextmanager
def running_shop(folder: Path, module: str = "cart_grpc.cli.program", **settings: str) -> Iterator[Shop]:
    """Yield a running shop, with a Reservation API unless it is in the settings. The processes end with the block."""
    with running_programs(folder) as programs:
        programs.module = module
        if "reservation_url" not in settings:
            simulated = _wait(programs.simulate("--seed", "1", "--latency", "20ms", "--stock", "rare=3"))
            settings["reservation_url"] = simulated.url
        shop = Shop(programs, settings)
        shop.start()
        yield shop


@contextmanager
def meanwhile(*work: Callable[[], object]) -> Iterator[None]:
    """Call the functions in order, in a thread, during the block. An error of theirs is raised at its end."""
    with ThreadPoolExecutor(1) as thread:
        running = [thread.submit(one) for one in work]
        yield
        for one in running:
            one.result(60)


def _wait(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, which runs in an event loop of its own, in a thread."""
    result: list[T] = []
    thread = threading.Thread(target=lambda: result.append(asyncio.run(work)))
    thread.start()
    thread.join()
    (value,) = result
    return value
