"""The operator's commands: `cart-grpc reservations list | show | retry | release | stats | pause | resume | …`.

All but `after-restore` are calls of `cartgrpc.v1.CartAdminService`.
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
from cart_grpc.settings import Settings, check_address

Stub = cart_admin_service_pb2_grpc.CartAdminServiceStub
Record = pb.ReservationRecord
TIMEOUT_SECONDS = 30
STATES = tuple(name.removeprefix("STATE_").lower() for name in Record.State.keys()[1:])


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add them to `cart-grpc reservations`."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--address", metavar="HOST:PORT", help="where operators are listened to (CART_ADMIN_LISTEN)")
    options.add_argument("--json", action="store_true", help="one JSON object a line, for programs")

    def add(name: str, function: Callable[..., Iterable[Message]], description: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, parents=[options], help=description, description=description)
        command.set_defaults(command=_calling, call=function)
        return command

    listing = add(
        "list", _list, "list reservations, the oldest first; those without an answer, if nothing else is said"
    )
    listing.add_argument("--state", action="append", default=[], choices=STATES, help="only those in this state")
    listing.add_argument("--min-age", type=float, default=0, metavar="SECONDS", help="only those made so long ago")
    listing.add_argument("--min-attempts", type=int, default=0, metavar="N", help="only those tried so often")
    listing.add_argument("--limit", type=int, default=100, metavar="N", help="how many at most (default: %(default)s)")
    for name, function, description in (
        ("show", _show, "show reservations, finished or not"),
        ("retry", _retry, "say at once what is still to be said; ask again for what was rejected or has expired"),
        ("release", _release, "give reservations back, also where the items are still in their carts"),
    ):
        add(name, function, description).add_argument("reservation", nargs="+", help="its name or id")
    commands.choices["release"].add_argument("--reason", required=True, help="why, for the log")
    commands.choices["release"].add_argument(
        "--force", action="store_true", help="regard them as released, although the Reservation API has not said so"
    )
    add("stats", _stats, "show how much is waiting, and whether the Reservation API answers")
    add("pause", _pause, "stop calling the Reservation API").add_argument("--reason", required=True, help="why")
    add("resume", _resume, "go on calling the Reservation API")
    description = "raise what is unfinished in a restored database above all that was ever said; before any start"
    restored = commands.add_parser("after-restore", help=description, description=description)
    restored.set_defaults(command=_after_restore)


def _calling(configured: Settings, parsed: argparse.Namespace) -> int:
    """Make the calls of a command and print the answers. The exit status: 0, or 1 where one was refused."""
    address = parsed.address or configured.admin_listen
    if not address:
        raise StartupError("CART_ADMIN_LISTEN is not set; --address says where operators are listened to")
    try:
        check_address(address)
    except ValueError as error:
        raise StartupError(f"{address!r} {error}") from None
    show = _show_json if parsed.json else _show_tables
    with grpc.insecure_channel(address) as channel:
        try:
            show(parsed.call(cart_admin_service_pb2_grpc.CartAdminServiceStub(channel), parsed))
        except grpc.RpcError as error:
            detail = " ".join(str(error.details()).split())[:300]
            print(f"cart-grpc: {address}: {error.code().name}: {detail}", file=sys.stderr)
            return 1
        except (ValueError, OverflowError) as error:
            raise StartupError(f"what was said cannot be sent: {error}") from None
    return 0


def _after_restore(configured: Settings, _: argparse.Namespace) -> int:
    async def work() -> int:
        async with app.open_engine(configured) as engine:
            return await app.raise_revisions(engine)

    print(f"{asyncio.run(work())} unfinished reservations will be said anew to the Reservation API")
    return 0


def _list(stub: Stub, parsed: argparse.Namespace) -> Iterator[Message]:
    states = [Record.State.Value(f"STATE_{name.upper()}") for name in parsed.state]
    request = pb.ListReservationsRequest(states=states, min_attempt_count=parsed.min_attempts)
    request.min_age.FromMicroseconds(int(parsed.min_age * 1_000_000))
    left = parsed.limit
    while left > 0:
        request.page_size = min(left, 500)
        page = stub.ListReservations(request, timeout=TIMEOUT_SECONDS)
        yield from page.reservations
        left -= len(page.reservations)
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return


def _show(stub: Stub, parsed: argparse.Namespace) -> Iterator[Message]:
    for name in _names(parsed):
        yield stub.GetReservation(pb.GetReservationRequest(name=name), timeout=TIMEOUT_SECONDS).reservation


def _retry(stub: Stub, parsed: argparse.Namespace) -> Iterator[Message]:
    for name in _names(parsed):
        request = pb.CartAdminServiceRetryReservationRequest(name=name)
        yield stub.RetryReservation(request, timeout=TIMEOUT_SECONDS).reservation


def _release(stub: Stub, parsed: argparse.Namespace) -> Iterator[Message]:
    for name in _names(parsed):
        request = pb.ReleaseReservationRequest(name=name, reason=parsed.reason, force=parsed.force)
        yield stub.ReleaseReservation(request, timeout=TIMEOUT_SECONDS).reservation


def _stats(stub: Stub, _: argparse.Namespace) -> Iterator[Message]:
    yield stub.GetReservationStats(pb.GetReservationStatsRequest(), timeout=TIMEOUT_SECONDS)


def _pause(stub: Stub, parsed: argparse.Namespace) -> Iterator[Message]:
    stub.PauseReservations(pb.PauseReservationsRequest(reason=parsed.reason), timeout=TIMEOUT_SECONDS)
    yield from _stats(stub, parsed)


def _resume(stub: Stub, parsed: argparse.Namespace) -> Iterator[Message]:
    stub.ResumeReservations(pb.ResumeReservationsRequest(), timeout=TIMEOUT_SECONDS)
    yield from _stats(stub, parsed)


def _names(parsed: argparse.Namespace) -> list[str]:
    return [f"reservations/{name.removeprefix('reservations/')}" for name in parsed.reservation]


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
    why = record.last_error or record.reason
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
        print(f"this process: {stats.reconciler.in_flight_count} calls under way; {breaker}")
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
