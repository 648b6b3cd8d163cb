"""The length of a benchmark."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.programs import Json, Testbed

IN_FLIGHT = 64
CARTS, SKUS = 1_000, 20


@dataclass(frozen=True)
class Plan:
    """`rounds` rounds of `seconds` each. Sections about large databases use `rows` rows.

    `state` names the state of the code, for a bar in the picture of its parts. `other_python` is the path of another
    interpreter to compare with.
    """

    rounds: int = 3
    seconds: float = 0.8
    rows: int = 100_000
    state: str = ""
    other_python: str = ""


# Measures something on `sqlite` or `postgresql`. Returns None if the database does not support it.
Section = Callable[[Testbed, str, Plan], Json | None]
