"""The transports that the probe's tests run over."""

from tests.reservations.conftest import hostile, transport

__all__ = ["hostile", "transport"]
