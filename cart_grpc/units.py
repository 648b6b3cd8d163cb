"""Units of time. Inside the service, every time is an int in microseconds. Only settings and asyncio use seconds.

A duration's name ends in `_us`. A point in time is microseconds since the Unix epoch, in UTC; its name ends in `_time`,
or is `now`. People write durations as `90`, `90s`, `1h30m` or `PT15M`.
"""

import re
from typing import Final

US_PER_SECOND: Final = 1_000_000
# Whole microseconds: in floating point, 0.3 ms are 299.99 us.
_UNITS: Final = {
    "w": 604_800 * US_PER_SECOND,
    "d": 86_400 * US_PER_SECOND,
    "h": 3600 * US_PER_SECOND,
    "m": 60 * US_PER_SECOND,
    "s": US_PER_SECOND,
    "ms": 1000,
    "us": 1,
}
_NUMBER: Final = r"([0-9]{1,12})(?:\.([0-9]{1,6}))?"
_PLAIN: Final = re.compile(_NUMBER)
_LETTERS: Final = re.compile("(?=.)" + "".join(f"(?:{_NUMBER}{unit}(?![a-z]))?" for unit in _UNITS))
# ISO 8601. Years and months have no fixed length.
_ISO: Final = re.compile(
    rf"P(?=.)(?:{_NUMBER}W)?(?:{_NUMBER}D)?(?:T(?=.)(?:{_NUMBER}H)?(?:{_NUMBER}M)?(?:{_NUMBER}S)?)?"
)


def to_us(seconds: float) -> int:
    """Return a duration in whole microseconds."""
    return round(seconds * US_PER_SECOND)


def to_seconds(us: int) -> float:
    """Return a duration in seconds."""
    return us / US_PER_SECOND


def parse_duration(text: str) -> int:
    """Return a duration in microseconds: `90` and `90s` are 90 seconds; `500ms`, `1h30m`, `8d`, `PT15M`, `P1DT12H`.

    Raises ValueError, which names the valid forms.
    """
    written = text.strip()
    if _PLAIN.fullmatch(written):
        written += "s"
    match = _LETTERS.fullmatch(written) or _ISO.fullmatch(written)
    if match is None:
        raise ValueError("must be a duration such as 90, 90s, 500ms, 15m, 1h30m, 8d or PT15M")
    parts = match.groups()
    numbers = zip(parts[::2], parts[1::2], _UNITS.values(), strict=False)
    return sum(_multiply(whole, fraction, unit) for whole, fraction, unit in numbers if whole)


def format_duration(us: int) -> str:
    """Return a duration as `parse_duration` reads it: `15m`, `1h30m`, `0.5s`, `0s`."""
    text = ""
    for unit in ("d", "h", "m"):
        count, us = divmod(us, _UNITS[unit])
        text += f"{count}{unit}" if count else ""
    seconds = f"{us // US_PER_SECOND}.{us % US_PER_SECOND:06d}".rstrip("0").rstrip(".")
    return text + (f"{seconds}s" if us or not text else "")


def _multiply(whole: str, fraction: str | None, unit: int) -> int:
    microseconds = (fraction or "").ljust(6, "0")
    return int(whole) * unit + int(microseconds) * unit // US_PER_SECOND
