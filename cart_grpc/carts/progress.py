"""The progress of a reservation, as callers see it."""

from enum import IntEnum
from typing import NamedTuple

from cart_grpc.carts.model import Line
from cart_grpc.protocol.attempts import is_uncertain
from cart_grpc.protocol.reservation import RELEASED_BY_OPERATOR, Disposition, Observed, Reservation


class ProgressState(IntEnum):
    """The states of a reservation, as callers see them. The numbers are those of `cartgrpc.v1`."""

    PENDING = 1
    RESERVED = 2
    REJECTED = 3
    EXPIRED = 4
    RELEASING = 5
    COMMITTED = 6
    UNCERTAIN = 7


class Progress(NamedTuple):
    """The progress of one reservation.

    The Reservation API certainly holds `reserved_quantity` until `expire_time`. If that is None, the hold has no end.
    """

    state: ProgressState
    reserved_quantity: int
    expire_time: int | None
    reason: str
    message: str


# So long before its end, a hold is no longer shown as held: the caller could not act on it in time.
HOLD_MARGIN_US = 2_000_000


def progress(line: Line, now: int) -> Progress:
    """The progress of the reservation of `line` at `now`. It is computed, never stored.

    The state is RESERVED if an unexpired grant covers the quantity. Otherwise it is PENDING or UNCERTAIN until the
    answer comes, and REJECTED or EXPIRED after that. Renewals do not change it. `reserved_quantity` is the smallest of
    the last observed grant and all quantities intended after that grant.
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
            message = f"an operator released the reservation of {row.sku}"
        return Progress(ProgressState.REJECTED, held, expire_time, reason, message)
    return Progress(
        ProgressState.EXPIRED,
        0,
        None,
        "HOLD_EXPIRED",
        f"the hold on {wanted} of {row.sku} expired; the service is reserving it again",
    )


def _held_quantity(row: Reservation, now: int) -> int:
    lapsed = row.expire_time is not None and row.expire_time - HOLD_MARGIN_US <= now
    if lapsed or row.state not in (Observed.HELD, Observed.REJECTED):
        return 0
    return min(row.granted_quantity, row.reserved_cap)


def _why_uncertain(row: Reservation) -> str:
    code, _, _ = row.last_error.partition(":")
    return f"an attempt got no answer ({code}) and may have taken effect; the next attempt waits until this is known"


def _why_pending(row: Reservation) -> str:
    if row.waiting:
        return "waits for an earlier reservation of the same sku to be released"
    code, _, _ = row.last_error.partition(":")
    return f"no answer yet; the last attempt ended with {code}" if code else ""
