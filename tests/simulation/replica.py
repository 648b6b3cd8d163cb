"""One process of the service: the real servicer, store, reconciler and sweeper in a simulated environment."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from cartgrpc.v1 import cart_service_pb2
from google.protobuf.message import Message

from cart_grpc.background.clock_watcher import ClockWatcher
from cart_grpc.background.config import ReconcilerConfig
from cart_grpc.background.reconciler import Reconciler
from cart_grpc.background.sweeper import Retention, Sweeper
from cart_grpc.carts.calls import Limits
from cart_grpc.commands.checkout import EndCheckout
from cart_grpc.commands.direct import Pause, Resume
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.rpc.cart_service import CartService
from cart_grpc.store.store import Store
from cart_grpc.units import to_us
from tests.simulation.api import SimulatedApi
from tests.simulation.database import Database, SimulatedEngine
from tests.simulation.loop import Process, VirtualLoop
from tests.simulation.network import Network
from tests.simulation.reading import CheckedReads


class _Context:
    """The part of grpc.aio.ServicerContext that servicers use."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def time_remaining(self) -> float:
        return self._deadline - asyncio.get_running_loop().time()


class _LoggedReconciler(Reconciler):
    """The real reconciler. It logs the claims that it gets from other transactions than its own claims."""

    log_event: Callable[..., None]
    report_violation: Callable[[str], None]

    def take(self, claimed: Sequence[Reservation]) -> None:
        self.log_event("born claimed", *(one.reservation_id for one in claimed))
        super().take(claimed)
        for lane in self._lanes.values():
            if len(lane.open) > self._config.max_in_flight:
                self.report_violation(f"{len(lane.open)} claims in the lane {lane.name}")


class SimulatedReplica:
    """A replica from its start to its kill or stop. `clock_rate` is the speed of its monotonic clock, `max_batch`
    the most entries of its batch calls."""

    def __init__(
        self,
        loop: VirtualLoop,
        name: str,
        database: Database,
        network: Network,
        *,
        limits: Limits,
        config: ReconcilerConfig,
        retention: Retention,
        sweep_interval_us: int,
        new_id: Callable[[], str],
        clock_rate: float,
        max_batch: int,
        log_event: Callable[..., None],
        report_violation: Callable[[str], None],
    ) -> None:

        def monotonic() -> int:
            return to_us(loop.time() * clock_rate)

        self.name = name
        self.process = Process(loop, name)
        self.serving = False
        self.stopping = False
        self._database = database
        engine = SimulatedEngine(database, self.process)
        self._store = Store(engine, new_id, queue_size=1_000)
        for shard, reads in zip(engine.shards, self._store.reads.carts, strict=True):
            CheckedReads(reads, engine, shard.schema, lambda: self.knows_time(database.now())).install()
        self._service = CartService(self._store, limits)
        api = SimulatedApi(network, self.process, max_batch)
        self._clock_watcher = ClockWatcher(self._store.clock(monotonic, config.longest_attempt_us))
        self._reconciler = _LoggedReconciler(self._store, api, config, monotonic, self._clock_watcher.run_once)
        self._reconciler.log_event, self._reconciler.report_violation = log_event, report_violation
        self._sweeper = Sweeper(self._store, retention, sweep_interval_us)
        self._tasks: list[asyncio.Task[Any]] = []
        self.process.start(self._run())

    async def _run(self) -> None:
        while True:
            try:
                await self._store.start()
                await self._clock_watcher.run_once()
                break
            except Exception:  # noqa: BLE001 - an orchestrator also restarts until the database answers
                await asyncio.sleep(1)
        loops = (self._reconciler, self._sweeper, self._clock_watcher)
        self._tasks = [asyncio.create_task(loop.run()) for loop in loops]
        self._database.started.add(self.name)
        self.serving = True

    def call(self, method: str, request: Message, deadline: float) -> "asyncio.Task[Any]":
        """Run the servicer's method as a task of this process."""
        return self.process.start(self._call(method, request, deadline))

    async def _call(self, method: str, request: Message, deadline: float) -> Message:
        answer: Message | bytes = await getattr(self._service, method)(request, _Context(deadline))
        if isinstance(answer, bytes):
            response: type[Message] = getattr(cart_service_pb2, f"{method}Response")
            return response.FromString(answer)
        return answer

    def intervene(self, command: Pause | Resume) -> "asyncio.Task[None]":
        """Run an operator's command as a task of this process."""
        return self.process.start(self._store.pause(command))

    def intervene_in(self, command: EndCheckout) -> "asyncio.Task[Any]":
        """Run an operator's command about a checkout as a task of this process."""
        return self.process.start(self._store.intervene(command))

    async def stop(self) -> None:
        """Stop gracefully, in the order of `app`."""
        self.serving, self.stopping = False, True
        self._store.notifier.close()
        if self._tasks:
            for task in self._tasks[1:]:
                task.cancel()
            await self._reconciler.stop(to_us(1))
            await self._store.close()
        self.process.kill()

    def knows_time(self, now: int) -> bool:
        """Whether the last time that this process read is about `now`."""
        last = self._clock_watcher._last[0]
        return last is not None and abs(last.now - now) < to_us(60)

    @property
    def alive(self) -> bool:
        return not self.process.dead
