"""Converts the simulator's values to messages of `cartgrpc.reservation.v1` and back."""

import re
from collections.abc import Iterator, Sequence
from typing import Final
from uuid import UUID

from cartgrpc.reservation.v1 import reservation_pb2
from cartgrpc.simulator.v1 import simulator_pb2

from cart_grpc.protocol.reservation import MAX_TTL_US, MIN_TTL_US, Disposition, Intent
from cart_grpc.reservation_api import wire
from cart_grpc.simulator.errors import BadRequest, Lost, RevisionTooLow, SimulatorError, Throttled
from cart_grpc.simulator.faults import Faults, Garbage
from cart_grpc.simulator.rules import StoredReservation
from cart_grpc.simulator.simulator import Outcome, SimulatedReply
from cart_grpc.simulator.status import get_grpc_code
from cart_grpc.simulator.stock import Effect

NOT_A_MESSAGE: Final = b"<html><body>502 Bad Gateway</body></html>"
"""A response body that is neither JSON nor an encoded message."""

MAX_LOOKUP: Final = 500

_MAX_REVISION: Final = 2**53
# COMMIT and RELEASE ignore the ttl, but only a valid Duration can be answered.
_MAX_DURATION_US: Final = 315_576_000_000 * 1_000_000


def to_intent(message: reservation_pb2.Reservation) -> Intent:
    """Return the intent in `message`. OUTPUT_ONLY fields are ignored. Raises BadRequest."""
    check_id(message.reservation_id)
    if not 1 <= message.revision <= _MAX_REVISION:
        raise _bad("revision", "must be 1 to 2^53")
    if not message.sku:
        raise _bad("sku", "is required")
    try:
        disposition = Disposition(message.disposition)
    except ValueError:
        raise _bad("disposition", "must be DISPOSITION_HOLD, DISPOSITION_COMMIT or DISPOSITION_RELEASE") from None
    if disposition is not Disposition.RELEASE and message.quantity < 1:
        raise _bad("quantity", "must be 1 or more")
    ttl_us = wire.to_microseconds(message.ttl)
    if not (0 <= ttl_us <= _MAX_DURATION_US and abs(message.ttl.nanos) < 1_000_000_000):
        raise _bad("ttl", "must be a valid duration, and not negative")
    if disposition is Disposition.HOLD and not MIN_TTL_US <= ttl_us <= MAX_TTL_US:
        raise _bad("ttl", "must be 1 second to 25 hours for a hold")
    return Intent(
        reservation_id=message.reservation_id,
        revision=message.revision,
        sku=message.sku,
        quantity=message.quantity,
        disposition=disposition,
        ttl_us=ttl_us,
        labels=dict(message.labels),
    )


def check_id(text: str) -> None:
    """Raise BadRequest unless `text` is a UUIDv7 in its usual text form, in lower case."""
    if not re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", text):
        raise _bad("reservation_id", "must be a UUIDv7 in lower case, such as 019a0b1c-2d3e-7f40-8a1b-2c3d4e5f6071")


def check_lookup(count: int) -> None:
    """Raise BadRequest if `count` is more than MAX_LOOKUP."""
    if count > MAX_LOOKUP:
        raise _bad("reservation_ids", f"must be at most {MAX_LOOKUP}")


def to_reservation(stored: StoredReservation) -> reservation_pb2.Reservation:
    """Return the message for a reservation: the last request that was decided, and the decision."""
    message = wire.to_message(stored.intent)
    message.state = reservation_pb2.Reservation.State.ValueType(stored.state)
    message.granted_quantity = stored.granted
    if stored.expire_time is not None:
        message.expire_time.CopyFrom(wire.to_timestamp(stored.expire_time))
    message.reason = stored.reason
    return message


def to_response(reply: SimulatedReply) -> reservation_pb2.ApplyReservationResponse | None:
    """Return the response, including garbage. None stands for NOT_A_MESSAGE."""
    if reply.garbage is Garbage.NOT_A_MESSAGE:
        return None
    return reservation_pb2.ApplyReservationResponse(reservation=_to_reply(reply))


