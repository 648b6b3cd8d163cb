"""Rows that make a statement fail: each is found, set aside and reported to operators, so that the others go on.

A statement over many rows fails as a whole if one of them has a value that the database or our code cannot process.
Without this module, such a row would stop every claim that includes it, for ever.
"""

from collections.abc import Awaitable
from dataclasses import replace
from typing import TypeVar

from cart_grpc.background.claims import key_of
from cart_grpc.commands.direct import MAX_SET_ASIDE_REASON, Claim, ClaimKey, ExtendLeases, ReturnClaims, SetAside
from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.metrics import ALARMS
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.reservation_api.wire import clean_text
from cart_grpc.store.failures import find_cause, is_row_at_fault
from cart_grpc.store.store import Store

log = Log(__name__)
T = TypeVar("T")


async def claim(store: Store, wanted: Claim) -> list[Reservation]:
    """Claim due reservations. If a row makes the claim fail, claim one by one, and set aside each row that fails.

    Raises Unavailable, and errors that are no row's fault.
    """
    try:
        return await store.claim(wanted)
    except Exception as error:
        if not is_row_at_fault(error):
            raise
    claimed: list[Reservation] = []
    for row in await store.reads.find_due(wanted.lane, wanted.limit):
        try:
            claimed += await _or_set_aside(store, row, store.claim(replace(wanted, only=row))) or []
        except Exception:
            # The reservations that are claimed by now need an owner.
            if not claimed:
                raise
            break
    return claimed


async def update_leases(store: Store, command: ExtendLeases | ReturnClaims) -> None:
    """Extend or return claims. If a row makes that fail, do it one by one, and set aside each row that fails.

    Raises as `claim` does.
    """
    try:
        await store.update_leases(command)
    except Exception as error:
        if not is_row_at_fault(error):
            raise
        for claimed in command.claims:
            await _or_set_aside(store, key_of(claimed), store.update_leases(replace(command, claims=[claimed])))


async def set_aside(store: Store, row: ClaimKey, error: Exception) -> None:
    """Set `row` aside because of `error`, and tell operators. Raises what the store raises."""
    origin = find_cause(error)
    origin = origin.__cause__ or origin
    # A database appends the values of the row. They do not belong in a log.
    reason = clean_text(f"{type(origin).__name__}: {str(origin).partition(chr(10))[0]}")[:MAX_SET_ASIDE_REASON]
    if await store.set_aside(SetAside(row, reason)):
        ALARMS.inc()
        text = "reservation %s: set aside until an operator retries or ends it: %s"
        log(events.RESERVATION_SET_ASIDE, text, row.reservation_id, reason, reservation=row.reservation_id)


def log_not_set_aside(reservation_id: str, error: Exception) -> None:
    """Log that a row fails, and that it cannot be set aside because of `error`."""
    text = "reservation %s: it fails, and cannot be set aside"
    log(events.SET_ASIDE_FAILED, text, reservation_id, reservation=reservation_id, exc_info=error)


async def _or_set_aside(store: Store, row: ClaimKey, write: Awaitable[T]) -> T | None:
    """Await `write`, which writes one row, or set the row aside if it is at fault."""
    try:
        return await write
    except Exception as error:
        if not is_row_at_fault(error):
            raise
        try:
            await set_aside(store, row, error)
        except Exception as second:
            if not is_row_at_fault(second):
                raise
            log_not_set_aside(row.reservation_id, second)
        return None
