"""Conversions of messages that are the same for every transport."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from cart_grpc.protocol.reservation import Decision
from cart_grpc.reservation_api import wire
from cart_grpc.reservation_api.api import NoAnswerError
from tests.intents import START, Message, answered, hold


@pytest.mark.parametrize(
    "time",
    [Timestamp(seconds=2**62), Timestamp(seconds=253_402_300_800), Timestamp(nanos=-1), Timestamp(nanos=10**9)],
)
def test_an_answer_with_an_impossible_time_is_invalid(time: Timestamp) -> None:
    intent = hold()
    message = answered(intent, Message.STATE_HELD, 2)
    message.expire_time.CopyFrom(time)
    with pytest.raises(NoAnswerError, match="expire_time out of range"):
        wire.to_decision(message, intent)


def test_an_expire_time_is_rounded_down_to_microseconds() -> None:
    intent = hold()
    message = answered(intent, Message.STATE_HELD, 2)
    message.expire_time.nanos += 999
    decision = wire.to_decision(message, intent)
    assert isinstance(decision, Decision)
    assert decision.expire_time == START


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("OUT_OF_STOCK", "OUT_OF_STOCK"),
        ("out of stock!", "OUT_OF_STOCK"),
        ("\x00ß", "SS"),
        ("0x1: 3 left", "X1_3_LEFT"),
        ("404", ""),
        ("", ""),
        ("x" * 99, "X" * 63),
    ],
)
def test_a_reason_is_converted_to_upper_snake_case(text: str, reason: str) -> None:
    assert wire.clean_reason(text) == reason
