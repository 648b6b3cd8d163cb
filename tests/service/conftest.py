"""The whole service over real sockets: server, reconciler, database, and a simulator whose latency tests control."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2, cart_service_pb2_grpc

from cart_grpc import app
from cart_grpc.settings import Settings
from cart_grpc.simulator.server import BoundPorts, SimulatorConfig, SimulatorServer, make_simulator
from cart_grpc.simulator.simulator import Simulator
from tests.databases import shards_of
from tests.gate import Gate

CART = "users/alice/carts/default"


@dataclass(frozen=True)
class Replica:
    """One server and its client."""

    stub: "cart_service_pb2_grpc.CartServiceAsyncStub"
    channel: grpc.aio.Channel
    port: int
    admin_port: int = field(default=0, kw_only=True)
    metrics_port: int = field(default=0, kw_only=True)

    async def add(
        self, sku: str = "espresso-beans", quantity: int = 1, cart: str = CART, **more: object
    ) -> cart_pb2.Item:
        """Call AddItem; return the item."""
        request = cart_service_pb2.AddItemRequest(parent=cart, item=cart_pb2.Item(sku=sku, quantity=quantity))
        for name, value in more.items():
            setattr(request, name, value)
        return (await self.stub.AddItem(request, timeout=10)).item

    async def get(self, cart: str = CART) -> cart_pb2.Cart:
        """Call GetCart; return the cart."""
        return (await self.stub.GetCart(cart_service_pb2.GetCartRequest(name=cart), timeout=10)).cart

    async def eventually(self, holds: Callable[[cart_pb2.Cart], bool], cart: str = CART) -> cart_pb2.Cart:
        """Read the cart until `holds` is true for it, and return it. Fails after 20 seconds."""
        seen = None
        for _ in range(1000):
            seen = await self.get(cart)
            if holds(seen):
                return seen
            await asyncio.sleep(0.02)
        raise AssertionError(f"the condition never became true for {seen}")

    async def settled(self, cart: str = CART) -> cart_pb2.Cart:
        """Read the cart until nothing in it is reconciling, and return it."""
        return await self.eventually(lambda seen: not seen.reconciling, cart)


@dataclass(frozen=True)
class Service(Replica):
    """One replica with its simulator, and the settings to start more replicas on the same database."""

    simulator: Simulator
    simulator_url: str
    gate: Gate
    settings: Settings


@pytest.fixture
async def gate() -> Gate:
    """The simulator's latency: calls pass at once until a test closes the gate."""
    gate = Gate()
    gate.open()
    return gate


@pytest.fixture(params=["grpc"])
def transport(request: pytest.FixtureRequest) -> str:
    """The transport to the Reservation API. Suites about transports override it."""
    return str(request.param)


@pytest.fixture
async def simulator(gate: Gate) -> Simulator:
    """A Reservation API with 10 units of each sku. Each call takes 30 s by a clock that the gate controls."""
    return make_simulator(SimulatorConfig(default_stock=10, latency_us=30_000_000, seed=1), sleep=gate.sleep)


def url_at(ports: BoundPorts, transport: str) -> str:
    """The URL of a simulator for a transport: `grpc`, `http` or `basic`."""
    return {
        "grpc": f"grpc://127.0.0.1:{ports.grpc}",
        "http": f"http://127.0.0.1:{ports.http}",
        "basic": f"basic+http://127.0.0.1:{ports.http}/basic",
    }[transport]


@pytest.fixture
async def simulator_url(simulator: Simulator, transport: str) -> AsyncIterator[str]:
    """The URL of the simulator."""
    server = SimulatorServer(simulator)
    ports = await server.start("127.0.0.1:0", "127.0.0.1:0")
    yield url_at(ports, transport)
    await server.stop(0)


@pytest.fixture
def settings(database_url: str, simulator_url: str) -> Settings:
    """Settings for quick tests: short poll intervals and short backoff."""
    return Settings(
        listen="127.0.0.1:0",
        database_url=database_url,
        database_shards=shards_of(database_url),
        reservation_url=simulator_url,
        reservation_poll_interval=0.05,
        reservation_backoff_max=0.2,
        lame_duck=0.0,
        shutdown_grace=0.5,
    )


@asynccontextmanager
async def running_replica(settings: Settings, *, reconcile: bool = True) -> AsyncIterator[Replica]:
    """A server with its client."""
    async with AsyncExitStack() as stack:
        ports = await stack.enter_async_context(app.running(settings, serve=True, reconcile=reconcile))
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{ports.port}")
        await stack.enter_async_context(channel)
        stub = cart_service_pb2_grpc.CartServiceStub(channel)
        yield Replica(stub, channel, ports.port, admin_port=ports.admin_port, metrics_port=ports.metrics_port)


@pytest.fixture
async def service(settings: Settings, simulator: Simulator, simulator_url: str, gate: Gate) -> AsyncIterator[Service]:
    """The running service."""
    async with running_replica(settings) as replica:
        yield Service(
            replica.stub,
            replica.channel,
            replica.port,
            simulator,
            simulator_url,
            gate,
            settings,
            admin_port=replica.admin_port,
        )
    gate.open()
