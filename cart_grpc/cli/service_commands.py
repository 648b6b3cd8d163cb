"""The commands that run the service and its partners, and their arguments."""

import argparse
from collections.abc import Mapping
from functools import partial

from cart_grpc.cli import partner as partner_cli
from cart_grpc.cli import server as server_cli
from cart_grpc.cli import with_settings
from cart_grpc.cli.command_groups import Commands
from cart_grpc.probe import options as probe_options
from cart_grpc.simulator import options as simulator_options


def add_commands(commands: Commands, descriptions: Mapping[str, str]) -> None:
    """Add every command of the group."""
    add = partial(with_settings.add, commands, descriptions)
    serve = add("serve", server_cli.serve, is_server=True)
    serve.add_argument(
        "--no-reconciler", action="store_true", help="only serve; run `cart-grpc reconcile` beside it (PostgreSQL)"
    )
    serve.add_argument(
        "--workers",
        type=_worker_count,
        default=1,
        metavar="N",
        help="serve with N processes on one port, 1 to 256 (PostgreSQL, Linux)",
    )
    add("reconcile", server_cli.reconcile, is_server=True)
    migrate = add("migrate", server_cli.migrate)
    migrate.add_argument("--dry-run", action="store_true", help="only print which migrations the database lacks")
    simulate = add("simulate", partner_cli.simulate, is_server=True)
    simulator_options.add_options(simulate, listen_option="--listen", latency="1s")
    probe = add("probe", partner_cli.probe)
    probe.add_argument(
        "url", nargs="?", help="grpc://HOST:PORT, http://…, basic+http://…; default: CART_RESERVATION_URL"
    )
    probe_options.add_options(probe)
    dev = add("dev", partner_cli.dev, is_server=True)
    simulator_options.add_options(dev, listen_option="--simulator-listen", latency="3s")
    add("config", server_cli.config)


def _worker_count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= 256:
        raise argparse.ArgumentTypeError("must be 1 to 256")
    return count
