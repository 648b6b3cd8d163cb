"""The command `cart-grpc`: its arguments, and which function runs each subcommand."""

import argparse
import logging
from collections.abc import Callable
from typing import TypeAlias

from cart_grpc import admin_cli, carts_cli, configuration, partner_cli, process, server_cli, terminal
from cart_grpc.configuration import SettingsError
from cart_grpc.database_setup import StartupError
from cart_grpc.probe import options as probe_options
from cart_grpc.settings import Settings
from cart_grpc.simulator import options as simulator_options

log = logging.getLogger(__name__)
# A subcommand: from the settings and its arguments to an exit status.
Run: TypeAlias = Callable[[Settings, argparse.Namespace], int]


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand. Returns the exit status: 0 success, 1 a negative result, 2 wrong use or a failed start.

    Raises SystemExit for wrong use, and if the output cannot be written.
    """
    terminal.prepare()
    warnings: list[str] = []
    try:
        parsed = _parser().parse_args(arguments)
        configured = configuration.load(warn=warnings.append)
        process.start_log(configured.log_level)
        for warning in warnings:
            log.warning(warning)
        status: int = parsed.run(configured, parsed)
    except (SettingsError, StartupError) as error:
        terminal.complain(error)
        return 2
    finally:
        # The parser prints its help without a flush.
        terminal.flush()
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cart-grpc",
        description="A shopping cart over gRPC that reserves its items. `cart-grpc config` lists the settings.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Run | None, description: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=description, description=description)
        command.set_defaults(run=run)
        return command

    serve = add("serve", server_cli.serve, "serve carts and reconcile their reservations")
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
    add("reconcile", server_cli.reconcile, "only reconcile reservations (PostgreSQL)")
    add("migrate", server_cli.migrate, "migrate the database to the schema of this release")
    simulate = add("simulate", partner_cli.simulate, "run a simulated Reservation API")
    simulator_options.add_options(simulate, listen_option="--listen", latency="1s")
    probe = add("probe", partner_cli.probe, "check which rules a Reservation API keeps; exit status 0 if all, 1 if not")
    probe.add_argument(
        "url", nargs="?", help="grpc://HOST:PORT, http://…, basic+http://…; default: CART_RESERVATION_URL"
    )
    probe_options.add_options(probe)
    dev = add("dev", partner_cli.dev, "serve, reconcile and simulate in one process, for development")
    simulator_options.add_options(dev, listen_option="--simulator-listen", latency="3s")
    add("config", server_cli.config, "print every setting with its value and meaning; passwords are hidden")
    health = add("health", server_cli.health, "ask a server whether it is ready; exit status 0 if it is, 1 if not")
    health.add_argument("address", nargs="?", metavar="HOST:PORT", help="default: CART_LISTEN")
    admin_cli.add_commands(add("reservations", None, "for operators: show stuck reservations and end them"))
    carts_cli.add_commands(add("carts", None, "for operators: find carts of all users"))
    return parser


def _worker_count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= 256:
        raise argparse.ArgumentTypeError("must be 1 to 256")
    return count
