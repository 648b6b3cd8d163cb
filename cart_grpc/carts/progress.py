"""What callers see of a reservation."""

from enum import IntEnum
from typing import NamedTuple

from cart_grpc.carts.model import Line
from cart_grpc.protocol.attempts import is_uncertain
from cart_grpc.protocol.reservation import RELEASED_BY_OPERATOR, Disposition, Observed, Reservation


class ProgressState(IntEnum):
    """How far a reservation is, as callers see it. The numbers are those of `cartgrpc.v1`."""

    PENDING = 1
    RESERVED = 2
    REJECTED = 3
    EXPIRED = 4
    RELEASING = 5
    COMMITTED = 6
    UNCERTAIN = 7


class Progress(NamedTuple):
    """What callers see of a reservation.

    `reserved_quantity` are certainly held, until `expire_time`, or for good where that is None.
    """

    state: ProgressState
    reserved_quantity: int
    expire_time: int | None
    reason: str
    message: str


# A hold is no longer shown as held this close to its end: the caller could not act on it in time.
HOLD_MARGIN_US = 2_000_000


def progress(line: Line, now: int) -> Progress:
    """How far the reservation of `line` is at `now`: computed, never stored.

    RESERVED if the unexpired grant covers the quantity, else PENDING (or UNCERTAIN) while unanswered, else REJECTED or
    EXPIRED. A renewal shows nowhere. What is shown as reserved is the least of the last grant observed and every
    quantity intended since.
    """
    row, wanted = line.reservation, line.item.quantity
    if row.state is Observed.COMMITTED:
        return Progress(ProgressState.COMMITTED, row.granted_quantity, None, "", "")
    held = _held_quantity(row, now)
    expire_time = row.expire_time if held else None
    if held >= wanted and row.disposition is Disposition.HOLD:
        return Progress(ProgressState.RESERVED, held, expire_time, "", "")
    if is_uncertain(row) and row.last_error:
        return Progress(ProgressState.UNCERTAIN, held, expire_time, "", _why_uncertain(row))
    if row.reconciling:
        return Progress(ProgressState.PENDING, held, expire_time, "", _why_pending(row))
    if row.seal_reason or row.state in (Observed.REJECTED, Observed.RELEASED):
        reason = row.seal_reason or row.reason or row.state.name
        message = f"the Reservation API refused {wanted} of {row.sku}: {reason}; {held} held"
        if reason == RELEASED_BY_OPERATOR:
            message = f"an operator gave back what was reserved of {row.sku}"
        return Progress(ProgressState.REJECTED, held, expire_time, reason, message)
    return Progress(
        ProgressState.EXPIRED,
        0,
        None,
        "HOLD_EXPIRED",
        f"the hold on {wanted} of {row.sku} ran out and is asked for again",
    )


def _held_quantity(row: Reservation, now: int) -> int:
    lapsed = row.expire_time is not None and row.expire_time - HOLD_MARGIN_US <= now
    if lapsed or row.state not in (Observed.HELD, Observed.REJECTED):
        return 0
    return min(row.granted_quantity, row.reserved_cap)


def _why_uncertain(row: Reservation) -> str:
    code, _, _ = row.last_error.partition(":")
    return f"an attempt was not answered ({code}) and may have taken effect; it is looked for before another is made"


def _why_pending(row: Reservation) -> str:
    if row.waiting:
        return "waits for an earlier reservation of the same sku to be released"
    code, _, _ = row.last_error.partition(":")
    return f"no answer yet; the last attempt ended with {code}" if code else ""
