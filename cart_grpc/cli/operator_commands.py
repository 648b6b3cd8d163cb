"""The commands that ask a running server, and their arguments. They import neither the server nor a database."""

from collections.abc import Mapping
from functools import partial

from cart_grpc.cli import admin_carts, admin_checkouts, admin_reservations, admin_users, health, top, with_settings
from cart_grpc.cli.command_groups import Commands


def add_commands(commands: Commands, descriptions: Mapping[str, str]) -> None:
    """Add every command of the group."""
    add = partial(with_settings.add, commands, descriptions)
    health.add_options(add("health", health.run))
    admin_reservations.add_commands(add("reservations"))
    admin_carts.add_commands(add("carts"))
    admin_checkouts.add_commands(add("checkouts"))
    admin_users.add_commands(add("users"))
    top.add_options(add("top", top.run))
