"""Conversions between our values and the messages of `cartgrpc.reservation.v1`, for all transports.

Answers are checked strictly. An answer that names another reservation or revision, or contradicts itself, does not
answer our request. If it were recorded, the row would show a decision that the API did not take. Such an answer raises
NoAnswerError("INVALID_ANSWER", reached=True).
"""

import re
from collections.abc import Sequence
from typing import Final

from cartgrpc.reservation.v1 import reservation_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2

from cart_grpc.protocol.reservation import Decision, Disposition, Intent, Observed
from cart_grpc.reservation_api.api import Answer, NoAnswerError, PermanentFailure, StaleRevision

MAX_ANSWER_BYTES: Final = 1 << 16
"""Far more than any valid answer about one reservation. To parse 1 MiB would keep all calls waiting for 0.3 s."""

MAX_LOOKUP_BYTES: Final = 1 << 20
"""Enough for an answer about 500 reservations with the longest skus."""

MAX_BATCH: Final = 100
"""The most entries of a batch."""

MAX_BATCH_MESSAGE_BYTES: Final = 1 << 18
"""Enough for a full batch of the longest skus: JSON may need 12 bytes for each of their 128 characters."""

MAX_BATCH_BYTES: Final = 1 << 19
"""Of all messages that answer one batch."""

