"""The demos whose cart service can be served, and the variables that their containers set."""

import re
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

Demo: TypeAlias = Literal["oteldemo", "hipstershop", "eshop"]
PORT: Final = "CART_PORT"
# They begin like our settings, but belong to the demos.
VARIABLES: Final = frozenset({PORT, "CART_ADDR", "CART_SERVICE_ADDR"})
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)


def find_port(variables: Mapping[str, str]) -> int | None:
    """Return the number in CART_PORT. None without one: Kubernetes sets it to a URL for a Service named cart."""
    text = variables.get(PORT, "")
    number = int(text) if _NUMBER.fullmatch(text) else 0
    return number if 0 < number < 65536 else None
