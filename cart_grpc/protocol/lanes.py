"""Lanes: the two groups in which a reconciler claims reservations.

Releases have their own lane, so that holds whose calls hang cannot delay the release of stock.
"""

from typing import Literal

Lane = Literal["hold", "release"]
HOLD_LANE: Lane = "hold"
RELEASE_LANE: Lane = "release"
