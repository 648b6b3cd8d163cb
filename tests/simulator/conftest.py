"""A simulator that is reached over gRPC and over HTTP, with single calls and with batches."""

from collections.abc import AsyncIterator

import pytest

from cart_grpc.reservation_api.api import ReservationApi
from cart_grpc.reservation_api.transports import connect
from tests.simulated_api import BatchesOfOne, clock, gate, simulator, simulator_url, transport

__all__ = ["clock", "gate", "simulator", "simulator_url", "transport"]


@pytest.fixture(params=["single", "batch"])
async def api(simulator_url: str, request: pytest.FixtureRequest) -> AsyncIterator[ReservationApi]:
    """A client of the simulator."""
    client = connect(simulator_url)
    yield BatchesOfOne(client) if request.param == "batch" else client
    await client.close()
