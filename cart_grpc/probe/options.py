"""The command-line options of the probe."""

import argparse
from typing import Final

from cart_grpc.arguments import duration
from cart_grpc.probe.session import ProbeConfig
from cart_grpc.protocol.reservation import MIN_TTL_US
from cart_grpc.units import format_duration, to_seconds, to_us

_MIN_STOCK: Final = 5
_SOLD: Final = 5
_MAX_TTL_US: Final = to_us(60)


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
        type=duration,
        default=format_duration(default.ttl_us),
        metavar="TIME",
        help="length of the holds that the probe lets expire; 0 skips those checks (default: %(default)s)",
    )
    command.add_argument("--commit", action="store_true", help=f"also sell {_SOLD} units; this cannot be undone")
    command.add_argument(
        "--timeout",
        type=duration,
        default=format_duration(to_us(default.timeout)),
        metavar="TIME",
        help="deadline of one call (default: %(default)s)",
    )


def to_config(parsed: argparse.Namespace) -> ProbeConfig:
    """Return the configuration that the options describe. Raises ValueError with the accepted values."""
    if not parsed.sku:
        raise ValueError("--sku must not be empty")
    least = _MIN_STOCK + (_SOLD if parsed.commit else 0)
    if parsed.stock is not None and not least <= parsed.stock < 2**31 - 1:
        raise ValueError(f"--stock must be {least} or more{' with --commit' * parsed.commit}, not {parsed.stock}")
    if parsed.ttl and not MIN_TTL_US <= parsed.ttl <= _MAX_TTL_US:
        limits = f"0, or {format_duration(MIN_TTL_US)} to {format_duration(_MAX_TTL_US)}"
        raise ValueError(f"--ttl must be {limits}, not {format_duration(parsed.ttl)}")
    if not parsed.timeout:
        raise ValueError("--timeout must be more than 0s")
    return ProbeConfig(parsed.sku, parsed.stock, parsed.ttl, parsed.commit, to_seconds(parsed.timeout))
