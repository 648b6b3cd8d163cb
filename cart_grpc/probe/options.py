"""The probe's command-line options."""

import argparse
import math

from cart_grpc.probe.calls import SECOND
from cart_grpc.probe.session import ProbeConfig

_LEAST_STOCK = 5


def add_options(command: argparse.ArgumentParser) -> None:
    """Add them to a command."""
    default = ProbeConfig()
    command.add_argument("--sku", default=default.sku, help="what to hold a few pieces of (default: %(default)s)")
    command.add_argument(
        "--stock",
        type=int,
        metavar="N",
        help="how many pieces of it are free, if nobody else takes any: what is really held is counted then",
    )
    command.add_argument(
        "--ttl",
        type=float,
        default=default.ttl / SECOND,
        metavar="SECONDS",
        help="how long to ask for a hold that is let run out; 0: none is (default: %(default)g)",
    )
    command.add_argument("--commit", action="store_true", help="sell two pieces too, which cannot be taken back")
    command.add_argument(
        "--timeout", type=float, default=default.timeout, metavar="SECONDS", help="for one call (default: %(default)g)"
    )


def to_config(parsed: argparse.Namespace) -> ProbeConfig:
    """The configuration that the options ask for. Raises ValueError, which says what would be right."""
    if not parsed.sku:
        raise ValueError("--sku should name a sku")
    if parsed.stock is not None and not _LEAST_STOCK <= parsed.stock < 2**31 - 1:
        raise ValueError(f"--stock should be {_LEAST_STOCK} or more, and not {parsed.stock}")
    if not 0 <= parsed.ttl <= 60:
        raise ValueError(f"--ttl should be 0 to 60 seconds, and not {parsed.ttl:g}")
    if not (math.isfinite(parsed.timeout) and parsed.timeout > 0):
        raise ValueError(f"--timeout should be more than 0 seconds, and not {parsed.timeout:g}")
    return ProbeConfig(parsed.sku, parsed.stock, int(parsed.ttl * SECOND), parsed.commit, parsed.timeout)
