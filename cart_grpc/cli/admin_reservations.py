"""The subcommands for operators: `cart-grpc reservations list | show | retry | release | stats | check | …`.

All of them call `cartgrpc.v1.CartAdminService`, except `after-restore`, which works on the database.
"""

import argparse
import asyncio
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from cartgrpc.v1 import cart_admin_service_pb2 as pb
from google.protobuf.message import Message

from cart_grpc.cli.admin_check import add_check
from cart_grpc.cli.admin_client import (
    TIMEOUT_SECONDS,
    Stub,
    add_command,
    add_filters,
    arguments_in_range,
    fetch_pages,
)
from cart_grpc.cli.admin_tables import reservation_lines, stats_lines
from cart_grpc.settings import Settings
from cart_grpc.terminal import say

M = TypeVar("M", bound=Message)
Record = pb.ReservationRecord
STATES = tuple(name.removeprefix("STATE_").lower() for name in Record.State.keys()[1:])


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to `cart-grpc reservations`."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add = partial(add_command, commands, show=_show_tables)
    listing = add("list", _list, "list reservations, oldest first; by default those that wait for an answer")
    add_filters(listing, "reservations", "this old", STATES)
    listing.add_argument(
        "--min-attempts", type=int, default=0, metavar="N", help="only reservations with at least N attempts"
    )
    listing.add_argument(
        "--parent", default="", metavar="NAME", help="only those of users/USER or users/USER/carts/CART"
    )
    for name, function, description in (
        ("show", _show, "show reservations, including finished ones"),
        ("retry", _retry, "call the Reservation API now; ask again for a rejected or expired reservation"),
        ("release", _release, "release reservations, even if their items are still in a cart"),
    ):
        add(name, function, description).add_argument("reservation", nargs="+", help="name or id")
    commands.choices["release"].add_argument("--reason", required=True, help="the reason, for the log")
    commands.choices["release"].add_argument(
        "--force", action="store_true", help="count them as released without an answer from the Reservation API"
    )
    add("stats", _stats, "show the backlog, and whether the Reservation API answers")
    pause = add("pause", _pause, "stop calling the Reservation API, on all replicas")
    pause.add_argument("--reason", required=True, help="the reason, shown by stats")
    add("resume", _resume, "call the Reservation API again")
    add_check(commands)
    description = (
        "after restoring a backup and before starting any server: raise every unfinished reservation's revision above "
        "any that was ever sent"
    )
    after_restore = commands.add_parser("after-restore", help=description, description=description)
    after_restore.set_defaults(run=_after_restore)


def _after_restore(settings: Settings, _: argparse.Namespace) -> int:
    # The other commands ask a server, and need no database.
    from cart_grpc import app, database_setup  # noqa: PLC0415

    async def work() -> int:
        async with app.open_engine(settings) as engine:
            return await database_setup.raise_revisions(engine)

    say(f"{asyncio.run(work())} unfinished reservations will be sent again to the Reservation API")
    return 0


def _list(stub: Stub, arguments: argparse.Namespace) -> Iterator[Message]:
    with arguments_in_range():
        states = [Record.State.Value(f"STATE_{name.upper()}") for name in arguments.state]
        request = pb.ListReservationsRequest(states=states, min_attempt_count=arguments.min_attempts)
        request.parent, request.sku = arguments.parent, arguments.sku
        request.min_age.FromMicroseconds(arguments.min_age)
    return fetch_pages(stub.ListReservations, request, arguments.limit)


def _show(stub: Stub, arguments: argparse.Namespace) -> Iterator[Message]:
    for request in _each(pb.GetReservationRequest, arguments):
        yield stub.GetReservation(request, timeout=TIMEOUT_SECONDS).reservation


def _retry(stub: Stub, arguments: argparse.Namespace) -> Iterator[Message]:
    for request in _each(pb.CartAdminServiceRetryReservationRequest, arguments):
        yield stub.RetryReservation(request, timeout=TIMEOUT_SECONDS).reservation


def _release(stub: Stub, arguments: argparse.Namespace) -> Iterator[Message]:
    for request in _each(pb.ReleaseReservationRequest, arguments, reason=arguments.reason, force=arguments.force):
        yield stub.ReleaseReservation(request, timeout=TIMEOUT_SECONDS).reservation


def _stats(stub: Stub, _: argparse.Namespace) -> Iterator[Message]:
    yield stub.GetReservationStats(pb.GetReservationStatsRequest(), timeout=TIMEOUT_SECONDS)


def _pause(stub: Stub, arguments: argparse.Namespace) -> Iterator[Message]:
    with arguments_in_range():
        request = pb.PauseReservationsRequest(reason=arguments.reason)
    stub.PauseReservations(request, timeout=TIMEOUT_SECONDS)
    yield from _stats(stub, arguments)


def _resume(stub: Stub, arguments: argparse.Namespace) -> Iterator[Message]:
    stub.ResumeReservations(pb.ResumeReservationsRequest(), timeout=TIMEOUT_SECONDS)
    yield from _stats(stub, arguments)


def _each(request: Callable[..., M], arguments: argparse.Namespace, **fields: Any) -> list[M]:
    """Return one request for each reservation that was named."""
    names = [f"reservations/{name.removeprefix('reservations/')}" for name in arguments.reservation]
    with arguments_in_range():
        return [request(name=name, **fields) for name in names]


def _show_tables(messages: Iterable[Message]) -> None:
    found = list(messages)
    records = [message for message in found if isinstance(message, Record)]
    for message in found:
        if isinstance(message, pb.GetReservationStatsResponse):
            say(*stats_lines(message))
    if records or not found:
        say(*reservation_lines(records))
