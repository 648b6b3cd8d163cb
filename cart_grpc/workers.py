"""`serve --workers N`: worker processes that share the ports, and the parent that starts, replaces and stops them.

The kernel distributes connections, not calls, among the processes that listen with SO_REUSEPORT. Each worker is a
replica that shares nothing but the ports: the parent serves nothing, and no worker knows another. A worker drains on
SIGTERM, and when its parent is gone.
"""

import asyncio
import multiprocessing
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Final

from cart_grpc import app, process
from cart_grpc.addresses import cannot_listen
from cart_grpc.app import Ports, Sharing
from cart_grpc.exposure import SHARED, Port, find_ports
from cart_grpc.logs import events, output
from cart_grpc.logs.log import Log
from cart_grpc.settings import Settings, variable_of
from cart_grpc.startup import StartupError
from cart_grpc.telemetry.publishing import measures, publishing
from cart_grpc.telemetry.worker_metrics import WorkerMetrics, collecting

log = Log(__name__)
# Not fork: the child would inherit gRPC's locks in whatever state they are.
_SPAWN: Final = multiprocessing.get_context("spawn")
_MIN_RESTART_SECONDS = 0.5
_MAX_RESTART_SECONDS = 30.0


async def serve(
    settings: Settings, count: int, stopped: asyncio.Event, *, reconcile: bool, started: Callable[[Ports], None]
) -> None:
    """Serve with `count` workers until `stopped` is set and they have drained.

    Calls `started` with the ports once every worker has reported. Raises StartupError if no worker can listen, if
    another program has a port, or if the settings do not go together.
    """
    with ExitStack() as stack:
        addresses = {}
        for port in find_ports(settings, serve=True):
            if port.setting in SHARED:
                reserved = stack.enter_context(_reserve(port))
                addresses[port.setting] = f"{port.address.rpartition(':')[0]}:{reserved.getsockname()[1]}"
        metrics, metrics_port = None, 0
        if measures(settings):
            metrics = stack.enter_context(collecting())
            metrics_port = stack.enter_context(publishing(settings, metrics.registry))
        shared = settings.with_changes(**addresses)
        workers = [_Worker(number, shared, reconcile, stopped, metrics) for number in range(count)]
        stopping = asyncio.create_task(_stop(workers, stopped), name="stop-workers")
        reports = await asyncio.gather(*(worker.report() for worker in workers))
        ports = [report for report in reports if isinstance(report, Ports)]
        if ports:
            started(replace(max(ports, key=lambda each: each.admin_port), metrics_port=metrics_port))
        elif not stopped.is_set():
            stopping.cancel()
            raise StartupError(reports[0])
        await asyncio.gather(*(worker.keep() for worker in workers), stopping)


def _reserve(port: Port) -> socket.socket:
    """Return a socket that is bound to the port's address but does not listen. Port 0 means any free port.

    While it is bound, only processes of the same user can share the port. Raises StartupError.
    """
    host, _, number = port.address.rpartition(":")
    setting = variable_of(port.setting)
    try:
        family, *_, where = socket.getaddrinfo(host.strip("[]"), int(number), type=socket.SOCK_STREAM)[0]
        reserved = socket.socket(family)
    except OSError as error:
        raise StartupError(f"{setting}: cannot listen on {port.address}: {error.strerror}") from None
    try:
        # Connections of an earlier process in TIME_WAIT must not block the address.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(where)
    except OSError:
        reserved.close()
        raise StartupError(f"{setting}: {cannot_listen(port.address)}") from None
    # SO_REUSEPORT after bind: bind fails if another program has the port, and later only workers can share it.
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return reserved


async def _stop(workers: "list[_Worker]", stopped: asyncio.Event) -> None:
    await stopped.wait()
    for worker in workers:
        worker.stop()


