"""The progress of a reservation, as callers see it: computed at each read, never stored."""

from enum import IntEnum
from typing import NamedTuple

from cart_grpc.carts.model import Line
from cart_grpc.protocol.attempts import is_uncertain
from cart_grpc.protocol.reservation import RELEASED_BY_OPERATOR, Disposition, Observed, Reservation


class ProgressState(IntEnum):
    """The state of a reservation, as callers see it. `cartgrpc.v1` uses the same numbers."""

    PENDING = 1
    RESERVED = 2
    REJECTED = 3
    EXPIRED = 4
    RELEASING = 5
    COMMITTED = 6
    UNCERTAIN = 7
    COMMITTING = 8


class Progress(NamedTuple):
    """The state of a reservation, and the quantity that is certainly held until `expire_time` (None: without end).

    `reason` is UPPER_SNAKE_CASE; reason and message are "" if there is nothing to explain.
    """

    state: ProgressState
    reserved_quantity: int
    expire_time: int | None
    reason: str
    message: str


_SET_ASIDE = "the server cannot process the reservation, and an operator has to look at it"
# This close to its end, a hold no longer shows as held: a caller could not act on it in time.
HOLD_MARGIN_US = 2_000_000


def progress(line: Line, now: int) -> Progress:
    """The progress of the line's reservation at `now`.

    RESERVED if the unexpired grant covers the quantity; else PENDING or UNCERTAIN if an answer is missing; else
    REJECTED or EXPIRED. A renewal does not show. The reserved quantity is the least of the last observed grant and
    every quantity intended since. An item that has passed to a checkout is COMMITTING, COMMITTED or REJECTED, and
    RELEASING and then REJECTED if the checkout was cancelled.
    """
    return progress_of(line.reservation, line.item.quantity, now)


def progress_of(row: Reservation, wanted: int, now: int) -> Progress:
    """The progress of a reservation whose item has `wanted` units."""
    if row.state is Observed.COMMITTED:
        return Progress(ProgressState.COMMITTED, row.granted_quantity, None, "", "")
    held = held_quantity(row, now)
    expire_time = row.expire_time if held else None
    if not row.is_of_cart and row.reconciling:
        return _progress_of_sale(row, held)
    if held >= wanted and row.disposition is Disposition.HOLD:
        return Progress(ProgressState.RESERVED, held, expire_time, "", "")
    if is_uncertain(row) and row.last_error:
        return Progress(ProgressState.UNCERTAIN, held, expire_time, "", _why_uncertain(row))
    if row.reconciling:
        return Progress(ProgressState.PENDING, held, expire_time, "", _why_pending(row))
    if row.seal_reason or row.state in (Observed.REJECTED, Observed.RELEASED):
        reason = row.seal_reason or row.reason or row.state.name
        message = f"the Reservation API refused {wanted} of {row.sku}: {reason}; {held} held"
        if row.checkout_id and row.disposition is Disposition.RELEASE:
            message = f"{wanted} of {row.sku} was not sold, and is released"
        if reason == RELEASED_BY_OPERATOR:
            message = f"an operator released the reservation of {row.sku}"
        return Progress(ProgressState.REJECTED, held, expire_time, reason, message)
    again = _SET_ASIDE if row.set_aside_reason else "it is being requested again"
    message = f"the hold on {wanted} of {row.sku} expired; {again}"
    return Progress(ProgressState.EXPIRED, 0, None, "HOLD_EXPIRED", message)


def _progress_of_sale(row: Reservation, held: int) -> Progress:
    """The progress of a reservation that has passed to a checkout, until the answer of the Reservation API."""
    why = _why_uncertain(row) if is_uncertain(row) and row.last_error else _why_pending(row)
    is_sale = row.disposition is Disposition.COMMIT
    state = ProgressState.COMMITTING if is_sale else ProgressState.RELEASING
    return Progress(state, held, row.expire_time if held else None, "", why)


def shown_fields(row: Reservation, now: int) -> tuple[object, ...]:
    """All that state, quantity and reason of `progress` depend on, but for the item. The message depends on more."""
    is_unanswered = is_uncertain(row) and bool(row.last_error)
    held = held_quantity(row, now)
    return (row.state, row.disposition, held, row.reconciling, is_unanswered, row.seal_reason, row.reason)


def held_quantity(row: Reservation, now: int) -> int:
    """The quantity that is certainly held at `now`: 0 if the hold has lapsed, or nothing is known."""
    lapsed = row.expire_time is not None and row.expire_time - HOLD_MARGIN_US <= now
    if lapsed or row.state not in (Observed.HELD, Observed.REJECTED):
        return 0
    return min(row.granted_quantity, row.reserved_cap)


def _why_uncertain(row: Reservation) -> str:
    code, _, _ = row.last_error.partition(":")
    return f"an attempt got no answer ({code}) and may have taken effect; it is looked up before the next attempt"


def _why_pending(row: Reservation) -> str:
    if row.set_aside_reason:
        return _SET_ASIDE
    if row.waiting:
        return "waiting until an earlier reservation of the same sku is released"
    code, _, _ = row.last_error.partition(":")
    return f"no answer yet; the last attempt ended with {code}" if code else ""