PERMANENT: Final = frozenset({"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "OUT_OF_RANGE", "ALREADY_EXISTS"})
"""The codes of permanent errors, which are 400, 404, 409 and 422 over HTTP.

UNIMPLEMENTED, PERMISSION_DENIED and UNAUTHENTICATED are not among them: they mean a wrong configuration, and rejecting
every item because of it would be worse than waiting until an operator corrects it.
"""

REACHED: Final = frozenset({"RESOURCE_EXHAUSTED", "ABORTED"})
"""The codes with which a working API declines a call."""

MAX_REVISION: Final = 2**52
"""The highest revision of an answer to which our own may be raised.

Half of the integers that a JSON number holds exactly: the renewals after it and a million restores stay exact, too, and
far from the end of 64 bits.
"""

_MAX_TEXT: Final = 500
_MAX_ID: Final = 1000
_MAX_REASON: Final = 63
_MAX_RETRY_AFTER_US: Final = 24 * 3600 * 1_000_000
_LAST_SECOND: Final = 253_402_300_799  # the end of the year 9999, the maximum of google.protobuf.Timestamp

# The states that can answer each disposition.
_POSSIBLE_STATES: Final = {
    Disposition.HOLD: frozenset(
        {Observed.HELD, Observed.REJECTED, Observed.EXPIRED, Observed.RELEASED, Observed.COMMITTED}
    ),
    Disposition.COMMIT: frozenset({Observed.COMMITTED, Observed.REJECTED, Observed.RELEASED}),
    Disposition.RELEASE: frozenset({Observed.RELEASED, Observed.COMMITTED}),
}


def to_message(intent: Intent) -> reservation_pb2.Reservation:
    """Return the message for `intent`, with its OUTPUT_ONLY fields empty.

    Raises NoAnswerError("INTERNAL") if no message can hold the intent. Nothing was sent then, and one bad row must not
    stop the others.
    """
    try:
        return reservation_pb2.Reservation(
            reservation_id=intent.reservation_id,
            revision=intent.revision,
            sku=intent.sku,
            quantity=intent.quantity,
            disposition=reservation_pb2.Reservation.Disposition.ValueType(intent.disposition),
            ttl=to_duration(intent.ttl_us) if intent.ttl_us > 0 else None,
            labels=dict(intent.labels) or None,
        )
    except (ValueError, TypeError) as error:
        raise NoAnswerError(
            "INTERNAL", f"the intent does not fit into a message: {clean_text(str(error))}", reached=True
        ) from None


def to_decision(message: reservation_pb2.Reservation, intent: Intent) -> Decision:
    """Return the decision on `intent` in `message`. Raises NoAnswerError("INVALID_ANSWER") if there is none."""
    if message.revision != intent.revision:
        raise invalid_answer(f"asked about revision {intent.revision}, answered about {message.revision}")
    decision = to_latest(message, intent.reservation_id, intent.sku)
    if decision.state not in _POSSIBLE_STATES[intent.disposition]:
        raise invalid_answer(f"{intent.disposition.name} cannot be {decision.state.name}")
    if decision.state is Observed.HELD and decision.granted_quantity != intent.quantity:
        raise invalid_answer(f"HELD with {decision.granted_quantity} granted of {intent.quantity}")
    return decision


def to_stale_revision(message: reservation_pb2.Reservation, intent: Intent) -> StaleRevision:
    """Return the newer decision in `message`. Raises NoAnswerError("INVALID_ANSWER") if it is not newer."""
    if message.revision <= intent.revision:
        raise invalid_answer(f"revision {intent.revision} is overtaken by {message.revision}, which is not higher")
    if message.revision > MAX_REVISION:
        raise invalid_answer(f"revision {intent.revision} is overtaken by {message.revision}, which is above 2^52")
    return StaleRevision(to_latest(message, intent.reservation_id, intent.sku))


def to_latest(message: reservation_pb2.Reservation, reservation_id: str, sku: str = "") -> Decision:
    """Return the decision in `message`, of any revision from 1, about `reservation_id` and, if given, `sku`.

    Raises NoAnswerError("INVALID_ANSWER") if the message contradicts itself or is about another reservation.
    """
    if message.reservation_id != reservation_id:
        raise invalid_answer(f"asked about {reservation_id}, answered about {message.reservation_id!r}")
    if sku and message.sku and message.sku != sku:
        raise invalid_answer(f"asked about sku {sku!r}, answered about {message.sku!r}")
    if message.revision < 1:
        raise invalid_answer(f"revision {message.revision}")
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
    """Return the decisions found and the ids missing. Raises NoAnswerError("INVALID_ANSWER") if an id is in neither."""
    answered = [*(each.reservation_id for each in message.found), *message.missing]
    if sorted(answered) != sorted(reservation_ids):
        raise invalid_answer(
            f"asked about {len(reservation_ids)} reservations, answered about {len(answered)} or about others"
        )
    return [to_latest(each, each.reservation_id) for each in message.found], list(message.missing)


def to_outcome(result: reservation_pb2.ReservationResult, intent: Intent) -> Answer:
    """Return the answer to one entry of a batch. Raises NoAnswerError, as a single call with this answer would."""
    if result.HasField("reservation"):
        return to_decision(result.reservation, intent)
    error = result.error
    if error.code == code_pb2.OK:
        raise invalid_answer("the result has neither a reservation nor the code of an error")
    code = code_pb2.Code.Name(error.code) if error.code in code_pb2.Code.values() else "UNKNOWN"
    if code in PERMANENT:
        return to_permanent_failure(error.reason, code, error.message)
    if code == "ABORTED" and error.HasField("current"):
        return to_stale_revision(error.current, intent)
    retry_after_us = clean_retry_after(to_microseconds(error.retry_delay))
    raise NoAnswerError(code, clean_text(error.message), retry_after_us=retry_after_us, reached=code in REACHED)


def to_permanent_failure(reason: str, fallback: str, message: str) -> PermanentFailure:
    """Return a refusal with `reason`, or `fallback` if it is empty, cleaned so that it can be stored and shown."""
    return PermanentFailure(clean_reason(reason) or fallback, clean_text(message))


def invalid_answer(message: str) -> NoAnswerError:
    """Return, not raise, the NoAnswerError for an invalid answer; `message` says why it is invalid."""
    return NoAnswerError("INVALID_ANSWER", clean_text(message), reached=True)


def is_clean_id(text: str) -> bool:
    """Whether `text`, an id from outside, can be stored, shown and put into a URL: 1 to 1,000 visible characters."""
    return 0 < len(text) <= _MAX_ID and text.isprintable()


def clean_text(text: str) -> str:
    """Return `text` without control, invisible and unpaired surrogate characters, cut to 500 characters.

    It comes from outside, and is stored, logged and shown to operators.
    """
    visible = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * _MAX_TEXT])
    return " ".join(visible.split())[:_MAX_TEXT]


def clean_reason(text: str) -> str:
    """Return `text` as UPPER_SNAKE_CASE of at most 63 characters, a letter first; empty if no character fits."""
    words = re.sub(r"[^A-Z0-9]+", "_", text[: 4 * _MAX_REASON].upper()).lstrip("_0123456789")
    return words[:_MAX_REASON].rstrip("_")


def clean_retry_after(microseconds: int) -> int | None:
    """Return the wait that the API asked for, in microseconds, a day at most; None if it is not positive."""
    return min(microseconds, _MAX_RETRY_AFTER_US) if microseconds > 0 else None


def to_duration(microseconds: int) -> Duration:
    """Return `microseconds`, 0 or more, as a Duration. Raises ValueError if it is more than a Duration can hold."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return Duration(seconds=seconds, nanos=rest * 1000)


def to_timestamp(microseconds: int) -> Timestamp:
    """Return `microseconds` since the epoch as a Timestamp."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1000)


def to_microseconds(value: Duration | Timestamp) -> int:
    """Return a Duration or Timestamp in microseconds, rounded down, so that no hold is recorded as lasting longer."""
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
