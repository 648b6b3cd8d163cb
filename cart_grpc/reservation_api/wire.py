"""Our values and the messages of `cartgrpc.reservation.v1`, one into the other, whatever they travel over.

Outward it cannot fail for an intent that the cart made. Inward it is strict: an answer that names another
reservation or revision, or contradicts itself, was not an answer to what we asked, and believing it would record a
decision that nobody took. Such an answer is NoAnswerError("INVALID_ANSWER", reached=True).
"""

import re
from collections.abc import Sequence
from typing import Final

from cartgrpc.reservation.v1 import reservation_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from cart_grpc.protocol.reservation import Decision, Disposition, Intent, Observed
from cart_grpc.reservation_api.api import NoAnswerError, PermanentFailure, StaleRevision

MAX_ANSWER_BYTES: Final = 1 << 20
"""No honest answer about one reservation comes near it."""

_MAX_TEXT: Final = 500
_MAX_REASON: Final = 63
_MAX_RETRY_AFTER: Final = 24 * 3600 * 1_000_000
_LAST_SECOND: Final = 253_402_300_799  # of the year 9999, where google.protobuf.Timestamp ends

_FITTING: Final = {
    Disposition.HOLD: frozenset(
        {Observed.HELD, Observed.REJECTED, Observed.EXPIRED, Observed.RELEASED, Observed.COMMITTED}
    ),
    Disposition.COMMIT: frozenset({Observed.COMMITTED, Observed.REJECTED, Observed.RELEASED}),
    Disposition.RELEASE: frozenset({Observed.RELEASED, Observed.COMMITTED}),
}


def to_message(intent: Intent) -> reservation_pb2.Reservation:
    """Return the message that says `intent`, its OUTPUT_ONLY fields empty.

    Raises NoAnswerError("INTERNAL") for an intent that no message can carry: nothing was sent, and the row must not
    stop the worker.
    """
    try:
        return reservation_pb2.Reservation(
            reservation_id=intent.reservation_id,
            revision=intent.revision,
            sku=intent.sku,
            quantity=intent.quantity,
            disposition=reservation_pb2.Reservation.Disposition.ValueType(intent.disposition),
            ttl=to_duration(intent.ttl_us) if intent.ttl_us > 0 else None,
            labels=dict(intent.labels),
        )
    except (ValueError, TypeError) as error:
        raise NoAnswerError(
            "INTERNAL", f"no message can carry this intent: {clean_text(str(error))}", reached=True
        ) from None


def to_decision(message: reservation_pb2.Reservation, intent: Intent) -> Decision:
    """Return the decision on `intent` that `message` tells. Raises NoAnswerError("INVALID_ANSWER") if it tells none."""
    if message.revision != intent.revision:
        raise invalid_answer(f"asked about revision {intent.revision}, answered about {message.revision}")
    decision = to_latest(message, intent.reservation_id, intent.sku)
    if decision.state not in _FITTING[intent.disposition]:
        raise invalid_answer(f"{intent.disposition.name} cannot be {decision.state.name}")
    if decision.state is Observed.HELD and decision.granted_quantity != intent.quantity:
        raise invalid_answer(f"HELD with {decision.granted_quantity} granted of {intent.quantity}")
    return decision


def to_stale_revision(message: reservation_pb2.Reservation, intent: Intent) -> StaleRevision:
    """Return the newer decision that `message` tells. Raises NoAnswerError("INVALID_ANSWER") if it is not newer."""
    if message.revision <= intent.revision:
        raise invalid_answer(f"revision {intent.revision} is overtaken by {message.revision}, which is not higher")
    return StaleRevision(to_latest(message, intent.reservation_id, intent.sku))


