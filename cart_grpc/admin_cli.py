"""The subcommands for operators: `cart-grpc reservations list | show | retry | release | stats | pause | resume | …`.

All of them call `cartgrpc.v1.CartAdminService`, except `after-restore`, which works on the database.
"""

import argparse
import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
from cartgrpc.v1 import cart_admin_service_pb2 as pb
from cartgrpc.v1 import cart_admin_service_pb2_grpc, cart_pb2
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from cart_grpc import app, database_setup
from cart_grpc.arguments import duration
from cart_grpc.channels import open_channel
from cart_grpc.database_setup import StartupError
from cart_grpc.settings import Settings, check_address
from cart_grpc.terminal import complain, escape, say, to_table

M = TypeVar("M", bound=Message)
Stub = cart_admin_service_pb2_grpc.CartAdminServiceStub
Record = pb.ReservationRecord
TIMEOUT_SECONDS = 30
STATES = tuple(name.removeprefix("STATE_").lower() for name in Record.State.keys()[1:])


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to `cart-grpc reservations`."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--address", metavar="HOST:PORT", help="the server's admin address; default: CART_ADMIN_LISTEN"
    )
    options.add_argument("--json", action="store_true", help="print one JSON object per line")

    def add(name: str, function: Callable[..., Iterable[Message]], description: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, parents=[options], help=description, description=description)
        command.set_defaults(run=_run, call=function)
        return command

    listing = add("list", _list, "list reservations, oldest first; by default those that wait for an answer")
    listing.add_argument(
        "--state", action="append", default=[], choices=STATES, help="only reservations in this state; repeatable"
    )
    listing.add_argument(
        "--min-age",
        type=duration,
        default="0s",
        metavar="TIME",
        help="only reservations this old, such as 15m",
    )
    listing.add_argument(
        "--min-attempts", type=int, default=0, metavar="N", help="only reservations with at least N attempts"
    )
    listing.add_argument("--limit", type=int, default=100, metavar="N", help="maximum number (default: %(default)s)")
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
    description = (
        "after restoring a backup and before starting any server: raise every unfinished reservation's revision above "
        "any that was ever sent"
    )
    after_restore = commands.add_parser("after-restore", help=description, description=description)
    after_restore.set_defaults(run=_after_restore)


def _run(settings: Settings, arguments: argparse.Namespace) -> int:
    """Make the calls of a subcommand and print the answers. Returns 0, or 1 if a call was refused or not answered."""
    address = arguments.address or settings.admin_listen
    if not address:
        raise StartupError("CART_ADMIN_LISTEN is not set; set it or use --address")
    try:
        check_address(address)
    except ValueError as error:
        raise StartupError(f"the address {error}") from None
    show = _show_json if arguments.json else _show_tables
    with open_channel(address) as channel:
        try:
            show(arguments.call(cart_admin_service_pb2_grpc.CartAdminServiceStub(channel), arguments))
        except grpc.RpcError as error:
            detail = " ".join((error.details() or "").split())[:300]
            complain(f"{address}: {error.code().name}: {detail}")
            return 1
        except json_format.Error as error:
            complain(f"{address}: its answer cannot be shown: {error}")
            return 1
    return 0


def _after_restore(settings: Settings, _: argparse.Namespace) -> int:
    async def work() -> int:
        async with app.open_engine(settings) as engine:
            return await database_setup.raise_revisions(engine)

    say(f"{asyncio.run(work())} unfinished reservations will be sent again to the Reservation API")
    return 0


def _list(stub: Stub, arguments: argparse.Namespace) -> Iterator[Message]:
    with _arguments_in_range():
        states = [Record.State.Value(f"STATE_{name.upper()}") for name in arguments.state]
        request = pb.ListReservationsRequest(states=states, min_attempt_count=arguments.min_attempts)
        request.min_age.FromMicroseconds(arguments.min_age)
    left = arguments.limit
    while left > 0:
        request.page_size = min(left, 500)
        page = stub.ListReservations(request, timeout=TIMEOUT_SECONDS)
        yield from page.reservations
        left -= len(page.reservations)
        request.page_token = page.next_page_token
        # An empty page could be followed by empty pages without end.
        if not (page.reservations and page.next_page_token):
            return


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
    with _arguments_in_range():
        request = pb.PauseReservationsRequest(reason=arguments.reason)
    stub.PauseReservations(request, timeout=TIMEOUT_SECONDS)
    yield from _stats(stub, arguments)


