"""A simulator that is reached over gRPC and over HTTP: the fixtures of the transports' tests."""

from tests.simulated_api import api, clock, gate, simulator, simulator_url, transport

__all__ = ["api", "clock", "gate", "simulator", "simulator_url", "transport"]
