"""Invalid answers of a Reservation API, drawn from a seed: valid ones in which values and bytes are changed."""

import base64
import json
import random
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

from cartgrpc.reservation.v1 import reservation_pb2
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from cart_grpc.protocol.reservation import Answer, Decision, Disposition, Intent, PermanentFailure
from cart_grpc.reservation_api import wire
from cart_grpc.reservation_api.api import NoAnswerError
from tests.intents import Message, answered, hold
from tests.reservation_api.raw_http2 import GRPC, data, headers, message

_DEEP = "a value that is nested 20,000 levels deep"
INTEGERS = (0, 1, -1, 2, 3, 2**31 - 1, -(2**31), 2**53, 2**53 + 1, 2**62, 2**63 - 2, 2**63 - 1, -(2**63))
TEXTS = (
    "", "0", "-1", "1", "2", "9" * 400, "NaN", "-Infinity", "1e5", "0x1", " 1", "STATE_SOLD", "\x00", "a\x1b[31mb",
    "\u202e\u200b\u2028", "x" * 5000, "..", "../..", "OUT_OF_STOCK", "9999-12-31T23:59:59.999999999Z",
    "0001-01-01T00:00:00Z", "99999-01-01T00:00:00Z", "-1s", "600s", "ß" * 100, *Message.State.keys(),
)  # fmt: skip
LEAVES: tuple[Any, ...] = (
    None, True, False, 2**31, 2**63, 10**300, 1.5, 1e308, float("nan"), float("-inf"), "\ud800", "a\udfff\ud800b", [],
    {}, [[]], {"a": {"b": None}}, _DEEP, *INTEGERS, *TEXTS,
)  # fmt: skip
STATUSES = (200, 200, 200, 200, 201, 204, 301, 400, 404, 409, 422, 429, 500, 503, 599)
RETRY_AFTER = (
    "1", "0", "-1", "9" * 300, "1.5", "Mon, 01 Jan 0001 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "soon",
    "Wed, 21 Oct 2015 07:28:00 +9999", "Wed, 21 Oct 99999999 07:28:00 GMT", "\u0661", ", , ,",
)  # fmt: skip


def draw_intent(rng: random.Random) -> Intent:
    """A HOLD, COMMIT or RELEASE."""
    return hold(revision=rng.choice((1, 5, 2**40)), disposition=rng.choice(list(Disposition)))


def draw_http(rng: random.Random, intent: Intent) -> bytes:
    """A whole HTTP answer to a PUT."""
    body: dict[str, Any] = {"reservation": json_format.MessageToDict(_draw_valid(rng, intent))}
    status = rng.choice(STATUSES)
    if status >= 400:
        name = rng.choice(("ABORTED", "INVALID_ARGUMENT", "NOT_FOUND"))
        body["error"] = {"code": status, "status": name, "message": "no", "reason": "NO"}
    return _to_http(rng, status, _corrupt_json(rng, body))


def draw_http_batch(rng: random.Random, intents: Sequence[Intent]) -> bytes:
    """A whole HTTP answer to a batch."""
    lines = draw_lines(rng, intents)
    status = 200 if rng.random() < 0.9 else rng.choice(STATUSES)
    body = rng.choice((b"\n",) * 9 + (b"\r\n\n", b" ")).join(lines)
    return _to_http(rng, status, body).replace(b"application/json\r", b"application/x-ndjson\r")


def draw_lines(rng: random.Random, intents: Sequence[Intent]) -> list[bytes]:
    """The lines of an answer to a batch over HTTP."""
    lines = []
    for results in _deal(rng, [_draw_result(rng, intent) for intent in intents]):
        message = reservation_pb2.BatchApplyReservationsResponse(results=results)
        lines.append(_corrupt_json(rng, json_format.MessageToDict(message)))
    return lines


def draw_messages(rng: random.Random, intents: Sequence[Intent]) -> list[bytes]:
    """The messages of an answer to a batch over gRPC."""
    messages = []
    for results in _deal(rng, [_draw_result(rng, intent) for intent in intents]):
        for result in results:
            _corrupt(rng, result.error.current if result.HasField("error") else result.reservation)
        body = reservation_pb2.BatchApplyReservationsResponse(results=results).SerializeToString()
        messages.append(_flip(rng, body) if rng.random() < 0.3 else body)
    return messages


def draw_grpc_batch(rng: random.Random, intents: Sequence[Intent]) -> Callable[[int], Sequence[bytes]]:
    """The frames of an answer to a batch over gRPC."""
    messages = [message(body) for body in draw_messages(rng, intents)]
    trailers = {"grpc-status": str(rng.choice((0,) * 8 + (3, 12, 14, 99)))}

    def make(stream: int) -> Sequence[bytes]:
        return [headers(GRPC, stream), *(data(each, stream) for each in messages), headers(trailers, stream, end=True)]

    return make


