"""The subcommands for operators: `cart-grpc reservations list | show | retry | release | stats | pause | resume | …`.

All of them call `cartgrpc.v1.CartAdminService`, except `after-restore`, which works on the database.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import grpc
from cartgrpc.v1 import cart_admin_service_pb2 as pb
from cartgrpc.v1 import cart_admin_service_pb2_grpc, cart_pb2
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from cart_grpc import app
from cart_grpc.app import StartupError
from cart_grpc.arguments import duration
from cart_grpc.channels import open_channel
from cart_grpc.settings import Settings, check_address

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
        raise StartupError(f"{address!r} {error}") from None
    show = _show_json if arguments.json else _show_tables
    with open_channel(address) as channel:
        try:
            show(arguments.call(cart_admin_service_pb2_grpc.CartAdminServiceStub(channel), arguments))
        except grpc.RpcError as error:
            detail = " ".join(str(error.details()).split())[:300]
            print(f"cart-grpc: {address}: {error.code().name}: {detail}", file=sys.stderr)
            return 1
        except (ValueError, OverflowError) as error:
            raise StartupError(f"an argument is out of range: {error}") from None
    return 0


def _after_restore(settings: Settings, _: argparse.Namespace) -> int:
    async def work() -> int:
        async with app.open_engine(settings) as engine:
            return await app.raise_revisions(engine)

    print(f"{asyncio.run(work())} unfinished reservations will be sent again to the Reservation API")
    return 0


def _list(stub: Stub, arguments: argparse.Namespace) -> Iterator[Message]:
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
        if not page.next_page_token:
            return


def _show(stub: Stub, arguments: argparse.Namespace) -> Iterator[Message]:
    for name in _names(arguments):
        yield stub.GetReservation(pb.GetReservationRequest(name=name), timeout=TIMEOUT_SECONDS).reservation


def _retry(stub: Stub, arguments: argparse.Namespace) -> Iterator[Message]:
    for name in _names(arguments):
        request = pb.CartAdminServiceRetryReservationRequest(name=name)
        yield stub.RetryReservation(request, timeout=TIMEOUT_SECONDS).reservation


def _release(stub: Stub, arguments: argparse.Namespace) -> Iterator[Message]:
    for name in _names(arguments):
        request = pb.ReleaseReservationRequest(name=name, reason=arguments.reason, force=arguments.force)
        yield stub.ReleaseReservation(request, timeout=TIMEOUT_SECONDS).reservation


def _stats(stub: Stub, _: argparse.Namespace) -> Iterator[Message]:
    yield stub.GetReservationStats(pb.GetReservationStatsRequest(), timeout=TIMEOUT_SECONDS)


def _pause(stub: Stub, arguments: argparse.Namespace) -> Iterator[Message]:
    stub.PauseReservations(pb.PauseReservationsRequest(reason=arguments.reason), timeout=TIMEOUT_SECONDS)
    yield from _stats(stub, arguments)


def _resume(stub: Stub, arguments: argparse.Namespace) -> Iterator[Message]:
    stub.ResumeReservations(pb.ResumeReservationsRequest(), timeout=TIMEOUT_SECONDS)
    yield from _stats(stub, arguments)


def _names(arguments: argparse.Namespace) -> list[str]:
    return [f"reservations/{name.removeprefix('reservations/')}" for name in arguments.reservation]


def _show_json(messages: Iterable[Message]) -> None:
    for message in messages:
        print(json.dumps(MessageToDict(message)), flush=True)


def _show_tables(messages: Iterable[Message]) -> None:
    found = list(messages)
    records = [message for message in found if isinstance(message, Record)]
    for message in found:
        if isinstance(message, pb.GetReservationStatsResponse):
            _print_stats(message)
    if records or not found:
        header = ("RESERVATION", "STATE", "SHOWN", "INTENT", "QTY", "SKU", "TRIES", "NEXT", "REVISION", "ITEM", "WHY")
        _print_table(header, map(_record_row, records))


def _record_row(record: pb.ReservationRecord) -> Sequence[str]:
    why = record.set_aside_reason or record.last_error or record.reason
    return (
        record.name.removeprefix("reservations/"),
        _word(Record.State.Name(record.state)),
        _word(cart_pb2.Reservation.State.Name(record.shown_state)) if record.shown_state else "-",
        _word(Record.Disposition.Name(record.disposition)),
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
            _word(Record.State.Name(one.state)),
            _word(Record.Disposition.Name(one.disposition)),
            str(one.count),
            _moment(one.oldest_create_time),
        )
        for one in stats.backlog
    )
    _print_table(("STATE", "INTENT", "COUNT", "OLDEST"), rows)
    since = f", the oldest since {_moment(stats.oldest_due_time)}" if stats.due_count else ""
    print(f"due now: {stats.due_count}{since}")
    if stats.HasField("reconciler"):
        breaker = "the Reservation API answers"
        if stats.reconciler.breaker_open:
            since = _moment(stats.reconciler.breaker_open_time)
            breaker = f"the Reservation API has not answered since {since}: probing"
        print(f"this process: {stats.reconciler.in_flight_count} calls in flight; {breaker}")
    if stats.HasField("pause"):
        print(f"PAUSED since {_moment(stats.pause.create_time)}: {stats.pause.reason}")


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _word(name: str) -> str:
    return name.removeprefix("STATE_").removeprefix("DISPOSITION_")


def _moment(timestamp: Timestamp) -> str:
    return f"{timestamp.ToDatetime():%Y-%m-%dT%H:%M:%SZ}"
