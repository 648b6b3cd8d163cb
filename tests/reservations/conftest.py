"""Fixtures of the simulator's and the probe's tests."""

from collections.abc import AsyncIterator

import pytest

from tests.reservation_api.hostile import Hostile, hostile_grpc, hostile_http
from tests.simulated_api import api, clock, gate, simulator, simulator_url, transport

__all__ = ["api", "clock", "gate", "simulator", "simulator_url", "transport"]


@pytest.fixture
async def hostile(transport: str) -> AsyncIterator[Hostile]:
    """A server that answers as its script says."""
    async with hostile_grpc() if transport == "grpc" else hostile_http() as server:
        yield server