def _draw_result(rng: random.Random, intent: Intent) -> reservation_pb2.ReservationResult:
    """A decision, or an error that may be impossible."""
    result = reservation_pb2.ReservationResult(reservation_id=intent.reservation_id)
    if rng.random() < 0.1:
        result.reservation_id = rng.choice(TEXTS)
    if rng.random() < 0.6:
        result.reservation.CopyFrom(_draw_valid(rng, intent))
        return result
    error = result.error
    error.code = rng.choice((0, 1, 3, 5, 8, 9, 10, 10, 10, 13, 14, 16, 17, -1, 2**31 - 1))
    error.reason, error.message = rng.choice(TEXTS), rng.choice(TEXTS)
    if rng.random() < 0.5:
        error.retry_delay.CopyFrom(Duration(seconds=rng.choice((1, 0, -1, 315_576_000_000))))
    if rng.random() < 0.7:
        error.current.CopyFrom(_draw_valid(rng, intent))
    return result


def _deal(
    rng: random.Random, results: list[reservation_pb2.ReservationResult]
) -> list[list[reservation_pb2.ReservationResult]]:
    """Distribute the results to messages, in any order; some are lost, and some come twice."""
    results = [each for each in results for _ in range(rng.choice((1,) * 8 + (0, 2)))]
    rng.shuffle(results)
    messages: list[list[reservation_pb2.ReservationResult]] = [[] for _ in range(rng.choice((1, 1, 2, 4)))]
    for each in results:
        rng.choice(messages).append(each)
    return messages


def draw_basic(rng: random.Random, intent: Intent, method: str) -> bytes:
    """A whole HTTP answer of the `basic` contract."""
    one = {"reservation_id": rng.choice((7, "7", "seven")), "id": intent.reservation_id, "item": intent.sku}
    live = [one | {"quantity": rng.choice((intent.quantity, 1))} for _ in range(rng.choice((0, 1, 1, 2)))]
    body: Any = {"GET": live, "POST": one, "DELETE": {}}[method]
    status = rng.choice((200, 200, 200, *STATUSES))
    if status >= 400:
        body = {"error": {"status": "INVALID_ARGUMENT", "reason": "NO", "message": "no"}}
    return _to_http(rng, status, _corrupt_json(rng, body))


def draw_grpc(rng: random.Random, intent: Intent) -> Callable[[int], Sequence[bytes]]:
    """The frames of an answer over gRPC."""
    body = draw_message(rng, intent)
    trailers: dict[str, str | bytes] = {"grpc-status": str(rng.choice((0, 0, 0, 3, 5, 8, 9, 10, 10, 13, 14, 16, 99)))}
    if trailers["grpc-status"] != "0":
        details = draw_details(rng, intent, int(trailers["grpc-status"]))
        trailers["grpc-status-details-bin"] = base64.b64encode(details).rstrip(b"=")
        trailers["grpc-message"] = rng.choice(("no", "%00%1b[31m%ff", "%ED%A0%80", b"a\x01\xff", "x" * 3000, "%", ""))
        body = b""
    compressed, length = rng.choice(((0, None),) * 9 + ((1, None),)), None
    if rng.random() < 0.05:
        length = rng.choice((0, len(body) + 1, 2**32 - 1))

    def make(stream: int) -> Sequence[bytes]:
        sent = [data(message(body, compressed=compressed[0], length=length), stream)] if body else []
        return [headers(GRPC, stream), *sent, headers(trailers, stream, end=True)]

    return make


def draw_message(rng: random.Random, intent: Intent) -> bytes:
    """The message of an answer over gRPC."""
    response = reservation_pb2.ApplyReservationResponse(reservation=_corrupt(rng, _draw_valid(rng, intent)))
    return _flip(rng, response.SerializeToString())


def draw_details(rng: random.Random, intent: Intent, code: int) -> bytes:
    """The details of a status over gRPC."""
    return _flip(rng, _draw_status(rng, intent, code).SerializeToString())


def check(intent: Intent, answer: Answer | NoAnswerError) -> None:
    """Raise AssertionError unless the outcome of a call is within its bounds and can be stored and shown."""
    match answer:
        case NoAnswerError():
            assert re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", answer.code), answer.code
            _check_text(answer.message, 600)
            assert answer.retry_after_us is None or 0 < answer.retry_after_us <= 86_400_000_000
        case PermanentFailure(reason, text):
            assert re.fullmatch(r"[A-Z][A-Z0-9_]{0,62}", reason), reason
            _check_text(text, 500)
        case Decision():
            assert answer.revision == intent.revision
            _check_decision(intent, answer)
        case _:
            assert intent.revision < answer.current.revision <= wire.MAX_REVISION
            _check_decision(intent, answer.current)


