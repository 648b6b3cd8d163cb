"""The simulator's values and the messages of `cartgrpc.reservation.v1`, one into the other."""

import re
from typing import Final
from uuid import UUID

from cartgrpc.reservation.v1 import reservation_pb2
from cartgrpc.simulator.v1 import simulator_pb2

from cart_grpc.protocol.reservation import Disposition, Intent
from cart_grpc.reservation_api import wire
from cart_grpc.simulator.errors import BadRequest
from cart_grpc.simulator.faults import Faults, Nonsense
from cart_grpc.simulator.rules import Record
from cart_grpc.simulator.simulator import Told
from cart_grpc.simulator.stock import Effect

NO_MESSAGE: Final = b"<html><body>502 Bad Gateway</body></html>"
"""What a caller gets instead of a message: neither JSON nor an encoded one."""

MAX_LOOKUP: Final = 1000

_MAX_TTL: Final = 366 * 24 * 3600 * 1_000_000


def to_intent(message: reservation_pb2.Reservation) -> Intent:
    """Return what `message` asks for; its OUTPUT_ONLY fields are ignored. Raises BadRequest."""
    check_id(message.reservation_id)
    if message.revision < 1:
        raise _bad("revision", "it is 1 or more")
    if not message.sku:
        raise _bad("sku", "it is missing")
    try:
        disposition = Disposition(message.disposition)
    except ValueError:
        raise _bad("disposition", "it is DISPOSITION_HOLD, DISPOSITION_COMMIT or DISPOSITION_RELEASE") from None
    if disposition is not Disposition.RELEASE and message.quantity < 1:
        raise _bad("quantity", "it is 1 or more")
    ttl = wire.to_microseconds(message.ttl)
    if not (0 <= ttl <= _MAX_TTL and abs(message.ttl.nanos) < 1_000_000_000):
        raise _bad("ttl", "it is a valid duration, not negative and not longer than a year")
    if disposition is Disposition.HOLD and ttl == 0:
        raise _bad("ttl", "a hold needs it")
    return Intent(
        reservation_id=message.reservation_id,
        revision=message.revision,
        sku=message.sku,
        quantity=message.quantity,
        disposition=disposition,
        ttl_us=ttl,
        labels=dict(message.labels),
    )


def check_id(text: str) -> None:
    """Raise BadRequest for what is not a UUIDv7 in its usual text form."""
    if not re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", text):
        raise _bad("reservation_id", "it is a UUIDv7 in lower case, such as 019a0b1c-2d3e-7f40-8a1b-2c3d4e5f6071")


def check_lookup(count: int) -> None:
    """Raise BadRequest for more ids than may be looked up at once."""
    if count > MAX_LOOKUP:
        raise _bad("reservation_ids", f"they are {MAX_LOOKUP} at most")


def to_reservation(record: Record) -> reservation_pb2.Reservation:
    """Return the message that tells what is remembered: the body that was decided, and the decision."""
    message = wire.to_message(record.intent)
    message.state = reservation_pb2.Reservation.State.ValueType(record.state)
    message.granted_quantity = record.granted
    if record.expire_time is not None:
        message.expire_time.CopyFrom(wire.to_timestamp(record.expire_time))
    message.reason = record.reason
    return message


def to_answer(told: Told) -> reservation_pb2.ApplyReservationResponse | None:
    """Return what the caller is told, nonsense included; None where it is not even a message."""
    message = to_reservation(told.record)
    match told.nonsense:
        case Nonsense.NO_MESSAGE:
            return None
        case Nonsense.ANOTHER_ID:
            number = UUID(message.reservation_id).int ^ 1
            message.reservation_id = str(UUID(int=number))
        case Nonsense.ANOTHER_REVISION:
            message.revision += 1
        case Nonsense.NO_STATE:
            message.ClearField("state")
        case None:
            pass
    return reservation_pb2.ApplyReservationResponse(reservation=message)


def to_effect(effect: Effect) -> simulator_pb2.Effect:
    """Return the message for one effect."""
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
    """Return the faults that `message` asks for. Raises BadRequest."""
    try:
        return Faults(
            latency=wire.to_microseconds(message.latency),
            slow=message.slow,
            slow_latency=wire.to_microseconds(message.slow_latency),
            lost_before_effect=message.lost_before_effect,
            lost_after_effect=message.lost_after_effect,
            duplicated=message.duplicated,
            duplicate_delay=wire.to_microseconds(message.duplicate_delay),
            refused=message.refused,
            out_of_stock=message.out_of_stock,
            garbage=message.garbage,
            throttled=message.throttled,
            down=message.down,
        )
    except ValueError as error:
        raise _bad("faults", str(error)) from None


def to_faults_message(faults: Faults) -> simulator_pb2.Faults:
    """Return the message for `faults`."""
    return simulator_pb2.Faults(
        latency=wire.to_duration(faults.latency),
        slow=faults.slow,
        slow_latency=wire.to_duration(faults.slow_latency),
        lost_before_effect=faults.lost_before_effect,
        lost_after_effect=faults.lost_after_effect,
        duplicated=faults.duplicated,
        duplicate_delay=wire.to_duration(faults.duplicate_delay),
        refused=faults.refused,
        out_of_stock=faults.out_of_stock,
        garbage=faults.garbage,
        throttled=faults.throttled,
        down=faults.down,
    )


def _bad(field: str, description: str) -> BadRequest:
    return BadRequest("INVALID_FIELD", f"{field}: {description}")
