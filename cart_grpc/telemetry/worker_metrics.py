"""The metrics of several workers as those of one process: each writes its values into files, and a scrape adds them."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from cart_grpc.startup import StartupError

FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"


class WorkerMetrics:
    """The metrics of the workers that write into `folder`, in one registry."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._pids: dict[str, int] = {}
        self.registry = CollectorRegistry()
        MultiProcessCollector(self.registry, path=folder)  # type: ignore[no-untyped-call]
        PlatformCollector(self.registry)
        self.registry.register(_WorkerProcesses(lambda: dict(self._pids)))

    def note_start(self, worker: str, pid: int) -> None:
        """Note that a process fills the place `worker` from now on."""
        self._pids[worker] = pid

    def note_end(self, worker: str) -> None:
        """Forget the gauges of a process that has ended. Its counters remain, and the next process continues them."""
        self._pids.pop(worker, None)
        mark_process_dead(worker, self._folder)  # type: ignore[no-untyped-call]


@contextmanager
def collecting() -> Iterator[WorkerMetrics]:
    """Let the processes that start inside the block write their metrics into a new folder. Raises StartupError."""
    try:
        made = tempfile.TemporaryDirectory(prefix="cart-grpc-metrics-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StartupError(f"TMPDIR: metrics with --workers need a temporary folder: {error.strerror}") from None
    before = os.environ.get(FOLDER_VARIABLE)
    with made as folder:
        os.environ[FOLDER_VARIABLE] = folder
        try:
            yield WorkerMetrics(folder)
        finally:
            os.environ.pop(FOLDER_VARIABLE)
            if before is not None:
                os.environ[FOLDER_VARIABLE] = before


class _WorkerProcesses(Collector):
    """CPU, memory and files of each worker, with its name as the label `worker`."""

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        self._pids = pids

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for worker, pid in self._pids().items():
            for found in _collect_process(pid):
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                for sample in found.samples:
                    family.add_sample(sample.name, {"worker": worker}, sample.value)
        return families.values()


def _collect_process(pid: int) -> Iterable[Metric]:
    return ProcessCollector(pid=lambda: pid, registry=None).collect()
