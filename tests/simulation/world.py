"""One run: a seed in, a report out; the same report every time."""

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
from cart.v1 import cart_service_pb2
from google.protobuf.message import Message

from cart_grpc.carts.refusals import Refused, RequestIdReused, Unavailable
from cart_grpc.reservations.simulator.stock import Decided, Entry, Stock
from cart_grpc.store import group_commit
from tests.simulation import operations, plan
from tests.simulation.checks import Checks, etag_of
from tests.simulation.database import EPOCH, Database, DatabaseFaults, template
from tests.simulation.loop import VirtualLoop
from tests.simulation.network import Network, NetworkFaults
from tests.simulation.operations import Operation
from tests.simulation.replica import Replica


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


class World:
    def __init__(self, seed: int, loop: VirtualLoop) -> None:
        self.loop = loop
        self.numbers = random.Random(f"{seed} world")
        self.plan = plan.draw(random.Random(f"{seed} plan"))
        self.trace: list[tuple[Any, ...]] = []
        self.violations: list[str] = []
        self._id = 0
        self.database = Database(loop, self.plan.database, random.Random(f"{seed} database"), self._after_commit)
        self.stock = Stock(self.plan.stock, default_total=None, log=self._decided)
        self.checks = Checks(
            self.database.raw, self.plan.stock, self.violate, self.database.now, self.plan.reasons_to_refuse
        )
        self.network = Network(
            loop,
            self.stock,
            self.plan.network,
            random.Random(f"{seed} network"),
            self.api_now,
            told=self.tell,
            sent=self.checks.sent,
            violated=self.violate,
        )
        self.replicas: list[Replica] = []
        self.graveyard: list[Replica] = []
        self.operations: list[Operation] = []
        self.etags: dict[str, str] = {}
        self.healing = False
        self._starts = 0

    # What happens, told.

    def tell(self, *event: Any) -> None:
        self.trace.append((round(self.loop.time(), 6), *event))

    def violate(self, what: str) -> None:
        self.violations.append(f"at {self.loop.time():.3f} s: {what}")
        self.trace.append((round(self.loop.time(), 6), "VIOLATION", what))

    def api_now(self) -> int:
        return EPOCH + int(self.loop.time() * 1_000_000)

    def new_id(self) -> str:
        self._id += 1
        return f"00000000-0000-7000-8000-{self._id:012x}"

    def _decided(self, entry: Entry) -> None:
        if isinstance(entry, Decided):
            record = entry.record
            self.tell("effect", record.intent.reservation_id, record.intent.revision, record.state.name, record.granted)
            self.checks.decided(record, entry.time)

    def _after_commit(self, process_name: str) -> None:
        for row in self.checks.committed(process_name):
            self.tell("row", *row)
        self.database.next_due = self.checks.next_due

    # Replicas.

    def start_replica(self, index: int) -> Replica:
        self._starts += 1
        name = f"replica-{index}.{self._starts}"
        self.tell("start", name)
        replica = Replica(
            self.loop,
            name,
            self.database,
            self.network,
            terms=self.plan.terms,
            config=self.plan.config,
            retention=self.plan.retention,
            housekeeping_interval=self.plan.housekeeping_interval,
            new_id=self.new_id,
            clock_rate=self.plan.clock_rates[index],
        )
        self.graveyard.append(replica)
        return replica

    # Callers.

    async def attempt(self, operation: Operation, replica: Replica, patience: float) -> bool:
        """One attempt. Returns whether it is known now how the operation ended."""
        operation.attempts += 1
        if not replica.alive or not replica.serving:
            return False
        self.tell("call", operation.number, operation.method, replica.name, operation.attempts)
        call = replica.call(operation.method, operation.request, self.loop.time() + patience)
        await replica.process.outcome(call, patience)
        if not call.done() or call.cancelled():
            if not replica.process.dead:
                call.cancel()
            self.tell("unheard", operation.number)
            return False
        return self._heard(operation, call)

    def _heard(self, operation: Operation, call: "asyncio.Task[Message]") -> bool:
        error = call.exception()
        if error is None:
            reply = call.result()
            self.tell("ok", operation.number)
            self._take_reply(operation, reply)
            return True
        self.tell("failed", operation.number, type(error).__name__)
        if isinstance(error, Unavailable):
            return False
        if not isinstance(error, Refused):
            self.violate(f"{operation.method} ended with a bug: {error!r}")
        operation.refused = type(error).__name__
        operation.returned = self.loop.time()
        return True

    def _take_reply(self, operation: Operation, reply: Message) -> None:
        if not operation.request.HasField("max_wait"):
            operation.replies.add(reply.SerializeToString(deterministic=True))
        if len(operation.replies) > 1:
            self.violate(f"operation {operation.number} {operation.method} was answered differently when repeated")
        if operation.reply is None:
            operation.reply = reply
            operation.returned = self.loop.time()
            self.etags[operation.cart] = etag_of(reply)

    def choose(self) -> Replica:
        return self.numbers.choice(self.replicas)

    async def caller(self, count: int) -> None:
        """One caller: operation after operation, each tried a few times, on whichever replica."""
        for _ in range(count):
            await asyncio.sleep(self.numbers.expovariate(count / self.plan.duration))
            if self.numbers.random() < 0.15:
                await self.look()
            operation = operations.draw(self.numbers, len(self.operations), self.plan.carts, self.plan.skus, self.etags)
            self.operations.append(operation)
            operation.invoked = self.loop.time()
            for _ in range(self.numbers.choice([1, 2, 4]) if operation.request_id else 1):
                patience = self.numbers.random() ** 3 if self.numbers.random() < self.plan.give_up else 30.0
                if await self.attempt(operation, self.choose(), patience):
                    break
                await asyncio.sleep(self.numbers.random())
            if operation.reply is not None and operation.request_id and self.numbers.random() < 0.2:
                await self.attempt(operation, self.choose(), 30.0)
                await self.misuse(operation)

    async def misuse(self, operation: Operation) -> None:
        """A request_id with another body is refused, whoever is asked."""
        replica = self.choose()
        if replica.serving and replica.alive:
            other: Any = type(operation.request)()
            other.CopyFrom(operation.request)
            other.etag = "" if other.etag else '"7fff"'
            call = replica.call(operation.method, other, self.loop.time() + 10)
            await replica.process.outcome(call, 10)
            if call.done() and not call.cancelled() and not isinstance(call.exception(), RequestIdReused | Unavailable):
                self.violate(f"{operation.request_id} was used for another body: {call}")

    async def look(self) -> None:
        """Read a cart, and check at once that what it says is held is held."""
        cart = self.numbers.choice(self.plan.carts)
        replica = self.choose()
        if replica.alive and replica.serving:
            known = self.checks.highest_acknowledged(self.operations, cart)
            call = replica.call("GetCart", cart_service_pb2.GetCartRequest(name=cart), self.loop.time() + 10)
            await replica.process.outcome(call, 10)
            if call.done() and not call.cancelled() and call.exception() is None:
                self.checks.read(cart, call.result().cart, known)

    # What goes wrong.

    async def nemesis(self, kind: str, per_minute: float) -> None:
        """One kind of trouble, again and again, until things heal."""
        numbers = random.Random(f"{self.numbers.random()} {kind}")
        while True:
            await asyncio.sleep(numbers.expovariate(per_minute / 60))
            if self.healing:
                return
            index = numbers.randrange(self.plan.replicas)
            self.tell("nemesis", kind, index)
            await self._strike(kind, index, numbers)

    async def _strike(self, kind: str, index: int, numbers: random.Random) -> None:
        replica = self.replicas[index]
        lasting = numbers.choice([1.0, 10.0, 45.0]) * numbers.random()
        match kind:
            case "kill":
                replica.process.kill()
                await asyncio.sleep(lasting)
                self._replace(index)
            case "stop":
                if replica.alive and not replica.process.paused:
                    stopping = replica.process.start(replica.stop())
                    await replica.process.outcome(stopping, 30)
                    replica.process.kill()
                    self._replace(index)
            case "pause":
                replica.process.pause()
                await asyncio.sleep(lasting)
                replica.process.resume()
            case "cut api":
                self.network.cut(replica.name)
                await asyncio.sleep(lasting)
                self.network.mend(replica.name)
            case "cut database":
                self.database.cut(replica.name)
                await asyncio.sleep(lasting)
                self.database.mend(replica.name)
            case "api down":
                self.network.is_down = True
                await asyncio.sleep(lasting * numbers.choice([1, 1, 1, 20]))
                self.network.is_down = False
            case "jump":
                # Less than the margin by which a hold is shown as over before it is.
                self.database.skew = int(numbers.uniform(-1, 1) * 1_500_000)

    def _replace(self, index: int) -> None:
        if not self.replicas[index].alive:
            self.replicas[index] = self.start_replica(index)

    # The run.

    async def run(self) -> float:
        self.replicas = [self.start_replica(index) for index in range(self.plan.replicas)]
        await asyncio.sleep(0.1)
        troubles = [asyncio.create_task(self.nemesis(kind, rate)) for kind, rate in self.plan.rates.items()]
        share = self.plan.operations // self.plan.callers
        await asyncio.gather(*(self.caller(share) for _ in range(self.plan.callers)))
        await self.heal(troubles)
        healed_at = self.loop.time()
        await self.resolve()
        await self.converge(healed_at)
        converged_after = self.loop.time() - healed_at
        self.checks.settled(self.stock, self.api_now())
        await self.after_late_messages()
        self.checks.histories(self.operations)
        for operation in self.operations:
            if operation.reply is not None and operation.request_id:
                await self.attempt(operation, self.choose(), 30.0)
        self.check_calls()
        return converged_after

    def check_calls(self) -> None:
        """In fair weather each revision is one call."""
        revisions = self.checks.revision_count
        if self.plan.healthy and self.network.call_count > 1.05 * revisions + 1:
            self.violate(f"{self.network.call_count} calls for {revisions} revisions")

    async def heal(self, troubles: list["asyncio.Task[None]"]) -> None:
        self.tell("heal")
        self.healing = True
        await asyncio.wait(troubles, timeout=1) if troubles else None
        for trouble in troubles:
            trouble.cancel()
        await asyncio.gather(*troubles, return_exceptions=True)
        self.network.is_down = False
        self.network.faults = NetworkFaults(latency=0.5)
        self.database.faults = DatabaseFaults()
        for index, replica in enumerate(self.replicas):
            self.network.mend(replica.name)
            self.database.mend(replica.name)
            replica.process.resume()
            if replica.stopping:
                replica.process.kill()
            if not replica.alive:
                self.replicas[index] = self.start_replica(index)

    async def resolve(self) -> None:
        """Every operation whose end is unknown is repeated until it is known."""
        await asyncio.sleep(2)
        for operation in self.operations:
            while operation.request_id and not operation.resolved:
                if not await self.attempt(operation, self.choose(), 30.0):
                    await asyncio.sleep(0.5)

    async def converge(self, healed_at: float) -> None:
        bound = self.bound
        while unsettled := self.checks.unsettled():
            if self.loop.time() - healed_at > bound:
                self.violate(f"not settled {bound:.0f} s after everything had healed: {unsettled}")
                return
            await asyncio.sleep(1)

    @property
    def bound(self) -> float:
        """How long convergence may take: an old call's deadline, a back-off, a lease and a Retry-After, twice where an
        old reservation goes before a new one, and a little for the rest.
        """
        config, network = self.plan.config, self.plan.network
        waits = config.call_timeout + config.backoff_max + config.lease + config.probe_interval
        return 2 * (waits + (network.retry_after if network.throttled else 0)) + 30

    async def after_late_messages(self) -> None:
        """Whatever is still on its way arrives, and changes nothing that matters."""
        await asyncio.sleep(max(0.0, self.network.last_landing - self.loop.time()) + 30)
        self.checks.expired(30_000_000)
        await self.converge(self.loop.time())
        self.checks.settled(self.stock, self.api_now())


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
    replaced.setattr(group_commit, "Statements", lambda *_, **__: template().statements)
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
