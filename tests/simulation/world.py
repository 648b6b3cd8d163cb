"""A run: the replicas, their callers, everything around them, and what goes wrong."""

import asyncio
import random
from typing import Any

from cartgrpc.v1 import cart_service_pb2
from google.protobuf.message import Message

from cart_grpc.carts.refusals import CallRefused, RequestIdReused, Unavailable
from cart_grpc.simulator.stock import Decided, Entry, Stock
from tests.simulation import operations, plan, weather
from tests.simulation.checks import Checks
from tests.simulation.database import EPOCH, Database, DatabaseFaults
from tests.simulation.histories import etag_of
from tests.simulation.loop import VirtualLoop
from tests.simulation.network import Network, NetworkFaults
from tests.simulation.operations import Operation
from tests.simulation.replica import Replica


class World:
    """Everything of one run. `trace` has what happened, `violations` which promises were broken."""

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

    def _after_commit(self, process_name: str, began: int) -> None:
        for row in self.checks.committed(process_name, began):
            self.tell("row", *row)

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
            limits=self.plan.limits,
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
        if not isinstance(error, CallRefused):
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
            other.etag = "" if other.etag else '"00000000-7fff"'
            call = replica.call(operation.method, other, self.loop.time() + 10)
            await replica.process.outcome(call, 10)
            if call.done() and not call.cancelled() and not isinstance(call.exception(), RequestIdReused | Unavailable):
                self.violate(f"{operation.request_id} was used for another body: {call}")

    async def look(self) -> None:
        """Read a cart, maybe again and again, and check at once that what it says is held is held."""
        cart = self.numbers.choice(self.plan.carts)
        replica = self.choose()
        for _ in range(self.numbers.choice([1, 1, 5])):
            await self._read(replica, cart)
            await asyncio.sleep(self.numbers.random() ** 3 * 30)

    async def _read(self, replica: Replica, cart: str) -> None:
        if replica.alive and replica.serving:
            known = self.checks.highest_acknowledged(self.operations, cart)
            call = replica.call("GetCart", cart_service_pb2.GetCartRequest(name=cart), self.loop.time() + 10)
            await replica.process.outcome(call, 10)
            if not call.done() or call.cancelled():
                return
            if (error := call.exception()) is None:
                self.checks.read(cart, call.result().cart, known)
            elif not isinstance(error, CallRefused):
                self.violate(f"a look ended with a bug: {error!r}")

    def replace(self, index: int) -> None:
        if not self.replicas[index].alive:
            self.replicas[index] = self.start_replica(index)

    # The run.

    async def run(self) -> float:
        self.replicas = [self.start_replica(index) for index in range(self.plan.replicas)]
        await asyncio.sleep(0.1)
        troubles = [asyncio.create_task(weather.blow(self, kind, rate)) for kind, rate in self.plan.rates.items()]
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
