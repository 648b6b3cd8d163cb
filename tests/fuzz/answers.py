"""The targets about answers of the Reservation API: each is a decision or a refusal within its bounds, or no answer.

They draw the same answers as `tests.reservation_api.test_fuzz`, which sends them through sockets.
"""

import asyncio
import atexit
import functools
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, TypeVar

import grpc
from cartgrpc.reservation.v1 import reservation_pb2
from google.protobuf.json_format import MessageToDict

from cart_grpc.protocol.reservation import Answer, Intent
from cart_grpc.reservation_api import grpc_api, http_api, wire
from cart_grpc.reservation_api.api import NoAnswerError
from cart_grpc.reservation_api.basic_api import BasicReservationApi
from cart_grpc.reservation_api.batches import apply_batch
from cart_grpc.reservation_api.http_api import HttpReservationApi
from cart_grpc.reservation_api.http_client import HttpAnswer, HttpClient
from cart_grpc.rpc.admin_messages import reservation_message
from cart_grpc.store.read.operator_reads import ReservationSnapshot, WorkState
from tests.carts.examples import NOW
from tests.fuzz.tape import Tape
from tests.intents import START, Message, answered
from tests.reservation_api.fuzz import (
    TEXTS,
    check,
    draw_basic,
    draw_details,
    draw_http,
    draw_intent,
    draw_lines,
    draw_message,
    draw_messages,
)
from tests.reservation_api.test_fuzz import row_after

T = TypeVar("T")
_CODES: Final = tuple(grpc.StatusCode)
_URL: Final = "http://api.example"


class Answering(HttpClient):
    """An HTTP client whose network answers each call with the whole HTTP answer that `answer` returns."""

    def __init__(self, answer: Callable[[str], bytes]) -> None:
        self.clock = lambda: START
        self._answer = answer

    async def call(
        self,
        method: str,
        url: str,
        body: object = None,
        *,
        timeout: float,
        max_bytes: int = wire.MAX_ANSWER_BYTES,
        **query: str,
    ) -> HttpAnswer:
        head, _, content = self._answer(method).partition(b"\r\n\r\n")
        status, *lines = head.decode(errors="surrogateescape").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        if len(content) > max_bytes:
            raise wire.invalid_answer("too long")
        return HttpAnswer(int(status.split()[1]), headers, content)


def fuzz_grpc_answer(data: bytes) -> None:
    """The answer to a single call over gRPC: a message, or a status with details."""
    tape, intent = _begin(data)

    def decode() -> Answer:
        if tape.randrange(2):
            answer = grpc_api._parse(draw_message(tape, intent), reservation_pb2.ApplyReservationResponse)
            return wire.to_decision(answer.reservation, intent)
        code = tape.choice(_CODES)
        details = ("grpc-status-details-bin", draw_details(tape, intent, code.value[0]))
        trailers = grpc.aio.Metadata(details)
        return grpc_api._to_answer(
            grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, tape.choice(TEXTS)), intent
        )

    _check(intent, decode)


def fuzz_http_answer(data: bytes) -> None:
    """The answer to a single call over HTTP."""
    tape, intent = _begin(data)
    api = HttpReservationApi(_URL, Answering(lambda _: draw_http(tape, intent)))
    _check(intent, lambda: run(api.apply(intent, timeout=1)))


def fuzz_basic_answer(data: bytes) -> None:
    """The answers to the calls that the `basic` contract needs for one intent."""
    tape, intent = _begin(data)
    api = BasicReservationApi(_URL, Answering(lambda method: draw_basic(tape, intent, method)))
    _check(intent, lambda: run(api.apply(intent, timeout=1)))


def fuzz_batch_answer(data: bytes) -> None:
    """The answer to a batch, over gRPC or HTTP."""
    tape, first = _begin(data)
    ids = [f"{first.reservation_id[:-1]}{number}" for number in range(tape.choice((1, 2, 8)))]
    intents = [replace(draw_intent(tape), reservation_id=each) for each in ids]
    draw, parse = tape.choice(((draw_messages, grpc_api._parse_batch), (draw_lines, http_api._parse_line)))

    async def send(_: object) -> AsyncGenerator[bytes, None]:
        for message in draw(tape, intents):
            yield message

    async def receive() -> None:
        outcomes: list[int] = []
        try:
            async with aclosing(apply_batch(intents, send, parse)) as batches:
                async for applied in batches:
                    for position, outcome in applied:
                        outcomes.append(position)
                        _check_outcome(intents[position], outcome)
        except NoAnswerError as error:
            check(first, error)
        assert len(outcomes) == len(set(outcomes))

    run(receive())


