"""Servers with the demos' services on SQLite, without a reconciler: one for anyone, and one with tokens."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from cartgrpc.compat import eshop_pb2_grpc, hipstershop_pb2, hipstershop_pb2_grpc, oteldemo_pb2, oteldemo_pb2_grpc
from cartgrpc.v1 import cart_service_pb2_grpc

from cart_grpc import app
from cart_grpc.settings import Settings
from tests.authentication.issuer import AUDIENCE, ISSUER, signing_key, write_key_set

MESSAGES: dict[str, Any] = {"oteldemo": oteldemo_pb2, "hipstershop": hipstershop_pb2}
STUBS: dict[str, Any] = {
    "oteldemo": oteldemo_pb2_grpc.CartServiceStub,
    "hipstershop": hipstershop_pb2_grpc.CartServiceStub,
}
ALL = ("oteldemo", "hipstershop", "eshop")
_numbers = itertools.count()


@dataclass(frozen=True)
class Demo:
    """A client of one demo's CartService."""

    name: str
    stub: Any
    messages: Any

    async def add(self, user: str, product: str, quantity: int, **options: Any) -> Any:
        item = self.messages.CartItem(product_id=product, quantity=quantity)
        return await self.stub.AddItem(self.messages.AddItemRequest(user_id=user, item=item), timeout=20, **options)

    async def get(self, user: str, **options: Any) -> Any:
        return await self.stub.GetCart(self.messages.GetCartRequest(user_id=user), timeout=20, **options)

    async def empty(self, user: str, **options: Any) -> Any:
        return await self.stub.EmptyCart(self.messages.EmptyCartRequest(user_id=user), timeout=20, **options)

    async def items(self, user: str) -> list[tuple[str, int]]:
        return [(item.product_id, item.quantity) for item in (await self.get(user)).items]


@dataclass(frozen=True)
class Shop:
    """A server with all demos, and its clients."""

    channel: grpc.aio.Channel
    health_port: int = 0

    def demo(self, name: str) -> Demo:
        return Demo(name, STUBS[name](self.channel), MESSAGES[name])

    @property
    def carts(self) -> Any:
        return cart_service_pb2_grpc.CartServiceStub(self.channel)

    @property
    def basket(self) -> Any:
        return eshop_pb2_grpc.BasketStub(self.channel)


@asynccontextmanager
async def running_shop(settings: Settings) -> AsyncIterator[Shop]:
    async with (
        app.running(settings, serve=True, reconcile=False) as ports,
        grpc.aio.insecure_channel(f"127.0.0.1:{ports.port}") as channel,
    ):
        yield Shop(channel, ports.health_port)


def settings_of(file: Any, **changes: Any) -> Settings:
    defaults: dict[str, Any] = {"listen": "127.0.0.1:0", "lame_duck": 0.0, "shutdown_grace": 0.2, "compat": ALL}
    return Settings(**{**defaults, "database_url": f"sqlite:///{file}", **changes})


@pytest.fixture(scope="session")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    """A server that trusts its callers."""
    changes = {"max_quantity_per_item": 150, "metrics_listen": "127.0.0.1:0", "health_listen": "127.0.0.1:0"}
    settings = settings_of(tmp_path_factory.mktemp("compat") / "cart.db", **changes)
    async with running_shop(settings) as running:
        yield running


@pytest.fixture(scope="session")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    """A server whose callers need tokens."""
    folder = tmp_path_factory.mktemp("guarded")
    write_key_set(folder / "keys.json", signing_key("ES256"))
    tokens = {"token_keys": str(folder / "keys.json"), "token_issuer": ISSUER, "token_audience": AUDIENCE}
    async with running_shop(settings_of(folder / "cart.db", **tokens)) as running:
        yield running


@pytest.fixture(params=["oteldemo", "hipstershop"])
def demo(shop: Shop, request: pytest.FixtureRequest) -> Demo:
    return shop.demo(request.param)


@pytest.fixture
def user() -> str:
    """A user without a cart. Ids of these demos are UUIDs."""
    return f"6a1f0c52-7f0e-4d5c-9d6e-{next(_numbers):012x}"
