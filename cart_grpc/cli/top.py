"""The subcommand `cart-grpc top`: calls, attempts, the backlog and stuck reservations, live in the terminal."""

import argparse
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from cartgrpc.v1 import cart_admin_service_pb2 as pb

from cart_grpc.arguments import duration
from cart_grpc.cli.admin_client import TIMEOUT_SECONDS, Stub, add_connection, fetch_pages, show_moment, with_stub
from cart_grpc.cli.admin_tables import checkout_lines, reservation_lines, stats_lines
from cart_grpc.settings import Settings
from cart_grpc.startup import StartupError
from cart_grpc.terminal import escape, say, to_table
from cart_grpc.units import US_PER_SECOND

Process = pb.GetProcessStatsResponse
# Rows of each list.
MOST_RESERVATIONS: Final = 10
MOST_CHECKOUTS: Final = 5
MIN_INTERVAL_US: Final = US_PER_SECOND // 10
# The codes of calls that the service failed, not their callers.
FAILURES: Final = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
# The outcomes of attempts that are decisions of the Reservation API.
DECISIONS: Final = frozenset(
    name.removeprefix("OBSERVED_STATE_") for name in pb.ReservationRecord.ObservedState.keys()[1:]
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `top`."""
    add_connection(command)
    command.add_argument(
        "--interval",
        type=_interval,
        default="2s",
        metavar="TIME",
        help="the time between two readings, 0.1s at least; default: %(default)s",
    )
    command.add_argument("--once", action="store_true", help="print one view as plain text, as without a terminal")


def run(settings: Settings, arguments: argparse.Namespace) -> int:
    """Show views until Ctrl-C, or one. Returns 0, or 1 if the server refused a call or did not answer.

    Raises StartupError for a live view without rich.
    """
    show = _show_once if arguments.once or not sys.stdout.isatty() else _find_live_view()
    pause = arguments.interval / US_PER_SECOND

    def views(stub: Stub) -> int:
        show(_read_views(stub, pause))
        return 0

    return with_stub(settings, arguments, views, unanswered=1)


def _interval(text: str) -> int:
    interval = duration(text)
    if interval < MIN_INTERVAL_US:
        raise argparse.ArgumentTypeError("must be 0.1s or more")
    return interval


def _read_views(stub: Stub, pause: float) -> Iterable[list[str]]:
    """Yield a view every `pause` seconds, without end. Raises grpc.RpcError."""
    before = stub.GetProcessStats(pb.GetProcessStatsRequest(), timeout=TIMEOUT_SECONDS)
    while True:
        time.sleep(pause)
        process = stub.GetProcessStats(pb.GetProcessStatsRequest(), timeout=TIMEOUT_SECONDS)
        yield _view(stub, before, process)
        before = process


def _show_once(views: Iterable[list[str]]) -> None:
    say(*next(iter(views)))


def _find_live_view() -> Callable[[Iterable[list[str]]], None]:
    """Return the function that shows views live. Raises StartupError if rich is missing."""
    try:
        from rich.live import Live  # noqa: PLC0415 - only the extra `cli` installs it
        from rich.text import Text  # noqa: PLC0415
    except ImportError:
        raise StartupError(
            "top needs rich for a live view; install it with: pip install 'cart-grpc[cli]', or use --once"
        ) from None

    def show(views: Iterable[list[str]]) -> None:
        # As an exception, so that the terminal is restored. Ctrl-C is the way to end `top`, and no failure.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with Live(screen=True, auto_refresh=False, vertical_overflow="crop") as live:
                for lines in views:
                    text = "\n".join(map(escape, lines))
                    live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
        except KeyboardInterrupt:
            return

    return show


def _view(stub: Stub, before: pb.GetProcessStatsResponse, process: pb.GetProcessStatsResponse) -> list[str]:
    stats = stub.GetReservationStats(pb.GetReservationStatsRequest(), timeout=TIMEOUT_SECONDS)
    stuck = fetch_pages(stub.ListReservations, pb.ListReservationsRequest(), MOST_RESERVATIONS)
    checkouts = fetch_pages(stub.ListCheckouts, pb.CartAdminServiceListCheckoutsRequest(), MOST_CHECKOUTS)
    records: Any = list(stuck)
    paid: Any = list(checkouts)
    seconds = max((process.read_time.ToMicroseconds() - before.read_time.ToMicroseconds()) / US_PER_SECOND, 0.001)
    parts = [
        [f"{show_moment(process.read_time)}, the last {seconds:.1f} s of this process:"],
        _call_lines(before, process, seconds),
        _lane_lines(before, process, seconds),
        ["all processes:", *stats_lines(stats)],
        ["the oldest reservations without an answer:", *reservation_lines(records)] if records else [],
        ["paid checkouts that are not completed:", *checkout_lines(paid)] if paid else [],
    ]
    return list(chain.from_iterable([*part, ""] for part in parts if part))


@dataclass(frozen=True, slots=True)
class _Rate:
    """Things per second, and how many of them failed."""

    total: float
    failed: float


def _call_lines(before: Process, after: Process, seconds: float) -> list[str]:
    rates = _rates(
        {(one.method, one.code): one.count for one in before.calls},
        {(one.method, one.code): one.count for one in after.calls},
        lambda code: code in FAILURES,
        seconds,
    )
    if not after.calls:
        return ["no calls are counted yet; they are if CART_METRICS_LISTEN is set"]
    busy = sorted(rates.items(), key=lambda entry: (-entry[1].total, entry[0]))
    total = _Rate(sum(rate.total for rate in rates.values()), sum(rate.failed for rate in rates.values()))
    shown = [*((name, rate) for name, rate in busy if rate.total), ("all", total)]
    rows = [(name, f"{rate.total:.1f}", f"{rate.failed:.1f}") for name, rate in shown]
    return to_table([("METHOD", "CALLS/s", "FAILED/s"), *rows])


def _lane_lines(before: Process, after: Process, seconds: float) -> list[str]:
    rates = _rates(
        {(one.lane, one.outcome): one.count for one in before.attempts},
        {(one.lane, one.outcome): one.count for one in after.attempts},
        lambda outcome: outcome not in DECISIONS,
        seconds,
    )
    rows = []
    for lane in after.lanes:
        rate = rates.get(lane.lane, _Rate(0.0, 0.0))
        rows.append((lane.lane, f"{lane.in_flight_count}/{lane.capacity}", f"{rate.total:.1f}", f"{rate.failed:.1f}"))
    return to_table([("LANE", "IN FLIGHT", "ATTEMPTS/s", "FAILED/s"), *rows]) if rows else []


def _rates(
    before: dict[tuple[str, str], int],
    after: dict[tuple[str, str], int],
    is_failure: Callable[[str], bool],
    seconds: float,
) -> dict[str, _Rate]:
    """Return the rates by the first part of the keys. A count that fell began anew: its process was restarted."""
    total: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for (name, ending), count in after.items():
        earlier = before.get((name, ending), 0)
        more = count - earlier if count >= earlier else count
        total[name] += more
        failed[name] += more if is_failure(ending) else 0
    return {name: _Rate(total[name] / seconds, failed[name] / seconds) for name in total}
