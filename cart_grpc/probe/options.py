"""The command-line options of the probe."""

import argparse
import math
from typing import Final

from cart_grpc.probe.session import ProbeConfig
from cart_grpc.units import to_seconds, to_us

_MIN_STOCK: Final = 5


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options to `command`."""
    default = ProbeConfig()
    command.add_argument("--sku", default=default.sku, help="sku of which to hold a few units (default: %(default)s)")
    command.add_argument(
        "--stock",
        type=int,
        metavar="N",
        help="N units of the sku are available, and only the probe takes them: it then also counts the held units",
    )
    command.add_argument(
        "--ttl",
        type=float,
        default=to_seconds(default.ttl_us),
        metavar="SECONDS",
        help="length of the holds that the probe lets expire; 0 skips those checks (default: %(default)g)",
    )
    command.add_argument("--commit", action="store_true", help="also sell two units; this cannot be undone")
    command.add_argument(
        "--timeout",
        type=float,
        default=default.timeout,
        metavar="SECONDS",
        help="deadline of one call (default: %(default)g)",
    )


def to_config(parsed: argparse.Namespace) -> ProbeConfig:
    """Return the configuration that the options describe. Raises ValueError with the accepted values."""
    if not parsed.sku:
        raise ValueError("--sku must not be empty")
    if parsed.stock is not None and not _MIN_STOCK <= parsed.stock < 2**31 - 1:
        raise ValueError(f"--stock must be {_MIN_STOCK} or more, not {parsed.stock}")
    if not 0 <= parsed.ttl <= 60:
        raise ValueError(f"--ttl must be 0 to 60 seconds, not {parsed.ttl:g}")
    if not (math.isfinite(parsed.timeout) and parsed.timeout > 0):
        raise ValueError(f"--timeout must be more than 0 seconds, not {parsed.timeout:g}")
    return ProbeConfig(parsed.sku, parsed.stock, to_us(parsed.ttl), parsed.commit, parsed.timeout)