class _Worker:
    """One of the N places, and the process that fills it now."""

    def __init__(
        self,
        number: int,
        settings: Settings,
        reconcile: bool,  # noqa: FBT001 - passed on
        stopped: asyncio.Event,
        metrics: WorkerMetrics | None,
    ) -> None:
        self._name = f"worker-{number + 1}"
        self._is_first = number == 0
        self._settings = settings
        self._reconcile = reconcile
        self._stopped = stopped
        self._metrics = metrics
        self._process, self._reports = self._start()

    def _start(self) -> tuple[SpawnProcess, Connection]:
        reports, reporter = _SPAWN.Pipe(duplex=False)
        work = (self._settings, self._reconcile, self._is_first, reporter, self._name)
        # A daemon process is terminated if an error ends the parent.
        started = _SPAWN.Process(target=_work, args=work, name=self._name, daemon=True)
        # The process inherits the mask: a terminal sends Ctrl-C to all processes, and only the parent may react, also
        # while the others still start. Starting the resource tracker would reset the mask.
        resource_tracker.ensure_running()
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            started.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        reporter.close()
        log(events.WORKER_STARTED, "%s is process %d", self._name, started.pid, worker=self._name, pid=started.pid)
        if self._metrics and started.pid:
            self._metrics.note_start(self._name, started.pid)
        return started, reports

    async def report(self) -> Ports | str:
        """Return the ports once the process listens, or the reason why it cannot."""
        await _readable(self._reports.fileno())
        with self._reports:
            try:
                report: Ports | str = self._reports.recv()
            except EOFError:
                report = f"{self._name} ended before it listened on a port"
        return report

    async def keep(self) -> None:
        """Restart the process whenever it ends. Returns once `stopped` is set and the process has ended."""
        pause = _MIN_RESTART_SECONDS
        while True:
            began = time.monotonic()
            await _readable(self._process.sentinel)
            self._process.join()
            if self._metrics:
                self._metrics.note_end(self._name)
            if self._stopped.is_set():
                return
            if time.monotonic() - began > _MAX_RESTART_SECONDS:
                pause = _MIN_RESTART_SECONDS
            status = self._process.exitcode
            text = "%s ended with status %s; restarting it in %g s"
            log(events.WORKER_ENDED, text, self._name, status, pause, worker=self._name, status=status)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), pause)
            if self._stopped.is_set():
                return
            pause = min(2 * pause, _MAX_RESTART_SECONDS)
            self._process, self._reports = self._start()
            report = await self.report()
            if isinstance(report, str) and not self._stopped.is_set():
                log(events.WORKER_UNUSABLE, "%s cannot start: %s", self._name, report, worker=self._name)

    def stop(self) -> None:
        """Tell the process to drain and end."""
        self._process.terminate()


async def _readable(descriptor: int) -> None:
    """Return once `descriptor` is readable or its other end is closed."""
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


def _work(settings: Settings, reconcile: bool, is_first: bool, reporter: Connection, name: str) -> None:  # noqa: FBT001 - a target takes positions
    """The worker process. Sends its Ports, or the reason why it cannot start, to `reporter`."""
    output.start(settings.log_level, settings.log_format, name)

    async def work() -> None:
        stopped = _worker_stop_signal()
        sharing: Sharing = "first" if is_first else "other"
        async with app.running(settings, serve=True, reconcile=reconcile, sharing=sharing, stopped=stopped) as ports:
            if not stopped.is_set():
                _report(reporter, ports)
            await stopped.wait()
            log(events.STOPPING, "stopping")
        log(events.STOPPED, "stopped")

    try:
        process.run(work())
    except StartupError as error:
        _report(reporter, str(error))
        sys.exit(2)


def _report(reporter: Connection, report: Ports | str) -> None:
    # If the parent is gone, the stop signal takes care of it.
    with reporter, suppress(BrokenPipeError):
        reporter.send(report)


def _worker_stop_signal() -> asyncio.Event:
    """Return an event that SIGTERM or the end of the parent sets.

    If the parent ends after SIGTERM, this process ends at once. A second SIGTERM does not end it: a supervisor may
    signal every process, and the parent passes its signal on. Nor does Ctrl-C, which a terminal sends to all processes.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 - _work runs in a child
    sentinel = parent.sentinel

    def orphaned() -> None:
        if stopped.is_set():
            signal.raise_signal(signal.SIGKILL)
        loop.remove_reader(sentinel)
        log(events.PARENT_GONE, "the parent process is gone")
        stopped.set()

    loop.add_reader(sentinel, orphaned)
    return stopped
