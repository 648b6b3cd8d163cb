"""A subcommand that gets the settings: it reads them, starts the log, and reports a failed start in one line."""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from cart_grpc import configuration
from cart_grpc.cli.command_groups import Commands
from cart_grpc.configuration import SettingsError
from cart_grpc.logs import output
from cart_grpc.settings import Settings
from cart_grpc.startup import StartupError
from cart_grpc.terminal import complain

# A subcommand: from the settings and its arguments to an exit status.
Run: TypeAlias = Callable[[Settings, argparse.Namespace], int]


def add(
    commands: Commands, descriptions: Mapping[str, str], name: str, run: Run | None = None, *, is_server: bool = False
) -> argparse.ArgumentParser:
    """Add a subcommand. Without `run`, its own subcommands set one.

    A server runs until it is stopped, and programs read its log. People read the warnings of all others.
    """
    command = commands.add_parser(name, help=descriptions[name], description=descriptions[name])
    command.set_defaults(start=partial(_start, is_server=is_server), run=run)
    return command


def _start(arguments: argparse.Namespace, *, is_server: bool) -> int:
    warnings: list[str] = []
    try:
        settings = configuration.load(warn=warnings.append)
        is_text = settings.log_format == "auto" and not is_server
        output.start(settings.log_level, "text" if is_text else settings.log_format)
        for warning in warnings:
            configuration.warn_of_ignored(warning)
        status: int = arguments.run(settings, arguments)
    except (SettingsError, StartupError) as error:
        complain(error)
        return 2
    return status
