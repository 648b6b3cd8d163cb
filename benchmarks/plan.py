"""How much is measured."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.programs import Json, World

IN_FLIGHT = 64
CARTS, SKUS = 1_000, 20


@dataclass(frozen=True)
class Plan:
    """How much of it: rounds of `seconds`, `rows` where it is about many."""

    rounds: int = 3
    seconds: float = 0.8
    rows: int = 100_000


# Measures something on `sqlite` or `postgresql`; None where it does not exist there.
Section = Callable[[World, str, Plan], Json | None]
