"""Lanes: the groups in which a reconciler claims reservations.

Releases and checkouts have lanes of their own, so that holds whose calls hang cannot delay the release of stock or the
sale of a paid cart. `store.schema` has the same conditions in SQL.
"""

from typing import Literal

from cart_grpc.protocol.reservation import Disposition, Intent, Reservation

Lane = Literal["hold", "release", "checkout"]
HOLD_LANE: Lane = "hold"
RELEASE_LANE: Lane = "release"
# Commits, and the holds of a cart that is CHECKING_OUT.
CHECKOUT_LANE: Lane = "checkout"
LANES = (CHECKOUT_LANE, RELEASE_LANE, HOLD_LANE)


def lane_of(reservation: Reservation | Intent) -> Lane:
    """Return the lane in which a reservation is claimed, and its intent sent."""
    if reservation.disposition is Disposition.RELEASE:
        return RELEASE_LANE
    is_of_checkout = reservation.checkout_id or reservation.disposition is Disposition.COMMIT
    return CHECKOUT_LANE if is_of_checkout else HOLD_LANE
