"""Fixtures for suites that talk to a simulated Reservation API: the simulator, its clock and latency, and a client.

A suite imports the fixtures that it uses into its conftest.py.
"""

from collections.abc import AsyncIterator

import pytest

from cart_grpc.protocol.reservation import Intent
from cart_grpc.reservation_api.api import UNRECORDED, Answer, Attempt, NoAnswerError, ReservationApi
from cart_grpc.reservation_api.transports import connect
from cart_grpc.simulator.server import SimulatorConfig, SimulatorServer, make_simulator
from cart_grpc.simulator.simulator import Simulator
from tests.gate import Gate
from tests.intents import Clock


@pytest.fixture(params=["grpc", "http"])
def transport(request: pytest.FixtureRequest) -> str:
    """The transport under test."""
    return str(request.param)


@pytest.fixture
def clock() -> Clock:
    """The simulator's clock."""
    return Clock()


@pytest.fixture
async def gate() -> Gate:
    """The simulator's latency: each call takes until the test opens this gate."""
    return Gate()


@pytest.fixture
def simulator(clock: Clock, gate: Gate) -> Simulator:
    """A simulator without faults and with 10 units of each sku."""
    return make_simulator(SimulatorConfig(default_stock=10, seed=1), clock=clock, sleep=gate.sleep)


@pytest.fixture
async def simulator_url(simulator: Simulator, transport: str) -> AsyncIterator[str]:
    """The URL that the simulator listens on, for this transport."""
    server = SimulatorServer(simulator)
    ports = await server.start("127.0.0.1:0", "127.0.0.1:0")
    yield f"grpc://127.0.0.1:{ports.grpc}" if transport == "grpc" else f"http://127.0.0.1:{ports.http}"
    await server.stop(0)


@pytest.fixture
async def api(simulator_url: str) -> AsyncIterator[ReservationApi]:
    """A client of the simulator."""
    client = connect(simulator_url)
    yield client
    await client.close()


async def no_answer(api: ReservationApi, intent: Intent, *, timeout: float = 5) -> NoAnswerError:
    """Apply `intent` and return the NoAnswerError that the call must raise. `timeout` in seconds."""
    with pytest.raises(NoAnswerError) as caught:
        await api.apply(intent, timeout=timeout)
    return caught.value


class BatchesOfOne:
    """A ReservationApi that sends each intent as a batch, so that a suite of single calls proves the same of batches.

    An entry without an outcome raises NoAnswerError("LOST").
    """

    def __init__(self, api: ReservationApi) -> None:
        self.max_batch = api.max_batch
        self.apply_batch = api.apply_batch
        self.close = api.close

    async def apply(self, intent: Intent, *, timeout: float, attempt: Attempt = UNRECORDED) -> Answer:
        """See ReservationApi.apply."""
        outcomes = [each async for applied in self.apply_batch([intent], timeout=timeout) for each in applied]
        if not outcomes:
            raise NoAnswerError("LOST", "the batch has no result for this intent")
        [(_, outcome)] = outcomes
        if isinstance(outcome, NoAnswerError):
            raise outcome
        return outcome
