"""The loops run against a real database and a simulated Reservation API, as in the tests of the whole service."""

from tests.service.conftest import gate, settings, simulator, simulator_url, transport

__all__ = ["gate", "settings", "simulator", "simulator_url", "transport"]
