"""One suite for both transports: a simulator that is reached over either, and a server that answers nonsense."""

from collections.abc import AsyncIterator

import pytest

from cart_grpc.reservation_api.api import ReservationApi
from cart_grpc.reservation_api.transports import connect
from cart_grpc.simulator.server import SimulatorConfig, SimulatorServer, make_simulator
from cart_grpc.simulator.simulator import Simulator
from tests.gate import Gate
from tests.reservations.hostile import Hostile, hostile_grpc, hostile_http
from tests.reservations.intents import Clock


@pytest.fixture(params=["grpc", "http"])
def transport(request: pytest.FixtureRequest) -> str:
    """Return the transport under test."""
    return str(request.param)


@pytest.fixture
def clock() -> Clock:
    """Return the simulator's clock."""
    return Clock()


@pytest.fixture
async def gate() -> Gate:
    """Return what the simulator's latency waits for."""
    return Gate()


@pytest.fixture
def simulator(clock: Clock, gate: Gate) -> Simulator:
    """Return a simulator without faults and with 10 pieces of each sku."""
    return make_simulator(SimulatorConfig(default_stock=10, seed=1), clock=clock, sleep=gate.sleep)


@pytest.fixture
async def simulator_url(simulator: Simulator, transport: str) -> AsyncIterator[str]:
    """Return where the simulator listens."""
    server = SimulatorServer(simulator)
    ports = await server.start("127.0.0.1:0", "127.0.0.1:0")
    yield f"grpc://127.0.0.1:{ports.grpc}" if transport == "grpc" else f"http://127.0.0.1:{ports.http}"
    await server.stop(0)


@pytest.fixture
async def api(simulator_url: str) -> AsyncIterator[ReservationApi]:
    """Return a client of the simulator."""
    client = connect(simulator_url)
    yield client
    await client.close()


@pytest.fixture
async def hostile(transport: str) -> AsyncIterator[Hostile]:
    """Return a server that answers what it is told to."""
    async with hostile_grpc() if transport == "grpc" else hostile_http() as server:
        yield server


@pytest.fixture
async def hostile_api(hostile: Hostile) -> AsyncIterator[ReservationApi]:
    """Return a client of the server that answers what it is told to."""
    client = connect(hostile.url)
    yield client
    await client.close()
