"""`serve --workers N`: processes that share one port, and the one that starts them, replaces them and stops them.

The kernel deals connections, not calls, to those who listen with SO_REUSEPORT. Each worker is a replica of its own in
all but the port: the parent serves nothing, and no worker knows of another. A worker drains when it is told to, and
when its parent is gone.
"""

import asyncio
import logging
import multiprocessing
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Final

from cart_grpc import app, process
from cart_grpc.app import Ports, StartupError
from cart_grpc.settings import Settings

log = logging.getLogger(__name__)
# Not fork: gRPC's threads and locks would be copied in whatever state they are.
_SPAWN: Final = multiprocessing.get_context("spawn")
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0


async def serve(
    settings: Settings, count: int, stopped: asyncio.Event, *, reconcile: bool, started: Callable[[Ports], None]
) -> None:
    """Serve with `count` workers until `stopped`, and until they have drained.

    `started` is told the ports once the workers that can listen do. Raises StartupError where none can, or where the
    port is not ours to share.
    """
    with _reserve(settings.listen) as reserved:
        host, port = settings.listen.rpartition(":")[0], reserved.getsockname()[1]
        shared = settings.with_changes(listen=f"{host}:{port}")
        # One address has room for one operator's server.
        others = shared.with_changes(admin_listen="")
        workers = [_Worker(number, others if number else shared, reconcile, stopped) for number in range(count)]
        stopping = asyncio.create_task(_stop(workers, stopped), name="stop-workers")
        reports = await asyncio.gather(*(worker.report() for worker in workers))
        ports = [report for report in reports if isinstance(report, Ports)]
        if ports:
            started(max(ports, key=lambda each: each.admin_port))
        elif not stopped.is_set():
            stopping.cancel()
            raise StartupError(reports[0])
        await asyncio.gather(*(worker.keep() for worker in workers), stopping)


def _reserve(address: str) -> socket.socket:
    """A socket that has the address without listening on it: only our own user's processes can share it. Port 0: any.

    Raises StartupError.
    """
    host, _, port = address.rpartition(":")
    try:
        family, *_, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        reserved = socket.socket(family)
    except OSError as error:
        raise StartupError(f"CART_LISTEN: cannot listen on {address}: {error.strerror}") from None
    try:
        # What lingers of earlier connections does not count.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(where)
    except OSError:
        reserved.close()
        raise StartupError(
            f"CART_LISTEN: cannot listen on {address}: it is taken, or not an address of this machine"
        ) from None
    # In this order: whoever has the port already refuses it to us, and we to whoever comes later and is not a worker.
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return reserved


async def _stop(workers: "list[_Worker]", stopped: asyncio.Event) -> None:
    await stopped.wait()
    for worker in workers:
        worker.stop()


class _Worker:
    """One place among the workers, and the process that has it."""

    def __init__(self, number: int, settings: Settings, reconcile: bool, stopped: asyncio.Event) -> None:  # noqa: FBT001 - passed on
        self._name = f"worker-{number + 1}"
        self._settings = settings
        self._reconcile = reconcile
        self._stopped = stopped
        self._process, self._reports = self._start()

    def _start(self) -> tuple[SpawnProcess, Connection]:
        reports, reporter = _SPAWN.Pipe(duplex=False)
        work = (self._settings, self._reconcile, reporter, self._name)
        # A daemon is ended with us, should an error of our own end us.
        started = _SPAWN.Process(target=_work, args=work, name=self._name, daemon=True)
        started.start()
        reporter.close()
        log.info("%s is process %d", self._name, started.pid)
        return started, reports

    async def report(self) -> Ports | str:
        """Where the process listens, as soon as it does; or why it cannot."""
        await _readable(self._reports.fileno())
        with self._reports:
            try:
                report: Ports | str = self._reports.recv()
            except EOFError:
                report = f"{self._name} ended before it listened"
        return report

    async def keep(self) -> None:
        """Replace the process whenever it ends, until all are stopped, and return once it has ended then."""
        pause = _FIRST_PAUSE
        while True:
            began = time.monotonic()
            await _readable(self._process.sentinel)
            self._process.join()
            if self._stopped.is_set():
                return
            if time.monotonic() - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            status = self._process.exitcode
            log.error("%s ended with status %s; another one is started in %g s", self._name, status, pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), pause)
            if self._stopped.is_set():
                return
            pause = min(2 * pause, _LONGEST_PAUSE)
            self._process, self._reports = self._start()
            report = await self.report()
            if isinstance(report, str) and not self._stopped.is_set():
                log.error("%s cannot start: %s", self._name, report)

    def stop(self) -> None:
        """Ask the process to drain and end."""
        self._process.terminate()


async def _readable(descriptor: int) -> None:
    """Return once `descriptor` has something to read, or its other end is gone."""
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


def _work(settings: Settings, reconcile: bool, reporter: Connection, name: str) -> None:  # noqa: FBT001 - a target takes positions
    """A worker's life. Reports its Ports, or why it cannot start."""
    process.start_log(settings.log_level, name)

    async def work() -> None:
        stopped = _worker_stop_signal()
        async with app.running(settings, serve=True, reconcile=reconcile, shares_port=True) as ports:
            _report(reporter, ports)
            await stopped.wait()
            log.info("stopping: calls under way may go on for %g s", settings.shutdown_grace)
        log.info("stopped")

    try:
        process.run(work())
    except StartupError as error:
        _report(reporter, str(error))
        sys.exit(2)


def _report(reporter: Connection, report: Ports | str) -> None:
    # A parent that is gone is noticed elsewhere.
    with reporter, suppress(BrokenPipeError):
        reporter.send(report)


def _worker_stop_signal() -> asyncio.Event:
    """An event that is set by SIGTERM, and when the parent is gone; if that goes later, this process ends at once.

    Not by a second SIGTERM: whoever stops us may tell each of us, and the parent passes it on. Nor by Ctrl-C, which a
    terminal sends to all of us, too.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 - _work runs in a child
    sentinel = parent.sentinel

    def orphaned() -> None:
        if stopped.is_set():
            signal.raise_signal(signal.SIGKILL)
        loop.remove_reader(sentinel)
        log.warning("the parent is gone")
        stopped.set()

    loop.add_reader(sentinel, orphaned)
    return stopped
