"""Example intents and the answers to them."""

import random
from dataclasses import replace
from typing import Any
from uuid import UUID

from cartgrpc.reservation.v1 import reservation_pb2

from cart_grpc.protocol.reservation import Disposition, Intent
from cart_grpc.reservation_api import wire

SECOND = 1_000_000
START = 1_770_000_000 * SECOND

Message = reservation_pb2.Reservation

_numbers = random.Random(7)


def new_id() -> str:
    """Return a UUIDv7 that no other test uses."""
    number = _numbers.getrandbits(128)
    number = number & ~(0xF << 76) | 7 << 76
    return str(UUID(int=number & ~(0x3 << 62) | 2 << 62))


def hold(quantity: int = 2, *, revision: int = 1, **changes: Any) -> Intent:
    """Return a HOLD for a new reservation, or for the `reservation_id` in `changes`."""
    intent = Intent(
        reservation_id=changes.pop("reservation_id", None) or new_id(),
        revision=revision,
        sku="espresso-beans",
        quantity=quantity,
        disposition=Disposition.HOLD,
        ttl_us=600 * SECOND,
        labels={"cart": "users/alice/carts/default"},
    )
    return replace(intent, **changes)


def after(intent: Intent, disposition: Disposition, **changes: Any) -> Intent:
    """Return the next revision of `intent`, with `disposition`."""
    return replace(intent, revision=intent.revision + 1, disposition=disposition, **changes)


def answered(intent: Intent, state: Message.State.ValueType, granted: int = 0, **changes: Any) -> Message:
    """Return a consistent answer to `intent`, with `changes` applied last."""
    message = wire.to_message(intent)
    message.state = state
    message.granted_quantity = granted
    if granted and state != Message.STATE_COMMITTED:
        message.expire_time.CopyFrom(wire.to_timestamp(START))
    for name, value in changes.items():
        setattr(message, name, value)
    return message


class Clock:
    """A clock that moves only when a test moves it."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        """Return the time in microseconds."""
        return self.now