def fuzz_grpc_answer_bytes(data: bytes) -> None:
    """Any bytes as the message of an answer over gRPC."""
    _, intent = _begin(b"")
    kinds: Sequence[type[Any]] = (
        reservation_pb2.ApplyReservationResponse,
        reservation_pb2.ReservationResult,
        reservation_pb2.LookupReservationsResponse,
    )

    def decode() -> Answer:
        kind = kinds[data[0] % len(kinds)] if data else kinds[0]
        answer = grpc_api._parse(data[1:], kind)
        if kind is kinds[0]:
            return wire.to_decision(answer.reservation, intent)
        if kind is kinds[1]:
            return wire.to_outcome(answer, intent)
        found, _ = wire.to_looked_up(answer, [intent.reservation_id])
        return wire.to_decision(answer.found[0], intent) if found else wire.to_permanent_failure("", "NOT_FOUND", "")

    _check(intent, decode)


def fuzz_http_answer_bytes(data: bytes) -> None:
    """Any bytes as the body of an answer over HTTP."""
    _, intent = _begin(b"")
    status = (200, 409, 400, 404, 500)[data[0] % 5 if data else 0]
    answer = f"HTTP/1.1 {status} No\r\nContent-Type: application/json\r\n\r\n".encode() + data[1:]
    api = HttpReservationApi(_URL, Answering(lambda _: answer))
    _check(intent, lambda: run(api.apply(intent, timeout=1)))


def _begin(data: bytes) -> tuple[Tape, Intent]:
    tape = Tape(data)
    return tape, replace(draw_intent(tape), reservation_id="01900000-0000-7000-8000-000000000000")


def _check(intent: Intent, decode: Callable[[], Answer]) -> None:
    outcome: Answer | NoAnswerError
    try:
        outcome = decode()
    except NoAnswerError as error:
        outcome = error
    _check_outcome(intent, outcome)


def _check_outcome(intent: Intent, outcome: Answer | NoAnswerError) -> None:
    """The outcome is within its bounds; the row that records it can be shown to operators."""
    check(intent, outcome)
    record = reservation_message(ReservationSnapshot(row_after(0, intent, outcome), None, WorkState.DUE, NOW))
    assert record.SerializeToString()
    assert record.set_aside_reason == ""
    assert record.last_error.isprintable()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an event loop that all inputs share."""
    return _runner().run(coroutine)


@functools.cache
def _runner() -> asyncio.Runner:
    """One event loop for all inputs: a loop for each would take most of the time."""
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    atexit.register(runner.close)
    return runner


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "grpc-answer": fuzz_grpc_answer,
    "grpc-answer-bytes": fuzz_grpc_answer_bytes,
    "http-answer": fuzz_http_answer,
    "http-answer-bytes": fuzz_http_answer_bytes,
    "basic-answer": fuzz_basic_answer,
    "batch-answer": fuzz_batch_answer,
}
_INTENT: Final = _begin(b"")[1]
_MESSAGE: Final = answered(_INTENT, Message.STATE_HELD, _INTENT.quantity)
SEEDS: Final[dict[str, Sequence[bytes]]] = {
    "grpc-answer-bytes": [
        b"\0" + reservation_pb2.ApplyReservationResponse(reservation=_MESSAGE).SerializeToString(),
        b"\1" + reservation_pb2.ReservationResult(reservation=_MESSAGE).SerializeToString(),
        b"\2" + reservation_pb2.LookupReservationsResponse(found=[_MESSAGE]).SerializeToString(),
    ],
    "http-answer-bytes": [
        bytes([status]) + json.dumps({**error, "reservation": MessageToDict(_MESSAGE)}).encode()
        for status, error in ((0, {}), (1, {"error": {"status": "ABORTED", "reason": "NO", "message": "no"}}))
    ],
}
