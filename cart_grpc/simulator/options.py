"""The simulator's command-line options."""

import argparse
import re
from pathlib import Path
from typing import Final

from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.server import SimulatorConfig, check_address

_UNITS: Final = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h)")
_PROBABILITIES: Final = {
    "slow": "that a call takes --slow-latency",
    "lost_before_effect": "that a call fails and has no effect",
    "lost_after_effect": "that a call takes effect and then fails",
    "duplicated": "that a message arrives a second time, --duplicate-delay later",
    "refused": "of an error that says the request can never succeed",
    "out_of_stock": "that a hold is rejected",
    "garbage": "that the answer is nonsense",
    "throttled": "of being asked to come back later",
}


def add_options(command: argparse.ArgumentParser, *, listen_option: str, latency: str) -> None:
    """Add them to a command; `listen_option` is what the gRPC address is called, `latency` the default."""
    command.add_argument(
        listen_option,
        dest="simulator_listen",
        default="127.0.0.1:50061",
        metavar="HOST:PORT",
        help="where the simulator listens for gRPC (default: %(default)s)",
    )
    command.add_argument("--http-listen", metavar="HOST:PORT", help="and for HTTP (default: the port after that)")
    command.add_argument(
        "--latency", default=latency, metavar="TIME", help="how long a call takes: 30s, 200ms (default: %(default)s)"
    )
    command.add_argument("--stock", action="append", default=[], metavar="SKU=N", help="how much there is of a sku")
    command.add_argument(
        "--default-stock", type=int, default=1_000_000, metavar="N", help="and of any other (default: %(default)s)"
    )
    command.add_argument("--journal", type=Path, metavar="FILE", help="remember across restarts, in this file")
    command.add_argument("--seed", type=int, metavar="N", help="repeat the faults of an earlier run")
    command.add_argument("--down", action="store_true", help="fail every call, until SetFaults says otherwise")
    command.add_argument("--slow-latency", default="30s", metavar="TIME", help="default: %(default)s")
    command.add_argument("--duplicate-delay", default="1s", metavar="TIME", help="default: %(default)s")
    for name, meaning in _PROBABILITIES.items():
        option = f"--{name.replace('_', '-')}"
        command.add_argument(option, type=float, default=0.0, metavar="P", help=f"probability {meaning}, 0 to 1")


def to_config(parsed: argparse.Namespace) -> SimulatorConfig:
    """The configuration that the options ask for. Raises ValueError, which says what would be right."""
    host, port = check_address(parsed.simulator_listen)
    if port == 65535 and not parsed.http_listen:
        raise ValueError("there is no port after 65535: --http-listen should say where to listen for HTTP")
    if parsed.default_stock < 0:
        raise ValueError(f"--default-stock should be 0 or more, and not {parsed.default_stock}")
    faults = Faults(
        latency=to_microseconds(parsed.latency),
        slow_latency=to_microseconds(parsed.slow_latency),
        duplicate_delay=to_microseconds(parsed.duplicate_delay),
        down=parsed.down,
        **{name: getattr(parsed, name) for name in _PROBABILITIES},
    )
    return SimulatorConfig(
        listen=parsed.simulator_listen,
        http_listen=parsed.http_listen or f"{host}:{port + 1 if port else 0}",
        faults=faults,
        default_stock=parsed.default_stock,
        stock=dict(map(_to_stock, parsed.stock)),
        seed=parsed.seed,
        journal=parsed.journal,
    )


def to_microseconds(text: str) -> int:
    """The microseconds in `1.5s`, `200ms`, `2m`. Raises ValueError, which says what would be right."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} should be a time such as 30s, 200ms or 2m")
    return int(float(match.group(1)) * _UNITS[match.group(2)])


def _to_stock(text: str) -> tuple[str, int]:
    sku, _, quantity = text.rpartition("=")
    if not sku or not (quantity.isascii() and quantity.isdigit()):
        raise ValueError(f"--stock {text!r} should be SKU=N")
    return sku, int(quantity)
