"""The subcommand `cart-grpc reservations check`, for monitoring: it lists the problems and their causes."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cartgrpc.v1 import cart_admin_service_pb2 as pb
from cartgrpc.v1 import cart_pb2

from cart_grpc.arguments import duration
from cart_grpc.cli.admin_client import (
    TIMEOUT_SECONDS,
    Stub,
    add_connection,
    age_of,
    fetch_pages,
    say_json,
    show_age,
    show_seconds,
    show_word,
    with_stub,
)
from cart_grpc.settings import Settings
from cart_grpc.terminal import escape, say
from cart_grpc.units import US_PER_SECOND

Record = pb.ReservationRecord
Checkout = cart_pb2.Checkout
# The exit statuses. 2 is wrong use. Those of monitoring plugins are 0 for OK, 1 and 2 for problems, 3 for unknown.
OK: Final = 0
PROBLEMS: Final = 1
UNKNOWN: Final = 3
# One page of a list. Of more entries, the line says "500 or more".
MOST: Final = 500
# So many attempts take two minutes and more. A reservation that was answered before does not say since when it waits.
MIN_ATTEMPTS: Final = 10


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: its name in UPPER_SNAKE_CASE, how many things have it, the oldest of them, and a sentence."""

    problem: str
    count: int
    oldest: str
    message: str

    def to_dict(self) -> dict[str, Any]:
        return {"problem": self.problem, "count": self.count, "oldest": self.oldest, "message": self.message}


def add_check(commands: Any) -> None:
    """Add the subcommand."""
    description = "exit status 0 if nothing is stuck, 1 with one line per problem, 2 for wrong use, 3 without an answer"
    check = commands.add_parser("check", help=description, description=description)
    add_connection(check)
    check.add_argument(
        "--max-age",
        type=duration,
        default="10m",
        metavar="TIME",
        help="what lasts for so long is a problem; default: %(default)s",
    )
    check.add_argument("--json", action="store_true", help="print one JSON object for each problem, and no other line")
    check.set_defaults(run=_check)


def _check(settings: Settings, arguments: argparse.Namespace) -> int:
    def check(stub: Stub) -> int:
        problems = list(find_problems(stub, arguments.max_age // US_PER_SECOND))
        for problem in problems:
            say_json(problem.to_dict()) if arguments.json else say(f"{problem.problem}: {problem.message}")
        if not problems and not arguments.json:
            say(f"ok: nothing has been stuck for {show_seconds(arguments.max_age // US_PER_SECOND)}")
        return PROBLEMS if problems else OK

    return with_stub(settings, arguments, check, unanswered=UNKNOWN)


def find_problems(stub: Stub, max_age: int) -> Iterator[Problem]:
    """Yield problems that have lasted for `max_age` seconds, and all rows that are set aside. Raises grpc.RpcError."""
    stats = stub.GetReservationStats(pb.GetReservationStatsRequest(), timeout=TIMEOUT_SECONDS)
    yield from _problems_of_all(stats, max_age)
    aside = sum(one.count for one in stats.backlog if one.state == Record.STATE_SET_ASIDE)
    if aside:
        [first] = list(_list(stub, pb.ListReservationsRequest(states=[Record.STATE_SET_ASIDE]), limit=1)) or [Record()]
        yield Problem(
            "SET_ASIDE",
            aside,
            first.name,
            f"{_reservations(aside)} set aside; the oldest: {first.name}: {escape(first.set_aside_reason)}",
        )
    yield from _unanswered(stub, max_age)
    yield from _stuck_checkouts(stub, max_age)


def _problems_of_all(stats: pb.GetReservationStatsResponse, max_age: int) -> Iterator[Problem]:
    """Yield the problems that stop all reservations."""
    if stats.HasField("pause") and age_of(stats.pause.create_time) >= max_age:
        message = f"an operator paused all calls {show_age(stats.pause.create_time)} ago: {escape(stats.pause.reason)}"
        yield Problem("PAUSED", 1, "", message)
    down_since = stats.reconciler.breaker_open_time
    if stats.reconciler.breaker_open and age_of(down_since) >= max_age:
        message = f"the Reservation API has not answered for {show_age(down_since)}"
        yield Problem("RESERVATION_API_DOWN", 1, "", message)
    if stats.due_count and age_of(stats.oldest_due_time) >= max_age:
        message = f"{_reservations(stats.due_count)} due; the oldest for {show_age(stats.oldest_due_time)}"
        yield Problem("NOT_CALLED", stats.due_count, "", message)


def _unanswered(stub: Stub, max_age: int) -> Iterator[Problem]:
    states = [Record.STATE_WAITING, Record.STATE_DUE, Record.STATE_CALLING, Record.STATE_BACKING_OFF]
    request = pb.ListReservationsRequest(states=states)
    request.min_age.seconds = max_age
    found = list(_list(stub, request))
    stuck = [each for each in found if not each.observed_revision or each.attempt_count >= MIN_ATTEMPTS]
    if not stuck:
        return
    first = stuck[0]
    why = escape(first.last_error) or f"it is {show_word(Record.State, first.state)}"
    message = (
        f"{_reservations(len(stuck), is_page_full=len(found) >= MOST)} without an answer; "
        f"the oldest is {show_age(first.create_time)} old: {first.name}: {why}"
    )
    yield Problem("NO_ANSWER", len(stuck), first.name, message)


def _stuck_checkouts(stub: Stub, max_age: int) -> Iterator[Problem]:
    for state in (Checkout.STATE_COMPLETING, Checkout.STATE_FAILED):
        request = pb.CartAdminServiceListCheckoutsRequest(states=[state])
        request.min_age.seconds = max_age
        found: Sequence[cart_pb2.Checkout] = list(fetch_pages(stub.ListCheckouts, request, MOST))  # type: ignore[arg-type]
        if not found:
            continue
        word, first = show_word(Checkout.State, state), found[0]
        many = f"{len(found)}{' or more' if len(found) >= MOST else ''}"
        noun = "checkout is" if many == "1" else "checkouts are"
        order = f", order {escape(first.order_reference)}" if first.order_reference else ""
        message = f"{many} {noun} {word}; the oldest for {show_age(first.update_time)}: {first.name}{order}"
        yield Problem(f"CHECKOUT_{word}", len(found), first.name, message)


def _list(stub: Stub, request: pb.ListReservationsRequest, limit: int = MOST) -> Iterator[pb.ReservationRecord]:
    return fetch_pages(stub.ListReservations, request, limit)  # type: ignore[return-value]


def _reservations(count: int, *, is_page_full: bool = False) -> str:
    if is_page_full:
        return f"{count} or more reservations are"
    return "1 reservation is" if count == 1 else f"{count} reservations are"
