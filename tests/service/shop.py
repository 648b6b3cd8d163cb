"""A shop's calls about carts and checkouts, each user with carts of their own, on one server for many tests."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cartgrpc.v1 import cart_pb2
from cartgrpc.v1 import cart_service_pb2 as pb
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from cart_grpc import app
from cart_grpc.settings import Settings
from cart_grpc.simulator.simulator import Simulator
from tests.gate import Gate
from tests.service.conftest import Replica

State = cart_pb2.Checkout.State
Shown = cart_pb2.Reservation.State
WAIT = Duration(seconds=10)
HOUR = Duration(seconds=3600)
_numbers = itertools.count()


@dataclass
class ShiftedClock:
    """The Reservation API's clock: this process's, and `shift_us` more."""

    shift_us: int = 0

    def __call__(self) -> int:
        return app.clock() + self.shift_us


@dataclass(frozen=True)
class Shop:
    """A server, its operators' stub, its settings, and its Reservation API with 10 units of each sku."""

    replica: Replica
    admin: Any
    settings: Settings
    simulator: Simulator
    clock: ShiftedClock
    gate: Gate

    def user(self) -> "Customer":
        """A new user."""
        return Customer(self, f"users/shopper-{next(_numbers)}")

    async def run_sql(self, sql: str, **values: Any) -> None:
        """Run one statement in the database."""
        url = self.settings.database_url.get_secret_value()
        scheme = "sqlite+aiosqlite" if self.settings.is_embedded else "postgresql+asyncpg"
        engine = create_async_engine(f"{scheme}{url[url.index(':') :]}")
        async with engine.begin() as connection:
            await connection.execute(text(sql), values)
        await engine.dispose()


@dataclass(frozen=True)
class Customer:
    """One user's calls. The cart is `carts/default`. Skus are the user's own, so tests do not share stock."""

    shop: Shop
    name: str
    stub: Any = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stub", self.shop.replica.stub)

    @property
    def cart(self) -> str:
        return f"{self.name}/carts/default"

    def sku(self, label: str = "beans") -> str:
        return f"{label}-of-{self.name.removeprefix('users/')}"

    async def fill(self, *labels: str, quantity: int = 2, price: int = 500) -> cart_pb2.Cart:
        """Add an item for each label, and return the cart once each is reserved or rejected."""
        price_message = cart_pb2.Money(currency_code="EUR", minor_units=price)
        for label in labels or ("beans",):
            item = cart_pb2.Item(sku=self.sku(label), quantity=quantity, unit_price=price_message)
            await self.stub.AddItem(pb.AddItemRequest(parent=self.cart, item=item, max_wait=WAIT), timeout=15)
        return await self.get_cart()

    async def get_cart(self) -> cart_pb2.Cart:
        return await self.shop.replica.get(self.cart)

    async def begin(self, **fields: Any) -> cart_pb2.Checkout:
        request = pb.BeginCheckoutRequest(name=self.cart, **{"max_wait": WAIT, **fields})
        checkout: cart_pb2.Checkout = (await self.stub.BeginCheckout(request, timeout=15)).checkout
        return checkout

    async def complete(self, name: str, order: str = "order-1", **fields: Any) -> cart_pb2.Checkout:
        request = pb.CompleteCheckoutRequest(name=name, order_reference=order, **{"max_wait": WAIT, **fields})
        checkout: cart_pb2.Checkout = (await self.stub.CompleteCheckout(request, timeout=15)).checkout
        return checkout

    async def cancel(self, name: str, **fields: Any) -> cart_pb2.Checkout:
        request = pb.CancelCheckoutRequest(name=name, **{"max_wait": WAIT, **fields})
        checkout: cart_pb2.Checkout = (await self.stub.CancelCheckout(request, timeout=15)).checkout
        return checkout

    async def get(self, name: str) -> cart_pb2.Checkout:
        checkout: cart_pb2.Checkout = (
            await self.stub.GetCheckout(pb.GetCheckoutRequest(name=name), timeout=10)
        ).checkout
        return checkout

    async def list(self, **fields: Any) -> pb.ListCheckoutsResponse:
        request = pb.ListCheckoutsRequest(parent=self.name, **fields)
        listed: pb.ListCheckoutsResponse = await self.stub.ListCheckouts(request, timeout=10)
        return listed

    async def eventually(self, name: str, holds: Callable[[cart_pb2.Checkout], bool]) -> cart_pb2.Checkout:
        """Read a checkout until `holds` is true for it. Fails after 20 seconds."""
        seen: cart_pb2.Checkout | None = None
        for _ in range(1_000):
            seen = await self.get(name)
            if holds(seen):
                return seen
            await asyncio.sleep(0.02)
        raise AssertionError(f"the condition never became true for {seen}")
