"""Runs one suite over both transports: against the simulator, and against a server whose answers a test scripts."""

from collections.abc import AsyncIterator

import pytest

from cart_grpc.reservation_api.api import ReservationApi
from cart_grpc.reservation_api.transports import connect
from tests.reservation_api.hostile import Hostile, hostile_grpc, hostile_http
from tests.simulated_api import api, clock, gate, simulator, simulator_url, transport

__all__ = ["api", "clock", "gate", "simulator", "simulator_url", "transport"]


@pytest.fixture
async def hostile(transport: str) -> AsyncIterator[Hostile]:
    """A server that answers as its script says."""
    async with hostile_grpc() if transport == "grpc" else hostile_http() as server:
        yield server


@pytest.fixture
async def hostile_api(hostile: Hostile) -> AsyncIterator[ReservationApi]:
    """A client of `hostile`."""
    client = connect(hostile.url)
    yield client
    await client.close()
