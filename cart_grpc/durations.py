"""Durations as people write them."""

import re

_UNITS = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h)")


def to_microseconds(text: str) -> int:
    """The microseconds in `1.5s`, `200ms`, `2m`. Raises ValueError, which says what would be right."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} should be a time such as 30s, 200ms or 2m")
    return int(float(match.group(1)) * _UNITS[match.group(2)])
