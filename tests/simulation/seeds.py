"""Run one seed and report. The same seed always gives the same report."""

import asyncio
import gc
import hashlib
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import tenacity

from cart_grpc.background import batch_support
from cart_grpc.store import write_queue
from cart_grpc.units import to_us
from tests.simulation.loop import VirtualLoop
from tests.simulation.simulation import Simulation
from tests.simulation.template import template


@dataclass(frozen=True, slots=True)
class SeedReport:
    """The result of a run. `trace` has every event; `digest` is the SHA-256 of the trace. Times are in seconds."""

    seed: int
    violations: list[str]
    virtual_seconds: float
    commits: int
    calls: int
    digest: str
    trace: list[tuple[Any, ...]]
    converged_after: float


def run(seed: int, *, until_violation: bool = False) -> SeedReport:
    """Run the simulation of `seed` to its end. `until_violation`: only until the first broken invariant."""
    loop = VirtualLoop()
    simulation = Simulation(seed, loop)
    with _deterministic(seed, loop, simulation.report_violation):
        running = loop.create_task(simulation.run())
        if until_violation:
            simulation.after_violation = running.cancel
        converged_after = -1.0
        try:
            converged_after = loop.run_until_complete(running)
        except asyncio.CancelledError:
            assert until_violation
        except Exception as error:  # noqa: BLE001 - an exception fails the seed
            simulation.report_violation(f"the run itself failed: {error!r}")
        for replica in (*simulation.retired, *simulation.replicas):
            for unhandled in replica.process.unhandled_errors():
                simulation.report_violation(f"{replica.name} failed in the background: {unhandled!r}")
        virtual_seconds = loop.time()
        trace, violations = list(simulation.trace), list(simulation.violations)
        _finish_tasks(loop, simulation)
        loop.close()
    digest = hashlib.sha256(repr(trace).encode()).hexdigest()
    return SeedReport(
        seed,
        violations,
        virtual_seconds,
        simulation.database.commit_count,
        simulation.network.call_count,
        digest,
        trace,
        converged_after,
    )


def _finish_tasks(loop: VirtualLoop, simulation: Simulation) -> None:
    simulation.database.is_closed = simulation.network.is_closed = True
    loop.callback_count = 0
    for replica in (*simulation.retired, *simulation.replicas):
        replica.process.finish_tasks()
    for _ in range(50):
        left = [task for task in asyncio.all_tasks(loop) if not task.done()]
        if not left:
            return
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.sleep(1))


# The errors that faults cause: a refused RELEASE or COMMIT, and a checkout that fails.
EXPECTED = ("refuses to release", "refuses to commit", "is FAILED: the Reservation API refused to sell")


class _Alarms(logging.Handler):
    """Turns each error that the product logs into a violation, except those in EXPECTED."""

    def __init__(self, report_violation: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self._report_violation = report_violation

    def emit(self, record: logging.LogRecord) -> None:
        if not any(text in record.getMessage() for text in EXPECTED):
            error = record.exc_info[1] if record.exc_info else None
            self._report_violation(f"logged: {record.getMessage()} {error!r}")


@contextmanager
def _deterministic(seed: int, loop: VirtualLoop, report_violation: Callable[[str], None]) -> Iterator[None]:
    """Replace all sources of non-determinism, and report logged errors as violations."""
    random.seed(f"{seed} product")
    loop.set_exception_handler(lambda _, context: report_violation(f"an exception in the event loop: {context}"))
    replaced = pytest.MonkeyPatch()
    replaced.setattr(tenacity, "time", SimpleNamespace(monotonic=loop.time))
    replaced.setattr(write_queue, "write_queries", lambda *_, **__: template().queries)
    replaced.setattr(write_queue, "spanning_queries", lambda _, count: template().spanning[count])
    # Soon enough for a run to see batches come back.
    replaced.setattr(batch_support, "ASK_AGAIN_US", to_us(20))
    log = logging.getLogger("cart_grpc")
    level, alarms = log.level, _Alarms(report_violation)
    log.addHandler(alarms)
    log.setLevel(logging.ERROR)
    propagates, log.propagate = log.propagate, False
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        log.propagate = propagates
        log.setLevel(level)
        log.removeHandler(alarms)
        replaced.undo()
