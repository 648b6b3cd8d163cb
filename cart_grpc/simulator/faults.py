"""What goes wrong, how often, and what is drawn of it for one message."""

import math
import random
from dataclasses import dataclass, fields
from enum import Enum
from typing import Final

_MAX_DELAY: Final = 24 * 3600 * 1_000_000


class Nonsense(Enum):
    """An answer that cannot be believed."""

    ANOTHER_ID = 1
    ANOTHER_REVISION = 2
    NO_STATE = 3
    NO_MESSAGE = 4


@dataclass(frozen=True, slots=True)
class Faults:
    """As the message Faults of `cartgrpc/simulator/v1/simulator.proto`; durations in microseconds.

    Raises ValueError for a probability outside 0 to 1 and a duration outside 0 to a day.
    """

    latency: int = 0
    slow: float = 0.0
    slow_latency: int = 30_000_000
    lost_before_effect: float = 0.0
    lost_after_effect: float = 0.0
    duplicated: float = 0.0
    duplicate_delay: int = 0
    refused: float = 0.0
    out_of_stock: float = 0.0
    garbage: float = 0.0
    throttled: float = 0.0
    down: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is float and not (math.isfinite(value) and 0 <= value <= 1):
                raise ValueError(f"{field.name} is a probability, 0 to 1, and not {value}")
            if field.type is int and not 0 <= value <= _MAX_DELAY:
                raise ValueError(f"{field.name} is 0 to 24 hours, and not {value} microseconds")


@dataclass(frozen=True, slots=True)
class Fate:
    """What happens to one message; `delay` and `duplicate_after` (None: not at all) in microseconds."""

    delay: int
    duplicate_after: int | None
    throttled: bool
    refused: bool
    lost_before_effect: bool
    lost_after_effect: bool
    sold_out: bool
    nonsense: Nonsense | None


def draw(faults: Faults, numbers: random.Random) -> Fate:
    """Return the fate of one message. Always draws as many numbers, so that a seed repeats a whole run."""
    slow, duplicated, throttled, refused, before, after, sold_out, garbage, kind = (numbers.random() for _ in range(9))
    return Fate(
        delay=faults.slow_latency if slow < faults.slow else faults.latency,
        duplicate_after=faults.duplicate_delay if duplicated < faults.duplicated else None,
        throttled=throttled < faults.throttled,
        refused=refused < faults.refused,
        lost_before_effect=before < faults.lost_before_effect,
        lost_after_effect=after < faults.lost_after_effect,
        sold_out=sold_out < faults.out_of_stock,
        nonsense=Nonsense(1 + int(kind * len(Nonsense))) if garbage < faults.garbage else None,
    )