def _resume(stub: Stub, arguments: argparse.Namespace) -> Iterator[Message]:
    stub.ResumeReservations(pb.ResumeReservationsRequest(), timeout=TIMEOUT_SECONDS)
    yield from _stats(stub, arguments)


def _each(request: Callable[..., M], arguments: argparse.Namespace, **fields: Any) -> list[M]:
    """Return one request for each reservation that was named."""
    names = [f"reservations/{name.removeprefix('reservations/')}" for name in arguments.reservation]
    with _arguments_in_range():
        return [request(name=name, **fields) for name in names]


@contextmanager
def _arguments_in_range() -> Iterator[None]:
    """Raise StartupError if an argument does not fit into the field of a request."""
    try:
        yield
    except (ValueError, OverflowError) as error:
        raise StartupError(f"an argument is out of range: {error}") from None


def _show_json(messages: Iterable[Message]) -> None:
    for message in messages:
        # DEL is the one invisible character that this leaves as it is.
        say(json.dumps(json_format.MessageToDict(message)).replace("\x7f", r"\u007f"))


def _show_tables(messages: Iterable[Message]) -> None:
    found = list(messages)
    records = [message for message in found if isinstance(message, Record)]
    for message in found:
        if isinstance(message, pb.GetReservationStatsResponse):
            _print_stats(message)
    if records or not found:
        header = ("RESERVATION", "STATE", "SHOWN", "INTENT", "QTY", "SKU", "TRIES", "NEXT", "REVISION", "ITEM", "WHY")
        _say_table(header, map(_record_row, records))


def _record_row(record: pb.ReservationRecord) -> Sequence[str]:
    why = escape(record.set_aside_reason or record.last_error or record.reason)
    return (
        record.name.removeprefix("reservations/"),
        _word(Record.State, record.state),
        _word(cart_pb2.Reservation.State, record.shown_state) if record.shown_state else "-",
        _word(Record.Disposition, record.disposition),
        str(record.quantity),
        record.sku,
        str(record.attempt_count),
        _moment(record.next_attempt_time) if record.HasField("next_attempt_time") else "-",
        f"{record.observed_revision}/{record.revision}",
        record.item,
        why if len(why) <= 60 else f"{why[:59]}…",
    )


def _print_stats(stats: pb.GetReservationStatsResponse) -> None:
    rows = (
        (
            _word(Record.State, one.state),
            _word(Record.Disposition, one.disposition),
            str(one.count),
            _moment(one.oldest_create_time),
        )
        for one in stats.backlog
    )
    _say_table(("STATE", "INTENT", "COUNT", "OLDEST"), rows)
    since = f", the oldest since {_moment(stats.oldest_due_time)}" if stats.due_count else ""
    say(f"due now: {stats.due_count}{since}")
    if stats.HasField("reconciler"):
        breaker = "the Reservation API answers"
        if stats.reconciler.breaker_open:
            since = _moment(stats.reconciler.breaker_open_time)
            breaker = f"the Reservation API has not answered since {since}: probing"
        say(f"this process: {stats.reconciler.in_flight_count} calls in flight; {breaker}")
    if stats.HasField("pause"):
        say(f"PAUSED since {_moment(stats.pause.create_time)}: {stats.pause.reason}")


def _say_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    say(*to_table([header, *rows]))


def _word(enum: Any, number: int) -> str:
    """Return the name of an enum's value. A newer server may have values that this command does not know."""
    if number not in enum.values():
        return str(number)
    return str(enum.Name(number)).removeprefix("STATE_").removeprefix("DISPOSITION_")


def _moment(timestamp: Timestamp) -> str:
    try:
        return f"{timestamp.ToDatetime():%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError):
        return f"{timestamp.seconds} s"
