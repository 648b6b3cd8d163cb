"""Answers that no library sends, byte by byte over HTTP and frame by frame over gRPC.

Each call ends with an answer or with NoAnswerError, and calls to a healthy API are served meanwhile.
"""

import asyncio
import gzip
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import chain, repeat
from types import MappingProxyType
from typing import Any

import pytest
from cartgrpc.reservation.v1 import reservation_pb2
from google.protobuf import json_format

from cart_grpc.protocol.reservation import Answer, Decision, Observed, PermanentFailure
from cart_grpc.reservation_api.api import BatchesUnsupported, NoAnswerError, ReservationApi
from cart_grpc.reservation_api.transports import connect
from cart_grpc.simulator.server import SimulatorConfig, SimulatorServer, make_simulator
from tests.attacks.wire import CONTINUATION, DATA, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame
from tests.intents import Message, answered, hold
from tests.reservation_api.fuzz import check
from tests.reservation_api.raw_http1 import raw_http1
from tests.reservation_api.raw_http2 import GRPC, Make, data, fields, headers, message, raw_http2
from tests.simulated_api import BatchesOfOne

INTENT = hold()
HELD = reservation_pb2.ApplyReservationResponse(reservation=answered(INTENT, Message.STATE_HELD, 2))
JSON = json_format.MessageToJson(HELD, indent=None).encode()
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(JSON)
BOMB = gzip.compress(bytes(1 << 26))
# The time-out of calls that hang.
HANGING = 0.5
MEBIBYTES = 1024


@asynccontextmanager
async def healthy() -> AsyncIterator[ReservationApi]:
    """A client of a simulator."""
    server = SimulatorServer(make_simulator(SimulatorConfig()))
    ports = await server.start("127.0.0.1:0", None)
    api = connect(f"grpc://127.0.0.1:{ports.grpc}")
    yield api
    await api.close()
    await server.stop(0)


Outcome = Answer | NoAnswerError


async def apply(api: ReservationApi, timeout: float) -> Outcome:
    """The outcome of a single call."""
    try:
        return await api.apply(INTENT, timeout=timeout)
    except NoAnswerError as error:
        return error


async def apply_in_batch(api: ReservationApi, timeout: float) -> Outcome:
    """The outcome of a batch."""
    try:
        return await BatchesOfOne(api).apply(INTENT, timeout=timeout)
    except NoAnswerError as error:
        return error
    except BatchesUnsupported as error:
        return NoAnswerError("UNIMPLEMENTED", str(error))


Apply = Callable[[ReservationApi, float], Awaitable[Outcome]]


