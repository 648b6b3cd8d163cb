"""Types of command-line arguments, for `argparse`."""

import argparse

from cart_grpc.units import parse_duration


def duration(text: str) -> int:
    """Return a duration in microseconds; see `parse_duration`. Raises ArgumentTypeError with the valid forms."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None
