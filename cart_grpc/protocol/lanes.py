"""Lanes: the two groups in which a reconciler claims reservations.

Releases have their own lane, so that holds whose calls hang cannot delay the release of stock.
"""

from typing import Literal

from cart_grpc.protocol.reservation import Disposition, Reservation

Lane = Literal["hold", "release"]
HOLD_LANE: Lane = "hold"
RELEASE_LANE: Lane = "release"


def lane_of(reservation: Reservation) -> Lane:
    """Return the lane in which a reservation is claimed."""
    return RELEASE_LANE if reservation.disposition is Disposition.RELEASE else HOLD_LANE
