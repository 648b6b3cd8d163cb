"""The state machine: random calls, replays, concurrent calls and restarts, each checked against the plain model."""

import itertools
import time
from collections.abc import Sequence
from typing import Any

from cartgrpc.v1 import cart_pb2
from cartgrpc.v1 import cart_service_pb2 as pb
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.state_machine.carts import ENDED, SOLD_OUT
from tests.state_machine.model import Model, Outcome, named, user_of
from tests.state_machine.plans import CARTS, ITEMS, NO_CHECKOUT, PLANS, RACES, READS, SKUS, Plan
from tests.state_machine.server import ServerUnderTest

# Each run has users of its own, because all runs share a database.
_runs = itertools.count()
Called = tuple[str, Any, Outcome]
State = cart_pb2.Reservation.State
CheckoutState = cart_pb2.Checkout.State


class CartMachine(RuleBasedStateMachine):
    """One run. `server` is set by the test."""

    server: ServerUnderTest

    def __init__(self) -> None:
        super().__init__()
        self._suffix = f"-{next(_runs)}"
        self._count = 0
        self._model = Model()
        self._answered: list[Called] = []
        self._sold_before = self._count_sold()

    @rule(plan=PLANS)
    def call(self, plan: Plan) -> None:
        """One call."""
        self._make([plan])

    @rule(first=PLANS, second=PLANS)
    def call_both(self, first: Plan, second: Plan) -> None:
        """Two calls at the same time: either order explains the outcomes."""
        self._make([first, second])

    @rule(plans=RACES, is_settled=st.booleans())
    def race(self, plans: Sequence[Plan], *, is_settled: bool) -> None:
        """Two calls at the same time that can contradict each other; before them, the reservations may settle."""
        if is_settled:
            self.settle()
        self._make(plans)

    @rule(which=st.integers(0, 9), ending=st.sampled_from(["", "complete", "cancel", "race"]))
    def check_out(self, which: int, ending: str) -> None:
        """A settled cart is checked out."""
        # No precondition: which carts can be sold may depend on the order of calls at the same time.
        sellable = self._find_active(sellable=True)
        if not sellable:
            return
        name = sellable[which % len(sellable)]
        self._settled(name)
        self._check([("BeginCheckout", pb.BeginCheckoutRequest(name=name, request_id=self._new_id()))])
        checkout = self._model.carts[name].checkout
        self._wait_for_checkout(checkout)
        complete: Any = pb.CompleteCheckoutRequest(name=checkout, order_reference="order-1", request_id=self._new_id())
        cancel: Any = pb.CancelCheckoutRequest(name=checkout, request_id=self._new_id())
        calls = {"complete": [("CompleteCheckout", complete)], "cancel": [("CancelCheckout", cancel)]}
        if ending:
            self._check([*calls.get(ending, (*calls["complete"], *calls["cancel"]))])

    @rule(which=st.integers(0, 9), into=st.sampled_from(CARTS), items=ITEMS, both=st.booleans())
    def merge(self, which: int, into: str, items: Sequence[cart_pb2.Item], *, both: bool) -> None:
        """A cart with items is merged into another one that may have them, too, once or by two calls at once."""
        request = pb.MergeCartsRequest(name=into)
        rename(request, self._suffix)
        if items:
            # The second call finds the cart as it should be.
            for _ in range(2):
                self._check([("ReplaceItems", pb.ReplaceItemsRequest(name=request.name, items=items))])
        sources = [name for name in self._find_active() if name != request.name]
        if sources:
            request.source = sources[which % len(sources)]
            self._check([("MergeCarts", request)] * (1 + both))

    def _find_active(self, *, sellable: bool = False) -> list[str]:
        """The carts that are ACTIVE and have items; if `sellable`, only those without an item that is sold out."""
        return [
            name
            for name, cart in self._model.carts.items()
            if cart.state == "ACTIVE" and cart.lines
            if not sellable or all(line.sku != SOLD_OUT for line in cart.lines.values())
        ]

    @rule(plan=PLANS)
    def call_twice(self, plan: Plan) -> None:
        """The same call twice at the same time, as after a double click."""
        if plan.method not in READS:
            request = self._complete(plan)
            request.request_id = request.request_id or self._new_id()
            self._check([(plan.method, request)] * 2)

    @precondition(lambda self: self._answered)
    @rule(which=st.integers(0, 99))
    def repeat(self, which: int) -> None:
        """A call that was answered, again."""
        method, request, _ = self._answered[which % len(self._answered)]
        self._check([(method, request)])

    @precondition(lambda self: self._answered)
    @rule(which=st.integers(0, 99), other=PLANS)
    def reuse_request_id(self, which: int, other: Plan) -> None:
        """Another call under the request_id of a call that was answered."""
        _, used, _ = self._answered[which % len(self._answered)]
        if other.method not in READS:
            request = self._complete(other)
            request.request_id = used.request_id
            self._check([(other.method, request)])

    @rule(really=st.sampled_from([False] * 7 + [True]))
    def restart(self, *, really: bool) -> None:
        """Another server takes over the database. It takes as long as twenty calls."""
        if really:
            self.server.restart()

    @rule()
    def settle(self) -> None:
        """Once the server has nothing to do, every item is reserved, unless it is sold out."""
        for name, cart in self._model.carts.items():
            seen = self._settled(name)
            for item in seen.items:
                found = (item.reservation.state, item.reservation.reserved_quantity)
                sold_out = item.sku == SOLD_OUT
                wanted = (State.STATE_REJECTED, 0) if sold_out else (State.STATE_RESERVED, item.quantity)
                assert found == wanted, f"{item} of {cart} has settled as {found}"
        for name in self._model.checkouts:
            self._wait_for_checkout(name)

    def teardown(self) -> None:
        """Once all carts are deleted, nothing is held, and exactly the items of completed checkouts are sold."""
        sold = dict.fromkeys(SKUS, 0)
        for name, checkout in self._model.checkouts.items():
            if checkout.state == "OPEN":
                self._check([("CancelCheckout", pb.CancelCheckoutRequest(name=name))])
            self._wait_for_checkout(name)
            for line in checkout.lines.values() if checkout.state == "COMPLETED" else ():
                sold[line.sku] += line.quantity
        for name, cart in self._model.carts.items():
            if cart.state not in ENDED:
                self._check([("DeleteCart", pb.DeleteCartRequest(name=name))])
            self._settled(name)
        held = {sku: self.server.simulator.levels(sku).held for sku in SKUS}
        assert not any(held.values()), f"no cart is left, but {held} are held"
        found = {sku: count - self._sold_before[sku] for sku, count in self._count_sold().items()}
        assert found == sold, f"{found} are sold, not {sold}"

    def _count_sold(self) -> dict[str, int]:
        return {sku: self.server.simulator.levels(sku).committed for sku in SKUS}

    def _settled(self, name: str) -> cart_pb2.Cart:
        deadline = time.monotonic() + 20
        while True:
            (reply,) = self._check([("GetCart", pb.GetCartRequest(name=name))])
            assert isinstance(reply, pb.GetCartResponse)
            if not reply.cart.reconciling:
                self._model.carts[name].settled_etag = reply.cart.etag
                return reply.cart
            assert time.monotonic() < deadline, f"still reconciling: {reply}"
            self.server.wait()

    def _wait_for_checkout(self, name: str) -> None:
        """Wait until the checkout is ready or has ended."""
        deadline = time.monotonic() + 20
        while True:
            (reply,) = self._check([("GetCheckout", pb.GetCheckoutRequest(name=name))])
            assert isinstance(reply, pb.GetCheckoutResponse)
            if not reply.checkout.reconciling:
                break
            assert time.monotonic() < deadline, f"still reconciling: {reply}"
            self.server.wait()
        for item in reply.checkout.items if reply.checkout.state == CheckoutState.STATE_COMPLETED else ():
            assert item.reservation.state == State.STATE_COMMITTED, f"{item} is not sold"

    # Making and checking calls.

    def _make(self, plans: Sequence[Plan]) -> None:
        self._check([(plan.method, self._complete(plan)) for plan in plans])

    def _complete(self, plan: Plan) -> Any:
        request = type(plan.request)()
        request.CopyFrom(plan.request)
        rename(request, self._suffix)
        if "/checkouts/" in named(request):
            request.name = self._find_checkout(request.name)
        if plan.method in READS:
            return request
        if plan.has_id:
            request.request_id = self._new_id()
        if plan.waits:
            request.max_wait.seconds = 5
        cart = self._model.carts.get(_cart_of(request))
        if isinstance(request, pb.BeginCheckoutRequest) and cart and cart.currency:
            expected = request.expected_subtotal
            if request.HasField("expected_subtotal") and not expected.minor_units:
                expected.currency_code, expected.minor_units = cart.currency, cart.subtotal
        known = cart or self._model.checkouts.get(named(request))
        if plan.etag == "current" and known:
            request.etag = known.etag
        elif plan.etag == "stale":
            request.etag = min((known.etags - {known.etag}) if known else (), default='"00000000-7fff"')
        return request

    def _find_checkout(self, name: str) -> str:
        """The checkout in `users/{user}/checkouts/{number}`; the newest has number 0."""
        prefix, _, number = name.rpartition("/")
        ids = [one for one in self._model.checkouts if one.startswith(prefix + "/")][::-1]
        return ids[int(number)] if int(number) < len(ids) else f"{prefix}/{NO_CHECKOUT}"

    def _new_id(self) -> str:
        self._count += 1
        return f"request-{self._count}"

    def _check(self, calls: Sequence[tuple[str, Any]]) -> list[Outcome]:
        outcomes = self.server.call(*calls)
        called = [(*call, outcome) for call, outcome in zip(calls, outcomes, strict=True)]
        wrong: list[str] = []
        for order in itertools.permutations(called):
            try:
                self._model = self._model.after(*order)
            except AssertionError as error:
                wrong.append(str(error))
                continue
            self._answered += [one for one in order if not isinstance(one[2], str) and _has_id(one[1])]
            return outcomes
        raise AssertionError(f"no order of {called} explains the outcomes: {wrong}")


def _has_id(request: Any) -> bool:
    return bool(getattr(request, "request_id", ""))


def _cart_of(request: Any) -> str:
    if isinstance(request, pb.CreateCartRequest):
        return f"{request.parent}/carts/{request.cart_id}"
    return named(request).partition("/items/")[0]


def rename(request: Any, suffix: str) -> None:
    """Give the users in the request's names a suffix."""
    user = user_of(request)
    _replace(request, user, user + suffix)


def _replace(message: Any, old: str, new: str) -> None:
    for name in ("parent", "name", "source"):
        if name in message.DESCRIPTOR.fields_by_name and getattr(message, name):
            head, tail = "/".join(getattr(message, name).split("/")[:2]), getattr(message, name).split("/")[2:]
            setattr(message, name, "/".join([head + new.removeprefix(old), *tail]))
    for name in ("item", "cart"):
        if name in message.DESCRIPTOR.fields_by_name and message.HasField(name):
            _replace(getattr(message, name), old, new)