def _check_decision(intent: Intent, decision: Decision) -> None:
    assert decision.reservation_id == intent.reservation_id
    assert 0 <= decision.granted_quantity < 2**31
    assert decision.expire_time is None or 0 <= decision.expire_time <= 253_402_300_800_000_000
    assert re.fullmatch(r"([A-Z][A-Z0-9_]{0,62})?", decision.reason), decision.reason


def _check_text(text: str, most: int) -> None:
    assert text.isprintable(), ascii(text)
    assert len(text) <= most


def _draw_valid(rng: random.Random, intent: Intent) -> Message:
    states = {
        Disposition.HOLD: (Message.STATE_HELD, Message.STATE_REJECTED, Message.STATE_EXPIRED),
        Disposition.COMMIT: (Message.STATE_COMMITTED, Message.STATE_REJECTED),
        Disposition.RELEASE: (Message.STATE_RELEASED,),
    }[intent.disposition]
    state = rng.choice(states)
    granted = intent.quantity if state in (Message.STATE_HELD, Message.STATE_COMMITTED) else 0
    newer = rng.choice((0, 0, 1, 10))
    return answered(intent, state, granted, revision=intent.revision + newer, reason="OUT_OF_STOCK")


def _corrupt(rng: random.Random, reservation: Message) -> Message:
    for _ in range(rng.choice((0, 1, 1, 2))):
        name = rng.choice([field.name for field in Message.DESCRIPTOR.fields])
        try:
            if name in ("ttl", "expire_time"):
                nanos = rng.choice((0, -1, 10**9, 2**31 - 1))
                time = (Duration if name == "ttl" else Timestamp)(seconds=rng.choice(INTEGERS), nanos=nanos)
                getattr(reservation, name).CopyFrom(time)
            elif name == "labels":
                reservation.labels.update({rng.choice(TEXTS): rng.choice(TEXTS)})
            else:
                is_text = isinstance(getattr(reservation, name), str)
                setattr(reservation, name, rng.choice(TEXTS if is_text else INTEGERS))
        except ValueError:
            reservation.ClearField(name)  # type: ignore[arg-type]
    return reservation


def _draw_status(rng: random.Random, intent: Intent, code: int) -> status_pb2.Status:
    details = (
        _corrupt(rng, _draw_valid(rng, intent)),
        error_details_pb2.ErrorInfo(reason=rng.choice(TEXTS), metadata={"a": rng.choice(TEXTS)}),
        error_details_pb2.RetryInfo(retry_delay=Duration(seconds=rng.choice(INTEGERS), nanos=rng.choice((0, -1)))),
    )
    status = status_pb2.Status(code=rng.choice((code, code, 5)), message="no")
    for detail in rng.sample(details, k=rng.choice((1, 1, 2, 3))):
        packed = AnyMessage()
        packed.Pack(detail)
        packed.value = _flip(rng, packed.value)
        status.details.append(packed)
    return status


def _corrupt_json(rng: random.Random, body: Any) -> bytes:
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        places = list(_places(body))
        if places:
            place, key = rng.choice(places)
            if rng.random() < 0.15 and isinstance(place, dict):
                del place[key]
            else:
                place[key] = deepcopy(rng.choice(LEAVES))
    text = json.dumps(body).replace(json.dumps(_DEEP), "[" * 20_000 + "]" * 20_000)
    if rng.random() < 0.1:
        text = text.replace("{", '{"reservation": 1, "state": "STATE_HELD", ', 1)
    return _flip(rng, text.encode())


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value: its container and the key there."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def _flip(rng: random.Random, content: bytes) -> bytes:
    """Change, insert or drop some bytes, in one of five cases."""
    if rng.random() > 0.2 or not content:
        return content
    at = rng.randrange(len(content))
    some = rng.randbytes(rng.choice((1, 1, 4)))
    return rng.choice(
        (content[:at], content[:at] + some + content[at:], content[:at] + some + content[at + len(some) :])
    )


def _to_http(rng: random.Random, status: int, body: bytes) -> bytes:
    content_type = rng.choice(("application/json",) * 9 + ("text/html", "application/json; charset=utf-16", "\u0661"))
    head = f"HTTP/1.1 {status} No\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    if rng.random() < 0.3:
        head += f"Retry-After: {rng.choice(RETRY_AFTER)}\r\n"
    return head.encode() + b"\r\n" + body
