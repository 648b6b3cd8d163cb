"""Runs without violations: the product's rules, one step at a time, with lost replies, retries and renewals."""

import random
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from cartgrpc.v1 import cart_pb2, cart_service_pb2

from cart_grpc.carts.calls import CartRead, Limits
from cart_grpc.carts.model import Cart
from cart_grpc.carts.refusals import CallRefused
from cart_grpc.commands.expire import Expire
from cart_grpc.commands.mutation import Mutation
from cart_grpc.commands.record import RecordOutcome
from cart_grpc.commands.unit_of_work import UnitOfWork
from cart_grpc.names import CartKey, find_cart, item_id_of
from cart_grpc.protocol.reservation import Decision, NoAnswer, PermanentFailure, Reservation, StaleRevision
from cart_grpc.protocol.transitions import claim, next_intent
from cart_grpc.rpc.cart_service import CartService
from cart_grpc.rpc.status import CODES
from cart_grpc.simulator.errors import RevisionTooLow
from cart_grpc.simulator.rules import StoredReservation as Decided
from cart_grpc.simulator.stock import Entry, Stock
from cart_grpc.store.read.cache_validator import CacheValidator
from cart_grpc.store.read.cart_json import CartJson
from tests.invariants.claims import find_record
from tests.invariants.history import Call, CallOutcome, ClaimAction, ClaimEvent, Dump, RowVersion, effects_of
from tests.invariants.run import Run
from tests.store.cart_json import make_cart_json

SECOND = 1_000_000
LEASE = 15 * SECOND
STOCK = {"beans": 10_000, "filters": 10_000, "scarce": 6}
CARTS = ("users/a/carts/one", "users/a/carts/two", "users/b/carts/one")
LIMITS = Limits(hold_ttl_us=60 * SECOND, cart_ttl_us=3_600 * SECOND)


