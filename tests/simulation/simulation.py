"""One run: the replicas, their callers, the network, the database and the faults."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from cartgrpc.v1 import cart_service_pb2
from google.protobuf.message import Message

from cart_grpc.carts.model import CheckoutState
from cart_grpc.carts.refusals import CallRefused, RequestIdReused, Unavailable
from cart_grpc.names import CheckoutKey, find_checkout
from cart_grpc.simulator.stock import Decided, Entry
from cart_grpc.units import to_seconds
from tests.simulation import faults, operations, plan
from tests.simulation.checks import Checks
from tests.simulation.clock import SimulatedClock
from tests.simulation.database import Database, DatabaseFaults, discard
from tests.simulation.histories import etag_of
from tests.simulation.loop import OUTSIDE, VirtualLoop
from tests.simulation.lossy_stock import LossyStock
from tests.simulation.network import Network, NetworkFaults
from tests.simulation.operations import CallerOperation, Known
from tests.simulation.replica import SimulatedReplica


class Simulation:
    """One run. `trace` has all events, `violations` the broken invariants; each calls `after_violation`.

    The labels of the random generators are part of the seed: another label makes every seed another run.
    """

    def __init__(self, seed: int, loop: VirtualLoop) -> None:
        self.loop = loop
        self.rng = random.Random(f"{seed} world")
        self.plan = plan.draw(random.Random(f"{seed} plan"), seed)
        self.trace: list[tuple[Any, ...]] = []
        self.violations: list[str] = []
        self.after_violation: Callable[[], object] = discard
        self._id = 0
        self.clock = SimulatedClock(loop, follows=self.plan.api_follows)
        self.database = Database(
            loop,
            self.clock,
            self.plan.database,
            random.Random(f"{seed} database"),
            self._after_commit,
            self.log_event,
            shard_count=self.plan.shards,
            after_kill=self._after_kill,
        )
        self.stock = LossyStock(self.plan.stock, default_total=None, log=self._decided)
        self.checks = Checks(
            self.database.raw,
            self.plan.stock,
            self.report_violation,
            self.log_event,
            self.clock,
            self.plan.rejection_reasons,
            healthy=self.plan.healthy,
        )
        self.network = Network(
            loop,
            self.stock,
            self.plan.network,
            random.Random(f"{seed} network"),
            self.clock.api_now,
            log_event=self.log_event,
            check_sent=self.checks.check_sent,
            report_violation=self.report_violation,
        )
        self.replicas: list[SimulatedReplica] = []
        self.retired: list[SimulatedReplica] = []
        self.operations: list[CallerOperation] = []
        self.etags: dict[str, str] = {}
        # The latest checkout of each cart that a caller knows.
        self.checkouts: dict[str, str] = {}
        # The commands of operators that end a pause.
        self.resumptions: list[tuple[SimulatedReplica, asyncio.Task[None]]] = []
        self.healing = False
        self._starts = 0
        self._finishing: Counter[str] = Counter()

    # Events.

    def log_event(self, *event: Any) -> None:
        self.trace.append((round(self.loop.time(), 6), *event))

    def report_violation(self, message: str) -> None:
        self.violations.append(f"at {self.loop.time():.3f} s: {message}")
        self.trace.append((round(self.loop.time(), 6), "VIOLATION", message))
        self.after_violation()

    def new_id(self) -> str:
        self._id += 1
        return f"00000000-0000-7000-8000-{self._id:012x}"

    def _decided(self, entry: Entry) -> None:
        if isinstance(entry, Decided):
            record = entry.reservation
            self.log_event(
                "effect", record.intent.reservation_id, record.intent.revision, record.state.name, record.granted
            )
            self.checks.check_decision(record)

    def _after_commit(self, process_name: str, began: int) -> None:
        for row in self.checks.check_commit(process_name, began):
            self.log_event("row", *row)

    def _after_kill(self, process_name: str) -> None:
        for index, replica in enumerate(self.replicas):
            if replica.name == process_name:
                self.loop.call_later(10 * self.rng.random(), self.replace_replica, index, context=OUTSIDE)

    # Replicas.

    def start_replica(self, index: int) -> SimulatedReplica:
        self._starts += 1
        name = f"replica-{index}.{self._starts}"
        self.log_event("start", name)
        return SimulatedReplica(
            self.loop,
            name,
            self.database,
            self.network,
            limits=self.plan.limits,
            config=self.plan.config,
            retention=self.plan.retention,
            sweep_interval_us=self.plan.sweep_interval_us,
            new_id=self.new_id,
            clock_rate=self.plan.clock_rates[index],
            max_batch=self.plan.max_batch,
            log_event=self.log_event,
            report_violation=self.report_violation,
        )

    # Callers.

    async def attempt_operation(self, operation: CallerOperation, replica: SimulatedReplica, timeout: float) -> bool:
        """Make one attempt of an operation, of at most `timeout` seconds. Returns whether its outcome is known now."""
        operation.attempts += 1
        if not replica.alive or not replica.serving:
            return False
        self.log_event("call", operation.number, operation.method, replica.name, operation.attempts)
        call = replica.call(operation.method, operation.request, self.loop.time() + timeout)
        await replica.process.outcome(call, timeout)
        if not call.done() or call.cancelled():
            if not replica.process.dead:
                call.cancel()
            self.log_event("unheard", operation.number)
            return False
        return self._record_end(operation, call)

    def _record_end(self, operation: CallerOperation, call: "asyncio.Task[Message]") -> bool:
        error = call.exception()
        if error is None:
            reply = call.result()
            self.log_event("ok", operation.number)
            self._take_reply(operation, reply)
            return True
        self.log_event("failed", operation.number, type(error).__name__)
        if isinstance(error, Unavailable):
            return False
        if not isinstance(error, CallRefused):
            self.report_violation(f"{operation.method} raised an unexpected error: {error!r}")
        operation.refused = type(error).__name__
        operation.returned = self.loop.time()
        return True

    def _take_reply(self, operation: CallerOperation, reply: Message) -> None:
        if not operation.request.HasField("max_wait"):
            operation.replies.add(reply.SerializeToString(deterministic=True))
        if len(operation.replies) > 1:
            self.report_violation(
                f"operation {operation.number} {operation.method} got another reply when it was repeated"
            )
        if operation.reply is None:
            operation.reply = reply
            operation.returned = self.loop.time()
            if operation.shows_cart:
                self.etags[operation.cart] = etag_of(reply)
            else:
                self.checkouts[operation.cart] = reply.checkout.name  # type: ignore[attr-defined]

    def choose_replica(self) -> SimulatedReplica:
        return self.rng.choice(self.replicas)

    async def caller(self, count: int) -> None:
        """Run one caller: `count` operations one after the other, each with a few attempts at random replicas."""
        for _ in range(count):
            await asyncio.sleep(self.rng.expovariate(count / self.plan.duration))
            if self.rng.random() < 0.15:
                await self.read_cart()
            if self.plan.merges and self.rng.random() < self.plan.merges:
                await self.merge()
            if self.rng.random() < self.plan.sales:
                await self.buy(self.rng.choice(self.plan.carts))
            await self.perform(operations.draw(self.rng, len(self.operations), self.known))

    @property
    def known(self) -> Known:
        """The knowledge of callers."""
        return Known(self.plan.carts, self.plan.skus, self.etags, self.checkouts)

    async def perform(self, operation: CallerOperation) -> None:
        """Make an operation, with a few attempts at random replicas."""
        self.operations.append(operation)
        operation.invoked = self.loop.time()
        for _ in range(self.rng.choice([1, 2, 4]) if operation.request_id else 1):
            timeout = self.rng.random() ** 3 if self.rng.random() < self.plan.give_up else 30.0
            if await self.attempt_operation(operation, self.choose_replica(), timeout):
                break
            await asyncio.sleep(self.rng.random())
        if operation.reply is not None and operation.request_id and self.rng.random() < 0.2:
            await self.attempt_operation(operation, self.choose_replica(), 30.0)
            await self.reuse_request_id(operation)

    async def merge(self) -> None:
        """Fill a cart, and merge another one with it."""
        source = self.rng.choice(self.plan.carts)
        await self.perform(operations.make(self.rng, len(self.operations), "BatchAddItems", source, self.known))
        target = self.rng.choice([one for one in self.plan.carts if one != source])
        await self.perform(operations.make(self.rng, len(self.operations), "MergeCarts", target, self.known))

    async def buy(self, cart: str) -> None:
        """Fill a cart, check it out, and complete or cancel the checkout, each after some time. Some click again."""
        steps = ["ReplaceItems", "BeginCheckout", self.rng.choice(["CompleteCheckout"] * 4 + ["CancelCheckout"])]
        if self.rng.random() < 0.3:
            steps.append(self.rng.choice(["BeginCheckout", "CompleteCheckout", "CancelCheckout"]))
        for method in steps:
            operation = operations.make(self.rng, len(self.operations), method, cart, self.known)
            if method == "ReplaceItems" or self.rng.random() < 0.6:
                operation.request.max_wait.seconds = 20  # type: ignore[attr-defined]
            await self.perform(operation)
            await asyncio.sleep(self.rng.random() ** 3 * 60)

    async def reuse_request_id(self, operation: CallerOperation) -> None:
        """Reuse a request_id with another body: every replica must refuse it."""
        replica = self.choose_replica()
        if replica.serving and replica.alive:
            other: Any = type(operation.request)()
            other.CopyFrom(operation.request)
            other.etag = "" if other.etag else '"00000000-7fff"'
            call = replica.call(operation.method, other, self.loop.time() + 10)
            await replica.process.outcome(call, 10)
            if call.done() and not call.cancelled() and not isinstance(call.exception(), RequestIdReused | Unavailable):
                self.report_violation(f"{operation.request_id} was used for another body: {call}")

    async def read_cart(self) -> None:
        """Read a random cart once or five times, and check each reply."""
        cart = self.rng.choice(self.plan.carts)
        replica = self.choose_replica()
        for _ in range(self.rng.choice([1, 1, 5])):
            await self._read(replica, cart)
            await asyncio.sleep(self.rng.random() ** 3 * 30)

    async def _read(self, replica: SimulatedReplica, cart: str) -> None:
        if replica.alive and replica.serving:
            acknowledged = self.checks.highest_acknowledged(self.operations, cart)
            call = replica.call("GetCart", cart_service_pb2.GetCartRequest(name=cart), self.loop.time() + 10)
            await replica.process.outcome(call, 10)
            if not call.done() or call.cancelled():
                return
            if (error := call.exception()) is None:
                self.checks.check_read(cart, call.result().cart, acknowledged)
            elif not isinstance(error, CallRefused):
                self.report_violation(f"GetCart raised an unexpected error: {error!r}")

    def replace_replica(self, index: int) -> None:
        if not self.replicas[index].alive:
            self.retired.append(self.replicas[index])
            self.replicas[index] = self.start_replica(index)

    # The run.

    async def run(self) -> float:
        self.replicas = [self.start_replica(index) for index in range(self.plan.replicas)]
        await asyncio.sleep(0.1)
        injections = [
            asyncio.create_task(faults.inject_faults(self, kind, rate)) for kind, rate in self.plan.rates.items()
        ]
        expiring = asyncio.create_task(self.expire_holds())
        share = self.plan.operations // self.plan.callers
        await asyncio.gather(*(self.caller(share) for _ in range(self.plan.callers)))
        await self.heal(injections)
        healed_at = self.loop.time()
        await self.resolve()
        await self.converge(healed_at)
        converged_after = self.loop.time() - healed_at
        if self.clock.is_step_open:
            self.report_violation("nobody noticed that the clock was set back")
        self.checks.check_settled(self.stock, self.clock.api_now())
        await self.await_late_messages()
        self.checks.check_histories(self.operations)
        self.checks.check_sales(self.operations)
        self.checks.check_tables(self.database.connection, self.database.schemas)
        for operation in self.operations:
            if operation.reply is not None and operation.request_id:
                await self.attempt_operation(operation, self.choose_replica(), 30.0)
        self.check_call_count()
        expiring.cancel()
        return converged_after

    async def expire_holds(self) -> None:
        """Let the API's holds expire within a second, to check what callers see at that moment."""
        while True:
            self.stock.levels("", self.clock.api_now())
            await asyncio.sleep(1)

    def check_call_count(self) -> None:
        """Without faults, each revision costs one call (5 % may be repeated)."""
        revisions = self.checks.revision_count
        # A merge ends a claim, so its call is made again.
        if self.plan.healthy and self.network.call_count > 1.05 * revisions + 1 + self.checks.move_count:
            self.report_violation(f"{self.network.call_count} calls for {revisions} revisions")

    async def heal(self, injections: list["asyncio.Task[None]"]) -> None:
        self.log_event("heal")
        self.healing = True
        await asyncio.wait(injections, timeout=1) if injections else None
        for injection in injections:
            injection.cancel()
        await asyncio.gather(*injections, return_exceptions=True)
        self.network.is_down = False
        self.network.has_batches = True
        self.network.faults = NetworkFaults(latency=0.5)
        self.database.faults = DatabaseFaults()
        for index, replica in enumerate(self.replicas):
            self.network.reconnect(replica.name)
            self.database.reconnect(replica.name)
            replica.process.resume()
            if replica.stopping:
                replica.process.kill()
            self.replace_replica(index)
        await faults.resume_claims(self)
        if self.clock.is_ahead:
            # While the database's clock is ahead, the API seems to grant holds that have ended already.
            await faults.set_clock(self, 0)

    async def read_everywhere(self) -> None:
        """Read every cart at every replica."""
        for replica in self.replicas:
            for cart in self.plan.carts:
                await self._read(replica, cart)

    async def resolve(self) -> None:
        """Repeat every operation with an unknown outcome until its outcome is known."""
        await asyncio.sleep(2)
        for operation in self.operations:
            while operation.request_id and not operation.resolved:
                if not await self.attempt_operation(operation, self.choose_replica(), 30.0):
                    await asyncio.sleep(0.5)

    async def converge(self, healed_at: float) -> None:
        bound = self.convergence_bound
        while unsettled := self.checks.unsettled():
            # An operator's pause may have waited in a process until the database was back.
            await faults.resume_claims(self)
            await self.finish_checkouts()
            if self.loop.time() - healed_at > bound:
                self.report_violation(f"not settled {bound:.0f} s after the faults ended: {unsettled}")
                return
            await asyncio.sleep(1)

    def choose_checkout(self, rng: random.Random) -> CheckoutKey | None:
        """A checkout that some caller knows, if there is one."""
        known = sorted(self.checkouts.values())
        return find_checkout(rng.choice(known)) if known else None

    async def finish_checkouts(self) -> None:
        """Complete half of the failed checkouts again, and cancel the rest.

        Cancel those that are open and have a long window; the others end.
        """
        for row in self.checks.sales.running:
            if row.state == CheckoutState.COMPLETING:
                continue
            tries = self._finishing[row.checkout_id]
            self._finishing[row.checkout_id] += 1
            request: Any = cart_service_pb2.CancelCheckoutRequest(name=row.name)
            if row.state == CheckoutState.FAILED and not tries and self.rng.random() < 0.5:
                request = operations.complete(row.name, row.order_reference)
            elif row.state == CheckoutState.OPEN and row.expire_time < self.clock.now() + 100_000_000:
                # Its window ends soon.
                continue
            method = type(request).__name__.removesuffix("Request")
            cart = f"users/{row.user_id}/carts/{row.cart_id}"
            operation = CallerOperation(len(self.operations), cart, method, request, "")
            self.operations.append(operation)
            operation.invoked = self.loop.time()
            await self.attempt_operation(operation, self.choose_replica(), 30.0)

    @property
    def convergence_bound(self) -> float:
        """The maximum time to convergence in seconds: a call's deadline, a backoff, a lease, a probe and a Retry-After.

        Twice that, because a new hold may wait for the release of an older one, plus 30 s; and once more, because a
        checkout may be completed again, after its window of up to 100 s has ended.
        """
        config, network = self.plan.config, self.plan.network
        waits = to_seconds(config.call_timeout_us + config.backoff_max_us + config.lease_us + config.probe_interval_us)
        return 3 * (waits + (network.retry_after if network.throttled else 0)) + 130

    async def await_late_messages(self) -> None:
        """Wait for all messages in flight. They must not change the settled state."""
        await asyncio.sleep(max(0.0, self.network.last_arrival - self.loop.time()) + 30)
        self.checks.check_expired(30_000_000)
        await self.converge(self.loop.time())
        self.checks.check_settled(self.stock, self.clock.api_now())
