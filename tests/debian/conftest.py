"""The simulator and the settings of the service's tests, for tests with other programs around the service."""

from tests.service.conftest import gate, settings, simulator, simulator_url, transport

__all__ = ["gate", "settings", "simulator", "simulator_url", "transport"]