class RunGenerator:
    """Generates a run: a service with its tables in memory, callers and a Reservation API, in one random order."""

    era = 0  # of `Reads`

    def __init__(self, seed: object) -> None:
        self.rng = random.Random(str(seed))
        self.now = 1_000_000 * SECOND
        self._count = 0
        self._unit_of_work = UnitOfWork()
        self._entries: list[Entry] = []
        self._stock = Stock(STOCK, default_total=0, log=self._entries.append)
        self._service = CartService(self, LIMITS)  # type: ignore[arg-type]  # the store of a service that never waits
        self._calls: list[Call] = []
        self._claims: list[ClaimEvent] = []
        self._written: list[RowVersion] = []
        self._claimed: list[Reservation] = []

    @property
    def reads(self) -> "RunGenerator":
        return self

    async def mutate(self, mutation: Mutation) -> bytes:
        reply: bytes = self._write(mutation)
        return reply

    async def find_json(self, key: CartKey, _: CacheValidator | None = None) -> CartJson | None:
        cart = self._unit_of_work.carts.get(key)
        if cart is None:
            return None
        lines = list(self._unit_of_work.get_loaded_cart([CartRead(key)]).lines.values())
        return make_cart_json(cart, lines, self.now)

    def _write(self, command: Any) -> Any:
        """Run one command. Record the rows that it wrote and the claims that it ended."""
        unit = self._unit_of_work
        before = dict(unit.reservations)
        answer = command.run(unit, self.now, self._new_id)
        for reservation_id in sorted(unit.changed_reservations):
            after, old = unit.reservations[reservation_id], before.get(reservation_id)
            if old is None or isinstance(command, RecordOutcome):
                continue
            if after.lease_epoch > old.lease_epoch:
                self._claim_event(after, ClaimAction.OVERTAKEN, "")
        if isinstance(command, RecordOutcome):
            claimed = command.claimed
            old = before[claimed.reservation_id]
            event = find_record(old, unit.reservations[claimed.reservation_id], claimed, self.now, "")
            if event is not None:
                self._claims.append(replace(event, owner=_owner(claimed)))
        self._claim_at_birth()
        rows: list[Cart | Reservation] = [unit.carts[key] for key in unit.changed_carts]
        rows += [unit.reservations[reservation_id] for reservation_id in sorted(unit.changed_reservations)]
        self._written.extend(RowVersion(self.now, row) for row in rows)
        unit.changed_carts.clear()
        unit.changed_reservations.clear()
        return answer

    def _claim_at_birth(self) -> None:
        """Claim some of the reservations that this transaction made due."""
        unit = self._unit_of_work
        for reservation_id in sorted(unit.changed_reservations):
            row = unit.reservations[reservation_id]
            born = claim(row, self.now, self.now + LEASE)
            if born != row and self.rng.random() < 0.5:
                unit.put_reservation(born)
                self._claim_event(born, ClaimAction.CLAIMED, _owner(born))
                self._claimed.append(born)

    def _claim_event(self, row: Reservation, action: ClaimAction, owner: str) -> None:
        self._claims.append(
            ClaimEvent(self.now, row.reservation_id, row.lease_epoch, owner, action, row.lease_expire_time)
        )

    def _new_id(self) -> str:
        self._count += 1
        return f"id-{self._count:08x}"

    def step(self) -> None:
        """One operation of a caller, one claim, or the end of one call."""
        self.now += self.rng.randint(1, 2 * SECOND)
        kind = self.rng.random()
        if kind < 0.45:
            self._operate()
        elif kind < 0.7:
            self._claim()
        elif self._claimed:
            self._finish(self._claimed.pop(self.rng.randrange(len(self._claimed))))

    def _operate(self) -> None:
        cart = self.rng.choice(CARTS)
        rpc, request = self._request(cart)
        if rpc != "GetCart":
            request.request_id = self._new_id()
        self._call(cart, rpc, request, lost=rpc != "GetCart" and self.rng.random() < 0.2)
        if rpc == "GetCart":
            return
        for _ in range(self.rng.choice((0, 0, 1, 2))):
            self._call(cart, rpc, request)
        if self.rng.random() < 0.1:
            other = cart_service_pb2.AddItemRequest(
                parent=cart, item=cart_pb2.Item(sku="other"), request_id=request.request_id
            )
            self._call(cart, "AddItem", other)

    def _request(self, cart: str) -> tuple[str, Any]:
        sku = self.rng.choice(list(STOCK))
        name = f"{cart}/items/{item_id_of(sku, {})}"
        quantity = self.rng.randint(1, 4)
        item = cart_pb2.Item(sku=sku, quantity=quantity)
        add = cart_service_pb2.AddItemRequest(parent=cart, item=item)
        update = cart_pb2.Item(name=name, quantity=quantity)
        labelled = cart_pb2.Cart(name=cart, labels={"n": str(quantity)})
        requests: dict[str, tuple[int, Any]] = {
            "AddItem": (8, add),
            "BatchAddItems": (2, cart_service_pb2.BatchAddItemsRequest(parent=cart, requests=[add, add])),
            "UpdateItem": (4, cart_service_pb2.UpdateItemRequest(item=update)),
            "RemoveItem": (4, cart_service_pb2.RemoveItemRequest(name=name)),
            "ReplaceItems": (2, self._replacement(cart)),
            "ClearCart": (1, cart_service_pb2.ClearCartRequest(name=cart)),
            "DeleteCart": (1, cart_service_pb2.DeleteCartRequest(name=cart)),
            "UpdateCart": (1, cart_service_pb2.UpdateCartRequest(cart=labelled)),
            "RetryReservation": (2, cart_service_pb2.RetryReservationRequest(name=name)),
            "GetCart": (4, cart_service_pb2.GetCartRequest(name=cart)),
        }
        (rpc,) = self.rng.choices(list(requests), [weight for weight, _ in requests.values()])
        request = requests[rpc][1]
        row = self._unit_of_work.carts.get(_key(cart))
        if rpc != "GetCart" and row is not None and self.rng.random() < 0.1:
            # Sometimes an old etag.
            request.etag = row._replace(etag_revision=row.etag_revision - self.rng.choice((0, 0, 1))).etag
        return rpc, request

    def _replacement(self, cart: str) -> cart_service_pb2.ReplaceItemsRequest:
        """Some skus in some options, of which one cart has several lines."""
        items = [
            cart_pb2.Item(sku=sku, options=options, quantity=self.rng.randint(1, 4))
            for sku in STOCK
            for options in ({}, {"size": "L"})
            if self.rng.random() < 0.4
        ]
        return cart_service_pb2.ReplaceItemsRequest(name=cart, items=items)

    def _call(self, cart: str, rpc: str, request: Any, *, lost: bool = False) -> None:
        """One attempt. If it is `lost`, before or after its effect, another attempt follows at once."""
        invoked, reply, code, reason = self.now, b"", "", ""
        outcome = CallOutcome.UNKNOWN
        self.now += self.rng.randint(1, SECOND // 10)
        if not lost or self.rng.random() < 0.5:
            try:
                answer = _completed(getattr(self._service, rpc)(request, None))
                reply = answer if isinstance(answer, bytes) else answer.SerializeToString(deterministic=True)
                outcome, code = CallOutcome.OK, "OK"
            except CallRefused as refusal:
                outcome, reason = CallOutcome.REFUSED, refusal.reason
                code = next(code.name for kind, code in CODES if isinstance(refusal, kind))
        if lost:
            outcome, reply, code, reason = CallOutcome.UNKNOWN, b"", "", ""
        self.now += self.rng.randint(1, SECOND // 10)
        raw = request.SerializeToString(deterministic=True)
        request_id = "" if rpc == "GetCart" else request.request_id
        self._calls.append(Call(cart, rpc, raw, request_id, invoked, self.now, outcome, code, reason, reply))
        if lost:
            self._call(cart, rpc, request)

    def _claim(self) -> None:
        due = [
            row
            for row in self._unit_of_work.reservations.values()
            if row.due_time is not None and row.due_time <= self.now
        ]
        if not due:
            return
        row = self.rng.choice(due)
        claimed = claim(row, self.now, self.now + LEASE)
        self._put(claimed, ClaimAction.CLAIMED)
        self._claimed.append(claimed)

    def _put(self, row: Reservation, action: ClaimAction) -> None:
        self._unit_of_work.put_reservation(row)
        self._unit_of_work.changed_reservations.clear()
        self._written.append(RowVersion(self.now, row))
        self._claim_event(row, action, _owner(row))

    def _finish(self, claimed: Reservation) -> None:
        """End the call of a claim and record its outcome, or hand the claim back."""
        row = self._unit_of_work.reservations[claimed.reservation_id]
        kind = self.rng.random()
        if kind < 0.1 and row.lease_epoch == claimed.lease_epoch and row.lease_expire_time is not None:
            self._put(row._replace(lease_expire_time=None, due_time=self.now), ClaimAction.HANDED_BACK)
            return
        if kind < 0.2 and row.lease_epoch == claimed.lease_epoch and row.lease_expire_time is not None:
            self._put(row._replace(lease_expire_time=self.now + LEASE, due_time=self.now + LEASE), ClaimAction.EXTENDED)
        self._write(RecordOutcome(claimed, self._answer(claimed), retry_delay_us=self.rng.randint(0, SECOND)))

    def _answer(self, claimed: Reservation) -> Decision | StaleRevision | PermanentFailure | NoAnswer:
        intent = next_intent(claimed)
        assert intent is not None
        kind = self.rng.random()
        if kind < 0.1:
            return NoAnswer("UNAVAILABLE", "lost before it took effect")
        if kind < 0.15:
            return PermanentFailure("NOT_TODAY", "an error that is not remembered")
        try:
            decided = self._stock.apply(intent, self.now)
        except RevisionTooLow as stale:
            return StaleRevision(_decision(stale.current))
        if kind < 0.25:
            return NoAnswer("UNAVAILABLE", "lost after it took effect")
        return _decision(decided)

    def settle(self) -> None:
        """Expire some carts, then let the reconciler work until everything is settled."""
        for key, cart in list(self._unit_of_work.carts.items()):
            if self.rng.random() < 0.2 and cart.expire_time is not None:
                self.now = max(self.now, cart.expire_time)
                self._write(Expire(key))
        while True:
            waiting = [row for row in self._unit_of_work.reservations.values() if not self._at_rest(row)]
            if not waiting and not self._claimed:
                break
            self.now += SECOND
            self._claim()
            if self._claimed:
                self._finish(self._claimed.pop(0))

    def _at_rest(self, row: Reservation) -> bool:
        margin = 10 * SECOND
        return row.settled and (row.due_time is None or (row.expire_time or 0) > self.now + margin)

    def run(self, steps: int) -> Run:
        """The history of `steps` random steps, and of settling afterwards."""
        for _ in range(steps):
            self.step()
        self.settle()
        unit = self._unit_of_work
        items = [item for of_cart in unit.items.values() for item in of_cart.values()]
        replies = {(user.name, request_id): kept.reply for (user, request_id), kept in unit.replies.items()}
        levels = {sku: self._stock.levels(sku, self.now) for sku in STOCK}
        totals = {user.name: total for user, total in unit.totals.items()}
        dump = Dump(list(unit.carts.values()), items, list(unit.reservations.values()), replies, totals)
        effects = effects_of(self._entries)
        return Run(self._calls, effects, dump, self.now, STOCK, levels, self._claims, self._written)


def _completed(call: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits."""
    try:
        call.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("the coroutine waits")


def _owner(claimed: Reservation) -> str:
    return f"replica-{claimed.lease_epoch % 2}"


def _key(cart: str) -> CartKey:
    key = find_cart(cart)
    assert key is not None
    return key


def _decision(record: Decided) -> Decision:
    return Decision(
        record.intent.reservation_id,
        record.intent.revision,
        record.state,
        record.granted,
        record.expire_time,
        record.reason,
    )
