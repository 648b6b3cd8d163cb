"""Reservations, checkouts and the backlog as lines for operators."""

from collections.abc import Iterable, Sequence

from cartgrpc.v1 import cart_admin_service_pb2 as pb
from cartgrpc.v1 import cart_pb2

from cart_grpc.cli.admin_client import NOTHING, show_age, show_moment, show_word
from cart_grpc.client.money import show_money
from cart_grpc.terminal import escape, to_table

Record = pb.ReservationRecord
Checkout = cart_pb2.Checkout
_RESERVATION = (
    "RESERVATION", "STATE", "SHOWN", "INTENT", "QTY", "SKU", "TRIES", "NEXT", "REVISION", "AGE", "SINCE", "ITEM", "WHY",
)  # fmt: skip
_CHECKOUT = ("CHECKOUT", "STATE", "SINCE", "ITEMS", "SUBTOTAL", "ORDER", "CART", "WHY")


def reservation_lines(records: Iterable[pb.ReservationRecord]) -> list[str]:
    """Return a table of reservations."""
    return to_table([_RESERVATION, *map(_record_row, records)])


def checkout_lines(checkouts: Iterable[cart_pb2.Checkout]) -> list[str]:
    """Return a table of checkouts, without their items."""
    return to_table([_CHECKOUT, *map(_checkout_row, checkouts)])


def _record_row(record: pb.ReservationRecord) -> Sequence[str]:
    why = escape(record.set_aside_reason or record.last_error or record.reason)
    return (
        record.name.removeprefix("reservations/"),
        show_word(Record.State, record.state),
        show_word(cart_pb2.Reservation.State, record.shown_state) if record.shown_state else NOTHING,
        show_word(Record.Disposition, record.disposition),
        str(record.quantity),
        record.sku,
        str(record.attempt_count),
        show_moment(record.next_attempt_time) if record.HasField("next_attempt_time") else NOTHING,
        f"{record.observed_revision}/{record.revision}",
        show_age(record.create_time),
        _since(record),
        record.item,
        why if len(why) <= 60 else f"{why[:59]}…",
    )


def _since(record: pb.ReservationRecord) -> str:
    """Return for how long the reservation has been in its state, as far as its times say."""
    times = {
        Record.STATE_WAITING: record.create_time,
        Record.STATE_DUE: record.next_attempt_time,
        Record.STATE_EXPIRED: record.expire_time,
        Record.STATE_COMMITTED: record.finish_time,
        Record.STATE_RELEASED: record.finish_time,
    }
    time = times.get(record.state)
    return show_age(time) if time and time.seconds else NOTHING


def stats_lines(stats: pb.GetReservationStatsResponse) -> list[str]:
    """Return the backlog, the state of the Reservation API, and the pause if there is one."""
    rows = (
        (
            show_word(Record.State, one.state),
            show_word(Record.Disposition, one.disposition),
            str(one.count),
            show_moment(one.oldest_create_time),
        )
        for one in stats.backlog
    )
    lines = to_table([("STATE", "INTENT", "COUNT", "OLDEST"), *rows])
    since = f", the oldest since {show_moment(stats.oldest_due_time)}" if stats.due_count else ""
    lines.append(f"due now: {stats.due_count}{since}")
    if stats.HasField("reconciler"):
        breaker = "the Reservation API answers"
        if stats.reconciler.breaker_open:
            since = show_moment(stats.reconciler.breaker_open_time)
            breaker = f"the Reservation API has not answered since {since}: probing"
        lines.append(f"this process: {stats.reconciler.in_flight_count} calls in flight; {breaker}")
    if stats.HasField("pause"):
        lines.append(f"PAUSED since {show_moment(stats.pause.create_time)}: {stats.pause.reason}")
    return lines


def _checkout_row(checkout: cart_pb2.Checkout) -> Sequence[str]:
    return (
        checkout.name,
        show_word(Checkout.State, checkout.state),
        show_age(checkout.update_time),
        str(checkout.item_count),
        show_money(checkout.subtotal) if checkout.HasField("subtotal") else NOTHING,
        escape(checkout.order_reference) or NOTHING,
        checkout.cart,
        checkout.reason,
    )