def to_latest(message: reservation_pb2.Reservation, reservation_id: str, sku: str = "") -> Decision:
    """Return what `message` tells of `reservation_id`, of `sku` where one is given, and of whatever revision.

    Raises NoAnswerError("INVALID_ANSWER") if it contradicts itself or is about something else.
    """
    if message.reservation_id != reservation_id:
        raise invalid_answer(f"asked about {reservation_id}, answered about {message.reservation_id!r}")
    if sku and message.sku and message.sku != sku:
        raise invalid_answer(f"asked about sku {sku!r}, answered about {message.sku!r}")
    try:
        state = Observed(message.state)
    except ValueError:
        raise invalid_answer(f"unknown state {message.state}") from None
    granted = message.granted_quantity
    _check_granted(state, granted)
    still_held = granted > 0 and state in (Observed.HELD, Observed.REJECTED)
    return Decision(
        reservation_id=message.reservation_id,
        revision=message.revision,
        state=state,
        granted_quantity=granted,
        expire_time=_to_expire_time(message) if still_held else None,
        reason=(clean_reason(message.reason) or "UNSPECIFIED") if state is Observed.REJECTED else "",
    )


def to_looked_up(
    message: reservation_pb2.LookupReservationsResponse, reservation_ids: Sequence[str]
) -> tuple[list[Decision], list[str]]:
    """Return the known decisions, and the other ids. Raises NoAnswerError("INVALID_ANSWER") if an id is left out."""
    told = [*(each.reservation_id for each in message.found), *message.missing]
    if sorted(told) != sorted(reservation_ids):
        raise invalid_answer(f"asked about {len(reservation_ids)} reservations, answered about {len(told)} or others")
    return [to_latest(each, each.reservation_id) for each in message.found], list(message.missing)


def to_permanent_failure(reason: str, fallback: str, message: str) -> PermanentFailure:
    """Return a refusal with `reason`, or `fallback` if there is none, both made fit to be shown and stored."""
    return PermanentFailure(clean_reason(reason) or fallback, clean_text(message))


def invalid_answer(message: str) -> NoAnswerError:
    """Return, not raise, the NoAnswerError for an answer that cannot be believed; `message` says why."""
    return NoAnswerError("INVALID_ANSWER", clean_text(message), reached=True)


def clean_text(text: str) -> str:
    """Return `text` without control characters and with at most 500 characters: a stranger wrote it."""
    visible = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * _MAX_TEXT])
    return " ".join(visible.split())[:_MAX_TEXT]


def clean_reason(text: str) -> str:
    """Return `text` as UPPER_SNAKE_CASE of at most 63 characters; empty if nothing in it can be kept."""
    return re.sub(r"[^A-Z0-9]+", "_", text[: 4 * _MAX_REASON].upper()).strip("_")[:_MAX_REASON].strip("_")


def clean_retry_after(microseconds: int) -> int | None:
    """Return the wait that the API asked for, a day at most; None for one that is not in the future."""
    return min(microseconds, _MAX_RETRY_AFTER) if microseconds > 0 else None


def to_duration(microseconds: int) -> Duration:
    """Return `microseconds`, 0 or more, as a Duration. Raises ValueError past what a Duration can hold."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return Duration(seconds=seconds, nanos=rest * 1000)


def to_timestamp(microseconds: int) -> Timestamp:
    """Return `microseconds` since the epoch as a Timestamp."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1000)


def to_microseconds(value: Duration | Timestamp) -> int:
    """Return a Duration's or Timestamp's microseconds, rounded down: a hold is not believed to last longer."""
    return value.seconds * 1_000_000 + value.nanos // 1000


def _check_granted(state: Observed, granted: int) -> None:
    if state is Observed.NOTHING:
        raise invalid_answer("no state")
    if granted < 0:
        raise invalid_answer(f"{granted} granted")
    if granted == 0 and state in (Observed.HELD, Observed.COMMITTED):
        raise invalid_answer(f"{state.name} with nothing granted")
    if granted > 0 and state in (Observed.RELEASED, Observed.EXPIRED):
        raise invalid_answer(f"{state.name} with {granted} granted")


def _to_expire_time(message: reservation_pb2.Reservation) -> int:
    time = message.expire_time
    if not message.HasField("expire_time"):
        raise invalid_answer("a hold without expire_time")
    if not (0 <= time.seconds <= _LAST_SECOND and 0 <= time.nanos < 1_000_000_000):
        raise invalid_answer("expire_time out of range")
    return to_microseconds(time)
