"""The subcommand for operators `cart-grpc users erase`: deletes everything that is stored for a user."""

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cartgrpc.v1 import cart_admin_service_pb2 as pb
from google.protobuf.message import Message

from cart_grpc.cli.admin_client import NOTHING, TIMEOUT_SECONDS, Stub, add_command, arguments_in_range, show_age
from cart_grpc.terminal import complain, say, to_table

HEADER = ("DONE", "CHECKOUTS", "CARTS", "RESERVATIONS", "SINCE", "FIRST CHECKOUT")
POLL_SECONDS = 1.0


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand to `cart-grpc users`."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    description = "erase everything that is stored for a user, and show how far that is"
    erase = add_command(commands, "erase", _erase, description, show=_show_table)
    erase.add_argument("user", help="name or id")
    erase.add_argument("--wait", action="store_true", help="wait until everything is deleted; show the progress")
    erase.add_argument("--progress-only", action="store_true", help="only show an erasure that was begun before")


def _erase(stub: Stub, arguments: argparse.Namespace) -> Iterator[Message]:
    name = f"users/{arguments.user.removeprefix('users/')}"
    with arguments_in_range():
        request = pb.EraseUserRequest(name=name, progress_only=arguments.progress_only)
    seen = stub.EraseUser(request, timeout=TIMEOUT_SECONDS)
    # From now on, or what the user begins anew would be erased, too.
    request.progress_only = True
    shown = None
    while arguments.wait and not seen.done:
        if shown != (progress := _describe(seen)):
            complain(f"{name}: {progress}")
            shown = progress
        time.sleep(POLL_SECONDS)
        seen = stub.EraseUser(request, timeout=TIMEOUT_SECONDS)
    yield seen


def _describe(seen: pb.EraseUserResponse) -> str:
    if seen.blocking_checkouts:
        return f"waits for {len(seen.blocking_checkouts)} checkouts, such as {seen.blocking_checkouts[0]}"
    return f"{seen.cart_count} carts and {seen.unreleased_count} reservations that are not released are left"


def _show_table(responses: Iterable[Message]) -> None:
    say(*to_table([HEADER, *map(_row, responses)]))


def _row(seen: Any) -> Sequence[str]:
    return (
        "yes" if seen.done else "no",
        str(len(seen.blocking_checkouts)),
        str(seen.cart_count),
        str(seen.unreleased_count),
        show_age(seen.create_time) if seen.HasField("create_time") else NOTHING,
        seen.blocking_checkouts[0] if seen.blocking_checkouts else NOTHING,
    )
