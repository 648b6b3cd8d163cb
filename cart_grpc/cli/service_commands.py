"""The commands that need the server's packages: their arguments, and the settings that each of them gets."""

import argparse
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from cart_grpc import configuration
from cart_grpc.cli import admin_carts as carts_cli
from cart_grpc.cli import admin_checkouts as checkouts_cli
from cart_grpc.cli import admin_reservations as admin_cli
from cart_grpc.cli import admin_users as users_cli
from cart_grpc.cli import partner as partner_cli
from cart_grpc.cli import server as server_cli
from cart_grpc.cli.command_groups import Commands
from cart_grpc.configuration import SettingsError
from cart_grpc.database_setup import StartupError
from cart_grpc.logs import output
from cart_grpc.probe import options as probe_options
from cart_grpc.settings import Settings
from cart_grpc.simulator import options as simulator_options
from cart_grpc.terminal import complain

# A subcommand: from the settings and its arguments to an exit status.
Run: TypeAlias = Callable[[Settings, argparse.Namespace], int]

# They run until they are stopped, and programs read their log. People read the warnings of all others.
_SERVERS: Final = ("serve", "reconcile", "simulate", "dev")


def add_commands(commands: Commands, descriptions: Mapping[str, str]) -> None:
    """Add every command of the group."""

    def add(name: str, run: Run | None) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=descriptions[name], description=descriptions[name])
        command.set_defaults(start=_start, run=run, is_server=name in _SERVERS)
        return command

    serve = add("serve", server_cli.serve)
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
    add("reconcile", server_cli.reconcile)
    add("migrate", server_cli.migrate)
    simulator_options.add_options(add("simulate", partner_cli.simulate), listen_option="--listen", latency="1s")
    probe = add("probe", partner_cli.probe)
    probe.add_argument(
        "url", nargs="?", help="grpc://HOST:PORT, http://…, basic+http://…; default: CART_RESERVATION_URL"
    )
    probe_options.add_options(probe)
    simulator_options.add_options(add("dev", partner_cli.dev), listen_option="--simulator-listen", latency="3s")
    add("config", server_cli.config)
    health = add("health", server_cli.health)
    health.add_argument(
        "address", nargs="?", metavar="HOST:PORT", help="default: CART_HEALTH_LISTEN, or CART_LISTEN if it is plaintext"
    )
    admin_cli.add_commands(add("reservations", None))
    carts_cli.add_commands(add("carts", None))
    checkouts_cli.add_commands(add("checkouts", None))
    users_cli.add_commands(add("users", None))


def _start(arguments: argparse.Namespace) -> int:
    """Read the settings and run the command with them."""
    warnings: list[str] = []
    try:
        settings = configuration.load(warn=warnings.append)
        is_text = settings.log_format == "auto" and not arguments.is_server
        output.start(settings.log_level, "text" if is_text else settings.log_format)
        for warning in warnings:
            configuration.warn_of_ignored(warning)
        status: int = arguments.run(settings, arguments)
    except (SettingsError, StartupError) as error:
        complain(error)
        return 2
    return status


def _worker_count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= 256:
        raise argparse.ArgumentTypeError("must be 1 to 256")
    return count