async def outcomes_while_others_are_served(
    urls: Mapping[str, str], timeout: float, call: Apply = apply
) -> dict[str, Outcome]:
    """Call all APIs at once. Another API must serve calls until they end, and the memory must not grow by much."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    apis = {name: connect(url) for name, url in urls.items()}
    async with healthy() as other, asyncio.timeout(60):
        calls: dict[str, asyncio.Future[Outcome]] = {
            name: asyncio.ensure_future(call(api, timeout)) for name, api in apis.items()
        }
        served = 0
        while not served or not all(call.done() for call in calls.values()):
            answer = await other.apply(hold(), timeout=10)
            assert isinstance(answer, Decision)
            served += answer.state is Observed.HELD
            await asyncio.sleep(0.005)
        await asyncio.gather(*calls.values(), return_exceptions=True)
    await asyncio.gather(*(api.close() for api in apis.values()))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * MEBIBYTES
    outcomes = {name: task.result() for name, task in calls.items()}
    for name, outcome in outcomes.items():
        assert isinstance(outcome, Answer | NoAnswerError), f"{name}: {outcome!r}"
        check(INTENT, outcome)
    return outcomes


@asynccontextmanager
async def served_over_http(answers: Mapping[str, bytes], *, closes: bool) -> AsyncIterator[dict[str, str]]:
    """A server for each of `answers`. Yields their URLs."""
    async with AsyncExitStack() as stack:
        urls = {}
        for name, content in answers.items():

            async def answering(_method: str, writer: asyncio.StreamWriter, content: bytes = content) -> None:
                writer.write(content)

            raw = await stack.enter_async_context(raw_http1(answering))
            raw.closes = closes
            urls[name] = raw.url
        yield urls


@asynccontextmanager
async def served_over_grpc(
    answers: Mapping[str, Make], *, closes: bool = False, storms: Mapping[str, bytes] = MappingProxyType({})
) -> AsyncIterator[dict[str, str]]:
    """A server for each of `answers`, and one for each storm of frames without end. Yields their URLs."""
    async with AsyncExitStack() as stack:
        urls = {}
        for name in (*answers, *storms):
            raw = await stack.enter_async_context(raw_http2())
            raw.make, raw.closes, raw.endless = answers.get(name, frames()), closes, storms.get(name, b"") * 100
            urls[name] = f"grpc://127.0.0.1:{raw.port}"
        yield urls


def frames(*some: bytes) -> Make:
    """These frames, whatever the stream."""
    return lambda _: some


ANSWERED = {
    "a valid answer": OK + LENGTH + JSON,
    "an informational response first": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK + LENGTH + JSON,
    "chunks": OK + b"Transfer-Encoding: chunked\r\n\r\n%x;a=b\r\n%s\r\n0\r\nA: b\r\n\r\n" % (len(JSON), JSON),
}
NOT_ANSWERED = {
    "nothing": b"",
    "HTTP/0.9": JSON,
    "HTTP/2": b"HTTP/2 200\r\n" + LENGTH + JSON,
    "no status": b"HTTP/1.1\r\n" + LENGTH + JSON,
    "status 0": b"HTTP/1.1 000 Zero\r\n" + LENGTH + JSON,
    "status 99": b"HTTP/1.1 099 No\r\n" + LENGTH + JSON,
    "status 999": b"HTTP/1.1 999 No\r\n" + LENGTH + JSON,
    "a long status": b"HTTP/1.1 20000000000000000000 OK\r\n" + LENGTH + JSON,
    "a negative status": b"HTTP/1.1 -200 OK\r\n" + LENGTH + JSON,
    "switching protocols": b"HTTP/1.1 101 Up\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n" + JSON * 10,
    "no content": b"HTTP/1.1 204 No\r\n" + LENGTH + JSON,
    "not modified": b"HTTP/1.1 304 No\r\n" + LENGTH + JSON,
    "a redirect to itself": b"HTTP/1.1 307 No\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
    "truncated": OK + b"Content-Length: 5000\r\n\r\n" + JSON,
    "too short a length": OK + b"Content-Length: 3\r\n\r\n" + JSON,
    "a negative length": OK + b"Content-Length: -1\r\n\r\n" + JSON,
    "a huge length": OK + b"Content-Length: 99999999999999999999999\r\n\r\n" + JSON,
    "two lengths": OK + b"Content-Length: 3\r\n" + LENGTH + JSON,
    "a length and chunks": OK + b"Transfer-Encoding: chunked\r\n" + LENGTH + JSON,
    "a bad chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n" + JSON,
    "a huge chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n" + JSON,
    "gzip": OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB,
    "a huge header": OK + b"A: " + b"b" * 100_000 + b"\r\n" + LENGTH + JSON,
    "many headers": OK + b"A: b\r\n" * 10_000 + LENGTH + JSON,
    "a header with a zero": OK + b"A: \x00\r\n" + LENGTH + b"x",
    "a header with bytes": OK.replace(b"application/json", b"\xff\xfe\xed\xa0\x80") + LENGTH + JSON,
    "a huge body": OK + b"Content-Length: 10000000\r\n\r\n" + b" " * 10_000_000,
    "garbage": bytes(range(256)) * 10,
    "a TLS alert": b"\x15\x03\x01\x00\x02\x02\x50",
}


@pytest.mark.parametrize("call", [apply, apply_in_batch])
@pytest.mark.parametrize("closes", [False, True], ids=["stays open", "closes"])
async def test_bytes_that_are_no_valid_answer_are_no_answer(closes: bool, call: Apply) -> None:
    async with served_over_http(NOT_ANSWERED, closes=closes) as urls:
        outcomes = await outcomes_while_others_are_served(urls, HANGING, call)
    assert {name: each for name, each in outcomes.items() if not isinstance(each, NoAnswerError)} == {}
    async with served_over_http(ANSWERED, closes=closes) as urls:
        outcomes = await outcomes_while_others_are_served(urls, 30)
    assert {name: each for name, each in outcomes.items() if not isinstance(each, Decision)} == {}


async def test_an_answer_that_comes_byte_by_byte_ends_at_the_deadline() -> None:
    async def answering(_method: str, writer: asyncio.StreamWriter) -> None:
        for byte in chain(ANSWERED["a valid answer"][:200], repeat(32)):
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0.005)

    async with raw_http1(answering) as raw:
        [outcome] = (await outcomes_while_others_are_served({"slow": raw.url}, HANGING)).values()
        assert isinstance(outcome, NoAnswerError)
        assert outcome.code == "DEADLINE_EXCEEDED"


async def test_a_second_answer_is_not_the_answer_to_the_next_call() -> None:
    async def answering(_method: str, writer: asyncio.StreamWriter) -> None:
        writer.write(ANSWERED["a valid answer"] * 2)

    async with raw_http1(answering) as raw:
        api = connect(raw.url)
        for _ in range(3):
            assert isinstance(await api.apply(INTENT, timeout=30), Decision)
        assert raw.calls == 3
        await api.close()


RAW = HELD.SerializeToString()
NO_ERROR = {"grpc-status": "0"}


def answer(payload: bytes = RAW, head: dict[str, Any] = GRPC, tail: dict[str, Any] = NO_ERROR, **options: Any) -> Make:
    """The frames of an answer with this message, these headers and these trailers."""
    return lambda stream: [
        headers(head, stream),
        data(message(payload, **options), stream),
        headers(tail, stream, end=True),
    ]


def error(**trailers: str | bytes) -> Make:
    """The frames of an error with these trailers; `_` in a name stands for `-`."""
    named = {name.replace("_", "-"): value for name, value in trailers.items()}
    return lambda stream: [headers({**GRPC, **named}, stream, end=True)]


GZIP = {**GRPC, "grpc-encoding": "gzip"}
VALID_OVER_GRPC: dict[str, Make] = {
    "a valid answer": answer(),
    "a compressed answer": answer(gzip.compress(RAW), GZIP, compressed=1),
    "an unknown header": answer(head={**GRPC, "x": "y" * 5000}),
}
INVALID_OVER_GRPC: dict[str, Make] = {
    "a gzip bomb": answer(BOMB[:60_000], GZIP, compressed=1),
    "a bad gzip": answer(b"\x1f\x8b" + bytes(50), GZIP, compressed=1),
    "compressed without encoding": answer(compressed=1),
    "an unknown encoding": answer(head={**GRPC, "grpc-encoding": "brotli"}, compressed=1),
    "a bad compression flag": answer(compressed=255),
    "a longer message": answer(length=2**31),
    "the longest message": answer(length=2**32 - 1),
    "two messages": answer(RAW + message(RAW), length=len(RAW)),
    "a large message": answer(bytes(200_000)),
    "no message": lambda stream: [headers(GRPC, stream), headers({"grpc-status": "0"}, stream, end=True)],
    "no grpc-status": answer(tail={}),
    "no trailers": lambda stream: [headers(GRPC, stream), data(message(RAW), stream, end=True)],
    "grpc-status 99": error(grpc_status="99"),
    "grpc-status -1": error(grpc_status="-1"),
    "grpc-status abc": error(grpc_status="abc"),
    "a huge grpc-status": error(grpc_status="9" * 1000),
    "large trailers": error(grpc_status="14", grpc_message="x" * 20_000),
    "large details": error(grpc_status="10", grpc_status_details_bin="A" * 20_000),
    "details that are not base64": error(grpc_status="10", grpc_status_details_bin="!!!"),
    "details that do not parse": error(grpc_status="10", grpc_status_details_bin="/////w"),
    "HTTP status 503": lambda stream: [headers({":status": "503", "content-type": "text/html"}, stream, end=True)],
    "no HTTP status": lambda stream: [headers({"content-type": "application/grpc"}, stream, end=True)],
    "a web page": lambda stream: [
        headers({":status": "200", "content-type": "text/html"}, stream),
        data(b"<html>", stream, end=True),
    ],
    "HPACK that does not parse": lambda stream: [frame(HEADERS, 5, stream, b"\xff" * 50)],
    "a frame for no stream": frames(frame(DATA, 1, 999, b"x"), frame(HEADERS, 5, 998, fields(GRPC))),
    "a frame that is too long": frames(frame(DATA, 0, 1, bytes(100_000))),
    "reset, no error": lambda stream: [frame(RST_STREAM, 0, stream, bytes(4))],
    "reset, refused": lambda stream: [frame(RST_STREAM, 0, stream, b"\0\0\0\7")],
    "reset, unknown": lambda stream: [frame(RST_STREAM, 0, stream, b"\xff" * 4)],
    "going away": frames(frame(GOAWAY, 0, 0, bytes(8) + b"\x1b[31m\xff\x00")),
    "going away, calm down": frames(frame(GOAWAY, 0, 0, b"\0\0\0\1\0\0\0\x0btoo_many_pings")),
    "a window overflow": frames(frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 3),
    "HTTP/1": frames(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
    "garbage": frames(bytes(range(256)) * 20),
    "nothing": frames(),
}
REFUSED_OVER_GRPC: dict[str, Make] = {
    "control characters": error(grpc_status="5", grpc_message="%00%1b[31m%0d%0aa"),
    "bytes": error(grpc_status="5", grpc_message=b"a\x01\xff\xfeb"),
    "surrogates and bidi": error(grpc_status="5", grpc_message="%ED%A0%80%E2%80%AE%E2%80%8B"),
    "bad percent-encoding": error(grpc_status="5", grpc_message="%%%zz%"),
}


STORMS = {
    "PING": frame(PING, 0, 0, b"12345678"),
    "SETTINGS": frame(SETTINGS),
    "GOAWAY": frame(GOAWAY, 0, 0, bytes(8)),
    "WINDOW_UPDATE": frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"),
    "RST_STREAM": frame(RST_STREAM, 0, 1, bytes(4)),
    "empty DATA": frame(DATA, 0, 1),
    "headers": frame(HEADERS, 0, 1, fields(GRPC)) + frame(CONTINUATION, 0, 1, fields({"a": "b" * 100})) * 50,
    "an unknown frame": frame(77, 0, 0, bytes(1000)),
}


@pytest.mark.parametrize("call", [apply, apply_in_batch])
@pytest.mark.parametrize("closes", [False, True], ids=["stays open", "closes"])
async def test_frames_that_are_no_valid_answer_are_no_answer_and_starve_nobody(closes: bool, call: Apply) -> None:
    async with served_over_grpc(INVALID_OVER_GRPC, closes=closes, storms=STORMS) as urls:
        outcomes = await outcomes_while_others_are_served(urls, HANGING, call)
    assert {name: each for name, each in outcomes.items() if not isinstance(each, NoAnswerError)} == {}
    async with served_over_grpc({**VALID_OVER_GRPC, **REFUSED_OVER_GRPC}, closes=closes) as urls:
        outcomes = await outcomes_while_others_are_served(urls, 30)
    expected = dict.fromkeys(VALID_OVER_GRPC, Decision) | dict.fromkeys(REFUSED_OVER_GRPC, PermanentFailure)
    assert {name: type(each) for name, each in outcomes.items()} == expected
