"""Units of time. Inside the service, every time is an int in microseconds. Only settings and asyncio use seconds.

A duration's name ends in `_us`. A point in time is microseconds since the Unix epoch, in UTC; its name ends in `_time`,
or is `now`.
"""

from typing import Final

US_PER_SECOND: Final = 1_000_000


def to_us(seconds: float) -> int:
    """Return a duration in whole microseconds, rounded down."""
    return int(seconds * US_PER_SECOND)


def to_seconds(us: int) -> float:
    """Return a duration in seconds."""
    return us / US_PER_SECOND
