"""The simulator's command-line options."""

import argparse
from pathlib import Path
from typing import Final

from cart_grpc.arguments import duration
from cart_grpc.simulator.access import Access
from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.server import SimulatorConfig, check_address
from cart_grpc.tls.reloaded_files import NamedFile

_PROBABILITIES: Final = {
    "slow": "that a call takes --slow-latency instead of --latency",
    "lost_before_effect": "that a call fails and has no effect",
    "lost_after_effect": "that a call takes effect and then fails",
    "duplicated": "that a message arrives a second time, --duplicate-delay later",
    "refused": "that a call fails as one that can never succeed",
    "out_of_stock": "that a hold is rejected as out of stock",
    "garbage": "that a call takes effect and its response is garbage",
    "throttled": "that a call fails as one too many, with a retry delay",
}

_FILES: Final = {
    "--tls-cert-file": "PEM file with a certificate chain: the simulator then speaks TLS",
    "--tls-key-file": "PEM file with the private key of --tls-cert-file",
    "--client-ca-file": "PEM file with the authorities of the certificates that callers must show",
    "--token-file": "file with the bearer tokens that are valid, one a line: every call must have one",
}


def add_options(command: argparse.ArgumentParser, *, listen_option: str, latency: str) -> None:
    """Add the options to `command`. `listen_option` names the option for the gRPC address; `latency` is its default."""
    command.add_argument(
        listen_option,
        dest="simulator_listen",
        default="127.0.0.1:50061",
        metavar="HOST:PORT",
        help="address of the simulator for gRPC (default: %(default)s)",
    )
    command.add_argument("--http-listen", metavar="HOST:PORT", help="address for HTTP (default: the next port)")
    command.add_argument(
        "--latency",
        type=duration,
        default=latency,
        metavar="TIME",
        help="duration of each call, such as 30s or 200ms (default: %(default)s)",
    )
    command.add_argument(
        "--stock", action="append", default=[], metavar="SKU=N", help="number of units of a sku; may be repeated"
    )
    command.add_argument(
        "--default-stock",
        type=int,
        default=1_000_000,
        metavar="N",
        help="number of units of every other sku (default: %(default)s)",
    )
    for option, meaning in _FILES.items():
        command.add_argument(option, metavar="FILE", help=meaning)
    command.add_argument("--journal", type=Path, metavar="FILE", help="file that keeps the state across restarts")
    command.add_argument("--seed", type=int, metavar="N", help="random seed: the same seed draws the same faults")
    command.add_argument("--down", action="store_true", help="fail every call until SetFaults changes that")
    command.add_argument(
        "--no-batches", action="store_true", help="offer only single calls until SetFaults changes that"
    )
    command.add_argument(
        "--slow-latency",
        type=duration,
        default="30s",
        metavar="TIME",
        help="duration of a slow call (default: %(default)s)",
    )
    command.add_argument(
        "--duplicate-delay",
        type=duration,
        default="1s",
        metavar="TIME",
        help="delay of the second arrival (default: %(default)s)",
    )
    for name, meaning in _PROBABILITIES.items():
        option = f"--{name.replace('_', '-')}"
        command.add_argument(option, type=float, default=0.0, metavar="P", help=f"probability {meaning}, 0 to 1")


def to_config(parsed: argparse.Namespace) -> SimulatorConfig:
    """Return the configuration that the options describe. Raises ValueError with the accepted values."""
    host, port = check_address(parsed.simulator_listen)
    if port == 65535 and not parsed.http_listen:
        raise ValueError("there is no port after 65535: set --http-listen")
    if parsed.default_stock < 0:
        raise ValueError(f"--default-stock must be 0 or more, not {parsed.default_stock}")
    faults = Faults(
        latency_us=parsed.latency,
        slow_latency_us=parsed.slow_latency,
        duplicate_delay_us=parsed.duplicate_delay,
        down=parsed.down,
        no_batches=parsed.no_batches,
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
        access=_to_access(parsed),
    )


def _to_access(parsed: argparse.Namespace) -> Access:
    paths = {option: getattr(parsed, option[2:].replace("-", "_")) for option in _FILES}
    files = [NamedFile(option, path) if path else None for option, path in paths.items()]
    certificate, key, authorities, tokens = files
    if (certificate is None) != (key is None):
        raise ValueError("--tls-cert-file and --tls-key-file need each other")
    if authorities and not certificate:
        raise ValueError("--client-ca-file needs --tls-cert-file and --tls-key-file")
    return Access(certificate, key, authorities, tokens)


def _to_stock(text: str) -> tuple[str, int]:
    sku, _, quantity = text.rpartition("=")
    if not sku or not (quantity.isascii() and quantity.isdigit()):
        raise ValueError(f"--stock {text!r} must be SKU=N")
    return sku, int(quantity)
