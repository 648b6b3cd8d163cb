"""The transports that the probe's tests run over."""

from tests.reservation_api.conftest import hostile
from tests.simulated_api import transport

__all__ = ["hostile", "transport"]