def check_batch(ids: Sequence[str]) -> None:
    """Raise BadRequest unless there are 1 to 100 entries with distinct ids. Without an id, a result names no entry."""
    if not 1 <= len(ids) <= wire.MAX_BATCH:
        raise _bad("reservations", f"must be 1 to {wire.MAX_BATCH}")
    if not all(ids) or len(set(ids)) < len(ids):
        raise _bad("reservations", "must have distinct ids")


def to_batch_responses(
    ids: Sequence[str], outcomes: Sequence[Outcome]
) -> Iterator[reservation_pb2.BatchApplyReservationsResponse | None]:
    """Yield the messages for `outcomes`: none for those that were lost. None stands for NOT_A_MESSAGE."""
    message, ends_in_garbage = reservation_pb2.BatchApplyReservationsResponse(), False
    for position, outcome in outcomes:
        match outcome:
            case Lost():
                pass
            case SimulatedReply(garbage=Garbage.NOT_A_MESSAGE):
                ends_in_garbage = True
            case SimulatedReply():
                message.results.add(reservation_id=ids[position], reservation=_to_reply(outcome))
            case _:
                message.results.add(reservation_id=ids[position], error=_to_error(outcome))
    if message.results:
        yield message
    if ends_in_garbage:
        yield None


def _to_error(error: SimulatorError) -> reservation_pb2.ReservationError:
    message = reservation_pb2.ReservationError(
        code=get_grpc_code(error).value[0], reason=error.reason, message=str(error)
    )
    if isinstance(error, RevisionTooLow):
        message.current.CopyFrom(to_reservation(error.current))
    if isinstance(error, Throttled):
        message.retry_delay.CopyFrom(wire.to_duration(error.retry_after_us))
    return message


def _to_reply(reply: SimulatedReply) -> reservation_pb2.Reservation:
    message = to_reservation(reply.reservation)
    match reply.garbage:
        case Garbage.WRONG_ID:
            number = UUID(message.reservation_id).int ^ 1
            message.reservation_id = str(UUID(int=number))
        case Garbage.WRONG_REVISION:
            message.revision += 1
        case Garbage.NO_STATE:
            message.ClearField("state")
    return message


def to_effect(effect: Effect) -> simulator_pb2.Effect:
    """Return the message for `effect`."""
    return simulator_pb2.Effect(
        sequence=effect.sequence,
        time=wire.to_timestamp(effect.time),
        reservation_id=effect.reservation_id,
        revision=effect.revision,
        sku=effect.sku,
        state=reservation_pb2.Reservation.State.ValueType(effect.state),
        quantity_before=effect.quantity_before,
        quantity_after=effect.quantity_after,
        labels=dict(effect.labels),
    )


def to_faults(message: simulator_pb2.Faults) -> Faults:
    """Return the faults in `message`. Raises BadRequest."""
    try:
        return Faults(
            latency_us=wire.to_microseconds(message.latency),
            slow=message.slow,
            slow_latency_us=wire.to_microseconds(message.slow_latency),
            lost_before_effect=message.lost_before_effect,
            lost_after_effect=message.lost_after_effect,
            duplicated=message.duplicated,
            duplicate_delay_us=wire.to_microseconds(message.duplicate_delay),
            refused=message.refused,
            out_of_stock=message.out_of_stock,
            garbage=message.garbage,
            throttled=message.throttled,
            down=message.down,
            no_batches=message.no_batches,
        )
    except ValueError as error:
        raise BadRequest("INVALID_FIELD", f"faults: {error}") from None


def to_faults_message(faults: Faults) -> simulator_pb2.Faults:
    """Return the message for `faults`."""
    return simulator_pb2.Faults(
        latency=wire.to_duration(faults.latency_us),
        slow=faults.slow,
        slow_latency=wire.to_duration(faults.slow_latency_us),
        lost_before_effect=faults.lost_before_effect,
        lost_after_effect=faults.lost_after_effect,
        duplicated=faults.duplicated,
        duplicate_delay=wire.to_duration(faults.duplicate_delay_us),
        refused=faults.refused,
        out_of_stock=faults.out_of_stock,
        garbage=faults.garbage,
        throttled=faults.throttled,
        down=faults.down,
        no_batches=faults.no_batches,
    )


def _bad(field: str, description: str) -> BadRequest:
    return BadRequest("INVALID_FIELD", f"{field} {description}")
