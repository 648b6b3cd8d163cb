"""The transports that the probe's tests run over."""

from tests.reservations.conftest import transport

__all__ = ["transport"]
