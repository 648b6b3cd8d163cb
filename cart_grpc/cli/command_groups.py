"""The subcommands of `cart-grpc` in groups, each with its module and the extra of the package that it needs."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final, TypeAlias

# The type of the result of `add_subparsers`. Its class has no public name.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001


@dataclass(frozen=True)
class Group:
    """Subcommands that need the same extra. `descriptions` has their names and one line about each.

    `module` has a function `add_commands(commands, descriptions)`. It adds a parser for each command and sets its
    default `start`: a function from the arguments to an exit status. Only this extra installs `package`.
    """

    module: str
    extra: str
    package: str
    descriptions: Mapping[str, str]

    @property
    def is_installed(self) -> bool:
        return find_spec(self.package) is not None

    @property
    def installation(self) -> str:
        """The command that installs the extra."""
        return f"pip install 'cart-grpc[{self.extra}]'"


GROUPS: Final = (
    Group("cart_grpc.cli.cart", "cli", "rich", {"cart": "show and change carts, and check them out"}),
    Group(
        "cart_grpc.cli.service_commands",
        "server",
        "sqlalchemy",
        {
            "serve": "serve carts and reconcile their reservations",
            "reconcile": "only reconcile reservations (PostgreSQL)",
            "migrate": "migrate the database to the schema of this release",
            "simulate": "run a simulated Reservation API",
            "probe": "check which rules a Reservation API keeps; exit status 0 if all, 1 if not",
            "dev": "serve, reconcile and simulate in one process, for development",
            "config": "print every setting with its value and meaning; passwords are hidden",
        },
    ),
    Group(
        "cart_grpc.cli.operator_commands",
        "server",
        "sqlalchemy",
        {
            "health": "ask a server whether it is ready; exit status 0 if it is, 1 if not",
            "reservations": "for operators: show stuck reservations and end them",
            "carts": "for operators: find carts of all users",
            "checkouts": "for operators: show stuck checkouts and end them",
            "users": "for operators: erase a user",
            "top": "for operators: show calls, attempts, the backlog and stuck reservations, live",
        },
    ),
)
