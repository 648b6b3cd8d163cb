"""The faults that the simulator injects, and the random draw for one message."""

import math
import random
from dataclasses import dataclass, fields
from enum import Enum
from typing import Final

_MAX_DELAY_US: Final = 24 * 3600 * 1_000_000


class Garbage(Enum):
    """The kinds of responses that a client must not believe."""

    WRONG_ID = 1
    WRONG_REVISION = 2
    NO_STATE = 3
    NOT_A_MESSAGE = 4


@dataclass(frozen=True, slots=True)
class Faults:
    """The message Faults of `cartgrpc/simulator/v1/simulator.proto`, with durations in microseconds.

    Raises ValueError for a probability outside 0 to 1 and for a duration outside 0 to 24 hours.
    """

    latency_us: int = 0
    slow: float = 0.0
    slow_latency_us: int = 30_000_000
    lost_before_effect: float = 0.0
    lost_after_effect: float = 0.0
    duplicated: float = 0.0
    duplicate_delay_us: int = 0
    refused: float = 0.0
    out_of_stock: float = 0.0
    garbage: float = 0.0
    throttled: float = 0.0
    down: bool = False
    no_batches: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name.removesuffix("_us"), getattr(self, field.name)
            if field.type is float and not (math.isfinite(value) and 0 <= value <= 1):
                raise ValueError(f"{name} must be a probability from 0 to 1, not {value}")
            if field.type is int and not 0 <= value <= _MAX_DELAY_US:
                raise ValueError(f"{name} must be 0 to 24 hours, not {value / 1_000_000:g} seconds")


@dataclass(frozen=True, slots=True)
class Fate:
    """The faults of one message. `duplicate_after_us` is None if the message arrives once."""

    delay_us: int
    duplicate_after_us: int | None
    throttled: bool
    refused: bool
    lost_before_effect: bool
    lost_after_effect: bool
    sold_out: bool
    garbage: Garbage | None


def draw(faults: Faults, numbers: random.Random) -> Fate:
    """Draw the fate of one message. Always draws 9 numbers, so that a seed repeats a whole run."""
    slow, duplicated, throttled, refused, before, after, sold_out, garbage, kind = (numbers.random() for _ in range(9))
    return Fate(
        delay_us=faults.slow_latency_us if slow < faults.slow else faults.latency_us,
        duplicate_after_us=faults.duplicate_delay_us if duplicated < faults.duplicated else None,
        throttled=throttled < faults.throttled,
        refused=refused < faults.refused,
        lost_before_effect=before < faults.lost_before_effect,
        lost_after_effect=after < faults.lost_after_effect,
        sold_out=sold_out < faults.out_of_stock,
        garbage=Garbage(1 + int(kind * len(Garbage))) if garbage < faults.garbage else None,
    )
