"""Callers that repeat each call under its request_id until it is answered, and record every attempt."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import grpc
from cartgrpc.v1 import cart_pb2, cart_service_pb2
from google.protobuf.message import Message

from tests.invariants.history import Call, CallOutcome
from tests.processes.harness import Replicas

Response = TypeVar("Response", bound=Message)

State = cart_pb2.Reservation.State
# The only sku that may be out of stock.
SCARCE = "scarce"
SKUS = ("beans", "filters", "grinder", "kettle", "scale", SCARCE)
HOT_CART = "users/u0/carts/hot"
HOT_SKU = "hot-beans"

# After these codes the effect is unknown, so the call is repeated. Any other refusal fails the test.
_AGAIN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
_OPTIONS = (("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


@dataclass
class History:
    """Each attempt of each call of all callers, in the order in which the attempts ended."""

    calls: list[Call] = field(default_factory=list)

    def request_ids(self, outcome: CallOutcome) -> set[str]:
        """Return the request_ids of the attempts with this outcome."""
        return {call.request_id for call in self.calls if call.outcome is outcome and call.request_id}

    def repeats(self) -> Counter[str]:
        """Count the attempts that were not answered, by code."""
        return Counter(call.code for call in self.calls if call.outcome is CallOutcome.UNKNOWN)


class Caller:
    """One client, connected to one replica. After each unanswered attempt it connects to another replica."""

    def __init__(self, replicas: Replicas, history: History, name: str, seed: object) -> None:
        self.name = name
        self.numbers = random.Random(f"{seed}/{name}")
        self._replicas = replicas
        self._history = history
        self._count = 0
        self._address: str | None = None
        self._channel: grpc.aio.Channel | None = None

    async def call(self, method: str, request: Any, response: type[Response]) -> Response:
        """Send `request` under a new request_id until it is answered, and return the response."""
        self._count += 1
        request.request_id = f"{self.name}-{self._count}"
        raw = request.SerializeToString(deterministic=True)
        return response.FromString(await self.send(_cart_of(request), method, raw, request.request_id))

    async def get(self, name: str) -> cart_pb2.Cart:
        raw = cart_service_pb2.GetCartRequest(name=name).SerializeToString()
        return cart_service_pb2.GetCartResponse.FromString(await self.send(name, "GetCart", raw)).cart

    async def send(self, cart: str, method: str, request: bytes, request_id: str = "") -> bytes:
        """Send `request` until it is answered, and return the response's bytes. Raises AioRpcError for a refusal."""
        while True:
            channel = await self._connected()
            send: Any = channel.unary_unary(f"/cartgrpc.v1.CartService/{method}")
            attempt = Call(cart, method, request, request_id, _now(), 0, CallOutcome.UNKNOWN)
            try:
                reply: bytes = await send(request, timeout=5)
            except grpc.aio.AioRpcError as error:
                code, again = error.code(), error.code() in _AGAIN
                self._note(attempt, outcome=CallOutcome.UNKNOWN if again else CallOutcome.REFUSED, code=code.name)
                if not again:
                    raise
            else:
                self._note(attempt, outcome=CallOutcome.OK, code="OK", reply=reply)
                return reply
            await self.close()
            await asyncio.sleep(self.numbers.uniform(0.005, 0.02))

    def _note(self, attempt: Call, **end: Any) -> None:
        self._history.calls.append(replace(attempt, returned=_now(), **end))

    async def _connected(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._address = await self._replicas.address(self.numbers, but=self._address)
            self._channel = grpc.aio.insecure_channel(self._address, options=_OPTIONS)
        return self._channel

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


def _cart_of(request: Any) -> str:
    """Return the cart's name, from `parent`, `name` or `item.name`."""
    name: str = getattr(request, "parent", "") or getattr(request, "name", "") or request.item.name
    return name.partition("/items/")[0]


def _now() -> int:
    return time.monotonic_ns() // 1000


class CartWriter:
    """The only writer of one cart, so it knows the cart's items."""

    def __init__(self, caller: Caller, cart: str) -> None:
        self.cart = cart
        self._items: set[str] = set()
        self._caller = caller
        self._numbers = caller.numbers

    async def step(self) -> None:
        """Make one call of a random kind."""
        kinds = (self._add, self._update, self._remove, self._get, self._retry, self._clear, self._delete)
        (kind,) = self._numbers.choices(kinds, (45, 18, 16, 12, 6, 2, 1))
        await (kind() if self._items else self._add())

    async def _add(self) -> None:
        sku, quantity = self._numbers.choice(SKUS), self._numbers.randint(1, 4)
        options = {"size": "large"} if self._numbers.random() < 0.2 else {}
        item = cart_pb2.Item(sku=sku, options=options, quantity=quantity)
        request = cart_service_pb2.AddItemRequest(parent=self.cart, item=item)
        answer = (await self._caller.call("AddItem", request, cart_service_pb2.AddItemResponse)).item
        self._items.add(answer.name)
        self._check(answer)

    async def _update(self) -> None:
        item = cart_pb2.Item(name=self._pick(), quantity=self._numbers.randint(1, 12))
        request = cart_service_pb2.UpdateItemRequest(item=item)
        self._check((await self._caller.call("UpdateItem", request, cart_service_pb2.UpdateItemResponse)).item)

    async def _remove(self) -> None:
        name = self._pick()
        request = cart_service_pb2.RemoveItemRequest(name=name)
        await self._caller.call("RemoveItem", request, cart_service_pb2.RemoveItemResponse)
        self._items.remove(name)

    async def _retry(self) -> None:
        request = cart_service_pb2.RetryReservationRequest(name=self._pick())
        answer = await self._caller.call("RetryReservation", request, cart_service_pb2.RetryReservationResponse)
        self._check(answer.item)

    async def _get(self) -> None:
        for item in (await self._caller.get(self.cart)).items:
            self._check(item)

    async def _clear(self) -> None:
        request = cart_service_pb2.ClearCartRequest(name=self.cart)
        await self._caller.call("ClearCart", request, cart_service_pb2.ClearCartResponse)
        self._items.clear()

    async def _delete(self) -> None:
        request = cart_service_pb2.DeleteCartRequest(name=self.cart)
        await self._caller.call("DeleteCart", request, cart_service_pb2.DeleteCartResponse)
        self._items.clear()

    def _pick(self) -> str:
        return self._numbers.choice(sorted(self._items))

    def _check(self, answer: cart_pb2.Item) -> None:
        refused = answer.reservation.state in (State.STATE_REJECTED, State.STATE_EXPIRED)
        assert not refused or answer.sku == SCARCE, f"rejected, but in stock: {answer}"


class Adder:
    """One of several callers that all add to the same item of the same cart."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def step(self) -> None:
        item = cart_pb2.Item(sku=HOT_SKU, quantity=self._caller.numbers.randint(1, 3))
        request = cart_service_pb2.AddItemRequest(parent=HOT_CART, item=item)
        await self._caller.call("AddItem", request, cart_service_pb2.AddItemResponse)


class Load:
    """Writers, each with its own cart, and adders that share one cart.

    Each pauses for `pause` seconds on average between two calls, because servers, database, simulator and callers share
    two cores.
    """

    def __init__(
        self, replicas: Replicas, seed: object, *, writers: int = 8, adders: int = 3, pause: float = 0.06
    ) -> None:
        self.history = History()
        callers = [Caller(replicas, self.history, f"caller{number}", seed) for number in range(writers + adders)]
        self.writers = [
            CartWriter(caller, f"users/u{number % 3}/carts/c{number}")
            for number, caller in enumerate(callers[:writers])
        ]
        self.adders = [Adder(caller) for caller in callers[writers:]]
        self.reader = Caller(replicas, self.history, "reader", seed)
        self._callers = [*callers, self.reader]
        self._pause = pause
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._stopping.clear()
        steppers: Sequence[CartWriter | Adder] = [*self.writers, *self.adders]
        pairs = zip(steppers, self._callers, strict=False)
        self._tasks = [asyncio.create_task(self._work(stepper, caller.numbers)) for stepper, caller in pairs]

    async def _work(self, stepper: CartWriter | Adder, numbers: random.Random) -> None:
        while not self._stopping.is_set():
            await stepper.step()
            await asyncio.sleep(numbers.uniform(0, 2 * self._pause))

    def check(self) -> None:
        """Raise the first unexpected error of any caller."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def stop(self) -> None:
        """Begin no more calls, and wait until every call is answered."""
        self._stopping.set()
        await asyncio.wait_for(asyncio.gather(*self._tasks), 60)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        async with AsyncExitStack() as stack:
            for caller in self._callers:
                stack.push_async_callback(caller.close)

    @property
    def carts(self) -> list[str]:
        """The names of all carts in use."""
        return [*(writer.cart for writer in self.writers), HOT_CART]
