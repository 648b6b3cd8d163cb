"""Callers that write to carts of their own, share one, or buy."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Protocol

from cartgrpc.v1 import cart_pb2, cart_service_pb2

from tests.processes.caller import Caller, History
from tests.processes.harness import Replicas
from tests.processes.shopper import Shopper

State = cart_pb2.Reservation.State
# The only sku that may be out of stock.
SCARCE = "scarce"
SKUS = ("beans", "filters", "grinder", "kettle", "scale", SCARCE)
HOT_CART = "users/u0/carts/hot"
HOT_SKU = "hot-beans"


class Stepper(Protocol):
    """Makes calls, one step after the other."""

    numbers: random.Random

    async def step(self) -> None: ...


class CartWriter:
    """The only writer of one cart, so it knows the cart's items."""

    def __init__(self, caller: Caller, cart: str) -> None:
        self.cart = cart
        self._items: set[str] = set()
        self._caller = caller
        self.numbers = caller.numbers

    async def step(self) -> None:
        """Make one call of a random kind."""
        kinds = (self._add, self._update, self._remove, self._get, self._retry, self._clear, self._delete)
        (kind,) = self.numbers.choices(kinds, (45, 18, 16, 12, 6, 2, 1))
        await (kind() if self._items else self._add())

    async def _add(self) -> None:
        sku, quantity = self.numbers.choice(SKUS), self.numbers.randint(1, 4)
        options = {"size": "large"} if self.numbers.random() < 0.2 else {}
        item = cart_pb2.Item(sku=sku, options=options, quantity=quantity)
        request = cart_service_pb2.AddItemRequest(parent=self.cart, item=item)
        answer = (await self._caller.call("AddItem", request, cart_service_pb2.AddItemResponse)).item
        self._items.add(answer.name)
        self._check(answer)

    async def _update(self) -> None:
        item = cart_pb2.Item(name=self._pick(), quantity=self.numbers.randint(1, 12))
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
        return self.numbers.choice(sorted(self._items))

    def _check(self, answer: cart_pb2.Item) -> None:
        refused = answer.reservation.state in (State.STATE_REJECTED, State.STATE_EXPIRED)
        assert not refused or answer.sku == SCARCE, f"rejected, but in stock: {answer}"


class Adder:
    """One of several callers that all add to the same item of the same cart."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.numbers = caller.numbers

    async def step(self) -> None:
        item = cart_pb2.Item(sku=HOT_SKU, quantity=self.numbers.randint(1, 3))
        request = cart_service_pb2.AddItemRequest(parent=HOT_CART, item=item)
        await self._caller.call("AddItem", request, cart_service_pb2.AddItemResponse)


class Load:
    """Writers, each with its own cart, adders that share one cart, and shoppers.

    Each pauses for `pause` seconds on average between two steps, because servers, database, simulator and callers share
    two cores.
    """

    def __init__(
        self,
        replicas: Replicas,
        seed: object,
        *,
        writers: int = 8,
        adders: int = 3,
        shoppers: int = 0,
        pause: float = 0.06,
    ) -> None:
        self.history = History()
        self._replicas = replicas
        self._seed = seed
        self._callers: list[Caller] = []
        callers = [self._add_caller(f"caller{number}") for number in range(writers + adders)]
        self.writers = [
            CartWriter(caller, f"users/u{number % 3}/carts/c{number}")
            for number, caller in enumerate(callers[:writers])
        ]
        self.adders = [Adder(caller) for caller in callers[writers:]]
        self.shoppers: list[Shopper] = []
        for number in range(shoppers):
            self.add_shopper(f"shopper{number}")
        self.reader = self._add_caller("reader")
        self._pause = pause
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def _add_caller(self, name: str) -> Caller:
        self._callers.append(Caller(self._replicas, self.history, name, self._seed))
        return self._callers[-1]

    def add_shopper(self, name: str) -> Shopper:
        """Add a shopper. `start` starts those that have been added before."""
        shopper = Shopper(name, (self._add_caller(f"{name}-phone"), self._add_caller(f"{name}-laptop")))
        self.shoppers.append(shopper)
        return shopper

    def start(self) -> None:
        self._stopping.clear()
        steppers: Sequence[Stepper] = [*self.writers, *self.adders, *self.shoppers]
        self._tasks = [asyncio.create_task(self._work(stepper)) for stepper in steppers]

    async def _work(self, stepper: Stepper) -> None:
        while not self._stopping.is_set():
            await stepper.step()
            await asyncio.sleep(stepper.numbers.uniform(0, 2 * self._pause))

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
    def sale_count(self) -> int:
        """The number of acknowledged sales."""
        return sum(len(shopper.sales) for shopper in self.shoppers)

    @property
    def carts(self) -> list[str]:
        """The names of all carts in use."""
        return [*(writer.cart for writer in self.writers), HOT_CART, *(shopper.cart for shopper in self.shoppers)]
