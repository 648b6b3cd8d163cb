"""One seed in, one report out; the same report every time."""

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

from cart_grpc.store import write_queue
from tests.simulation.database import template
from tests.simulation.loop import VirtualLoop
from tests.simulation.world import World


@dataclass(frozen=True, slots=True)
class Report:
    """What a run came to. `trace` has every event; `digest` tells two traces apart."""

    seed: int
    violations: list[str]
    virtual_seconds: float
    commits: int
    calls: int
    digest: str
    trace: list[tuple[Any, ...]]
    converged_after: float


def run(seed: int) -> Report:
    """Run one seed."""
    loop = VirtualLoop()
    world = World(seed, loop)
    with _deterministic(seed, loop, world.violate):
        try:
            converged_after = loop.run_until_complete(world.run())
        except Exception as error:  # noqa: BLE001 - a seed that cannot be run is a failed seed
            world.violate(f"the run itself failed: {error!r}")
            converged_after = -1.0
        for replica in world.graveyard:
            for unheard in replica.process.unheard_errors():
                world.violate(f"{replica.name} failed in the background: {unheard!r}")
        virtual_seconds = loop.time()
        trace, violations = list(world.trace), list(world.violations)
        _bury(loop, world)
        loop.close()
    digest = hashlib.sha256(repr(trace).encode()).hexdigest()
    return Report(
        seed,
        violations,
        virtual_seconds,
        world.database.commit_count,
        world.network.call_count,
        digest,
        trace,
        converged_after,
    )


def _bury(loop: VirtualLoop, world: World) -> None:
    world.database.is_closed = world.network.is_closed = True
    loop.callback_count = 0
    for replica in world.graveyard:
        replica.process.bury()
    for _ in range(50):
        left = [task for task in asyncio.all_tasks(loop) if not task.done()]
        if not left:
            return
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.sleep(1))


class _Alarms(logging.Handler):
    """Whatever the product logs as an error."""

    def __init__(self, violate: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self._violate = violate

    def emit(self, record: logging.LogRecord) -> None:
        if "refuses to release" not in record.getMessage():
            error = record.exc_info[1] if record.exc_info else None
            self._violate(f"logged: {record.getMessage()} {error!r}")


@contextmanager
def _deterministic(seed: int, loop: VirtualLoop, violate: Callable[[str], None]) -> Iterator[None]:
    """Everything that would differ from run to run, replaced; and what the product logs as an error, heard."""
    random.seed(f"{seed} product")
    loop.set_exception_handler(lambda _, context: violate(f"in the loop: {context}"))
    replaced = pytest.MonkeyPatch()
    replaced.setattr(tenacity, "time", SimpleNamespace(monotonic=loop.time))
    replaced.setattr(write_queue, "WriteQueries", lambda *_, **__: template().queries)
    log = logging.getLogger("cart_grpc")
    level, alarms = log.level, _Alarms(violate)
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
