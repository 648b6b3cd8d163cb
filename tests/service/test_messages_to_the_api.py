"""Messages to the Reservation API contain no name of a user, a cart or an item: it is a system of another owner."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from cartgrpc.v1 import cart_service_pb2

from cart_grpc.simulator.server import SimulatorServer
from cart_grpc.simulator.simulator import Simulator
from tests.service.conftest import Service

USER, CART_ID, SKU = "alice-4711", "wishes-4712", "espresso-4713"
CART = f"users/{USER}/carts/{CART_ID}"


class Relay:
    """A TCP relay to the simulator that records the bytes of its clients."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.sent = bytearray()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection until either side closes it."""
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(
            self._forward(reader, far_writer, self.sent), self._forward(far_reader, writer, bytearray())
        )

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: bytearray) -> None:
        try:
            while data := await reader.read(65536):
                record += data
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()


@pytest.fixture(params=["grpc", "http", "basic"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def backend() -> str:
    """One database: the messages do not depend on it."""
    return "sqlite"


@pytest.fixture
async def relay(simulator: Simulator, transport: str) -> AsyncIterator[Relay]:
    """A relay in front of the running simulator."""
    server = SimulatorServer(simulator)
    ports = await server.start("127.0.0.1:0", "127.0.0.1:0")
    port = ports.grpc if transport == "grpc" else ports.http
    assert port is not None
    yield Relay(port)
    await server.stop(0)


@pytest.fixture
async def simulator_url(relay: Relay, transport: str) -> AsyncIterator[str]:
    """The URL of the relay."""
    listener = await asyncio.start_server(relay.connect, "127.0.0.1", 0)
    address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    yield {"grpc": f"grpc://{address}", "http": f"http://{address}", "basic": f"basic+http://{address}/basic"}[
        transport
    ]
    listener.close()


async def test_messages_to_the_reservation_api_carry_no_name(service: Service, relay: Relay, transport: str) -> None:
    item = await service.add(sku=SKU, quantity=2, cart=CART)
    await service.settled(CART)
    await service.add(sku=SKU, quantity=1, cart=CART)
    await service.settled(CART)
    await service.stub.RemoveItem(cart_service_pb2.RemoveItemRequest(name=item.name), timeout=10)
    await service.settled(CART)
    effects = service.simulator.effects()
    assert (effects[0].quantity_after, effects[-1].quantity_after) == (2, 0)
    assert SKU.encode() in relay.sent, "the relay sees the messages in plain text"
    for name in (USER, CART_ID, CART, item.name.rpartition("/")[2], item.uid):
        assert name.encode() not in relay.sent
    if transport != "basic":
        # `basic` has no labels; the simulator uses one for itself.
        assert [dict(effect.labels) for effect in effects] == [{}] * len(effects)
