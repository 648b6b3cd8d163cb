"""The program `cart-grpc`: its subcommands, and the extra of the package that each of them needs.

A command imports only its own group, so that `cart-grpc cart` starts without the server.
"""

import argparse
import os
import sys
from importlib import import_module
from importlib.metadata import version

from cart_grpc import terminal
from cart_grpc.cli.command_groups import GROUPS


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand. Returns the exit status: 0 success, 1 a negative result, 2 wrong use or a failed start.

    Raises SystemExit for wrong use, and if the output cannot be written.
    """
    terminal.prepare()
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    given = sys.argv[1:] if arguments is None else arguments
    wanted = next((argument for argument in given if not argument.startswith("-")), "")
    try:
        for group in GROUPS:
            if wanted in group.descriptions and not group.is_installed:
                terminal.complain(f"{wanted} is not installed; install it with: {group.installation}")
                return 2
        parsed = _parser(wanted).parse_args(given)
        status: int = parsed.start(parsed)
    finally:
        # The parser prints its help without a flush.
        terminal.flush()
    return status


def _complete() -> None:
    """Answer a shell that completes a command line; it does not return. See argcomplete for how a shell gets there."""
    import argcomplete  # noqa: PLC0415 - only the extra `cli` installs it

    words = os.environ.get("COMP_LINE", "").split()[1:]
    argcomplete.autocomplete(_parser(next((word for word in words if not word.startswith("-")), "")))


def _parser(wanted: str) -> argparse.ArgumentParser:
    """The parser for the command `wanted`. It knows only the names of the commands of other groups."""
    parser = argparse.ArgumentParser(
        prog="cart-grpc",
        description="A shopping cart over gRPC that reserves its items. `cart-grpc config` lists the settings.",
    )
    parser.add_argument("--version", action="version", version=f"cart-grpc {version('cart-grpc')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for group in GROUPS:
        if wanted in group.descriptions:
            import_module(group.module).add_commands(commands, group.descriptions)
            continue
        for name, description in group.descriptions.items():
            missing = "" if group.is_installed else f" (not installed: {group.installation})"
            commands.add_parser(name, help=description + missing)
    return parser
