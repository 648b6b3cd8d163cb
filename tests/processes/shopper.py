"""A customer who fills a guest's cart, logs in and buys, from two devices at the same time."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cartgrpc.v1 import cart_pb2, cart_service_pb2

from tests.processes.caller import Caller

GOODS = ("tea", "cups", "spoons")
State = cart_pb2.Checkout.State
SOLD = (State.STATE_COMPLETING, State.STATE_COMPLETED)


@dataclass(frozen=True)
class Sale:
    """A sale that was acknowledged: the quantities by sku."""

    order_reference: str
    quantities: Counter[str]


class Shopper:
    """The only writer of two carts, so it knows their items and its sales, which are by the name of their checkout.

    Both devices make each decisive call at the same time, each under its own request_id.
    """

    def __init__(self, name: str, devices: tuple[Caller, Caller]) -> None:
        self.users = (f"users/{name}", f"users/{name}-guest")
        self.cart, self.guest_cart = (f"{user}/carts/default" for user in self.users)
        self.quantities: dict[str, Counter[str]] = {self.cart: Counter(), self.guest_cart: Counter()}
        self.sales: dict[str, Sale] = {}
        self.numbers = devices[0].numbers
        self._devices = devices

    async def step(self) -> None:
        """Fill the carts, merge them, and sell the result. Some checkouts are cancelled first, some completed again."""
        await self.add(self.guest_cart)
        if self.numbers.random() < 0.5:
            await self.add(self.cart)
        await self._add_and_merge()
        checkout = await self.begin()
        if self.numbers.random() < 0.4:
            await self._cancel(checkout)
            checkout = await self.begin()
        await self._complete(checkout)
        if self.numbers.random() < 0.5:
            await self._complete_again(self.numbers.choice(sorted(self.sales)))

    async def add(self, cart: str) -> None:
        """Add an item. A cart that was sold or merged begins anew without items."""
        sku, quantity = self.numbers.choice(GOODS), self.numbers.randint(1, 3)
        request = cart_service_pb2.AddItemRequest(parent=cart, item=cart_pb2.Item(sku=sku, quantity=quantity))
        answer = await self._devices[0].call("AddItem", request, cart_service_pb2.AddItemResponse)
        self.quantities[cart][sku] += quantity
        found = answer.item.quantity
        assert found == self.quantities[cart][sku], f"{answer}, but {cart} should have {self.quantities[cart]}"

    async def _add_and_merge(self) -> None:
        """Merge the guest's cart, often while the call for its newest item is on its way."""
        await self.add(self.guest_cart)
        request = cart_service_pb2.MergeCartsRequest(name=self.cart, source=self.guest_cart)
        merged = await self._call_twice("MergeCarts", request, cart_service_pb2.MergeCartsResponse)
        self.quantities[self.cart] += self.quantities[self.guest_cart]
        self.quantities[self.guest_cart].clear()
        for each in merged:
            assert not each.adjustments, f"nothing should be adjusted: {each}"
            self._check(each.cart.items)

    async def begin(self) -> str:
        """Begin a checkout once every item is held. Return its name once it is ready."""
        while (await self._devices[0].get(self.cart)).reconciling:
            await asyncio.sleep(0.05)
        request = cart_service_pb2.BeginCheckoutRequest(name=self.cart)
        first, second = await self._call_twice("BeginCheckout", request, cart_service_pb2.BeginCheckoutResponse)
        assert first.checkout.name == second.checkout.name, f"two checkouts began: {first}, {second}"
        while not (checkout := await self.read(first.checkout.name)).ready:
            assert checkout.state == State.STATE_OPEN, f"it was neither cancelled nor completed: {checkout}"
            await asyncio.sleep(0.05)
        self._check(checkout.items)
        return checkout.name

    async def _cancel(self, name: str) -> None:
        request = cart_service_pb2.CancelCheckoutRequest(name=name)
        for answer in await self._call_twice("CancelCheckout", request, cart_service_pb2.CancelCheckoutResponse):
            assert answer.checkout.state == State.STATE_CANCELLED, f"it should be cancelled: {answer}"

    async def _complete(self, name: str) -> None:
        sale = Sale(f'order "{len(self.sales)}" of {self.cart}', self.quantities[self.cart])
        await self._sell(name, sale)
        self.sales[name] = sale
        self.quantities[self.cart] = Counter()

    async def _complete_again(self, name: str) -> None:
        await self._sell(name, self.sales[name])

    async def _sell(self, name: str, sale: Sale) -> None:
        request = cart_service_pb2.CompleteCheckoutRequest(name=name, order_reference=sale.order_reference)
        for answer in await self._call_twice("CompleteCheckout", request, cart_service_pb2.CompleteCheckoutResponse):
            found = answer.checkout
            sold = Counter({item.sku: item.quantity for item in found.items})
            assert found.state in SOLD, f"{sale} should be sold: {answer}"
            assert sold == sale.quantities, f"{sale} should be sold: {answer}"

    async def read(self, name: str) -> cart_pb2.Checkout:
        """Read a checkout."""
        raw = cart_service_pb2.GetCheckoutRequest(name=name).SerializeToString()
        reply = await self._devices[0].send(self.cart, "GetCheckout", raw)
        return cart_service_pb2.GetCheckoutResponse.FromString(reply).checkout

    async def _call_twice(self, method: str, request: Any, response: Any) -> list[Any]:
        requests = [request, type(request).FromString(request.SerializeToString())]
        pairs = zip(self._devices, requests, strict=True)
        return await asyncio.gather(*(device.call(method, each, response, cart=self.cart) for device, each in pairs))

    def _check(self, items: Iterable[cart_pb2.Item]) -> None:
        found = {item.sku: item.quantity for item in items}
        assert found == self.quantities[self.cart], f"{self.cart} shows {found}, not {self.quantities[self.cart]}"
