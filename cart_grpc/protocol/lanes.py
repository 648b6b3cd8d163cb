"""Lanes: which reservations are claimed together.

Releases have a lane of their own, so that holds whose calls hang cannot keep stock from being released.
"""

from typing import Literal

Lane = Literal["hold", "release"]
HOLD_LANE: Lane = "hold"
RELEASE_LANE: Lane = "release"
