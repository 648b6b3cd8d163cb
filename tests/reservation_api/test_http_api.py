"""Answers and failures that only the HTTP transport has."""

import asyncio
import email.utils
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cartgrpc.reservation.v1 import reservation_pb2
from google.protobuf import json_format

from cart_grpc.protocol.reservation import Decision, Intent
from cart_grpc.reservation_api import wire
from cart_grpc.reservation_api.api import NoAnswerError, PermanentFailure
from cart_grpc.reservation_api.http_api import HttpReservationApi
from cart_grpc.reservation_api.http_client import HttpClient
from cart_grpc.reservation_api.transports import connect
from tests.intents import SECOND, START, Clock, Message, answered, hold
from tests.reservation_api.hostile import Hostile, Script, hostile_http


@pytest.fixture
async def hostile() -> AsyncIterator[Hostile]:
    """A server that answers as its script says."""
    async with hostile_http() as server:
        yield server


@pytest.fixture
async def api(hostile: Hostile) -> AsyncIterator[HttpReservationApi]:
    """A client of `hostile` with a clock that stands still."""
    client = HttpReservationApi(hostile.url, HttpClient(clock=Clock()))
    yield client
    await client.close()


async def no_answer(api: Any, timeout: float = 5) -> NoAnswerError:
    """Apply a hold and return the NoAnswerError that the call must raise."""
    with pytest.raises(NoAnswerError) as caught:
        await api.apply(hold(), timeout=timeout)
    return caught.value


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(hostile: Hostile, api: HttpReservationApi, status: int) -> None:
    hostile.script = Script(raw=b"", http_status=status, headers={"Location": hostile.url + "/v1/reservations/other"})
    error = await no_answer(api)
    assert (error.code, error.reached) == (f"HTTP_{status}", False)
    assert len(hostile.received) == 1


@pytest.mark.parametrize("status", [201, 202, 204, 206])
async def test_only_200_is_success(hostile: Hostile, api: HttpReservationApi, status: int) -> None:
    hostile.script = Script(reservation=answered(hold(), Message.STATE_HELD, 2), http_status=status)
    assert (await no_answer(api)).code == "INVALID_ANSWER"


@pytest.mark.parametrize("status", [200, 400, 404, 409, 422])
@pytest.mark.parametrize(
    ("content_type", "raw"),
    [("text/html", b"<html>"), ("text/plain", b"{}"), ("application/json", b"{"), ("application/json", b"\xff\xfe")],
)
async def test_the_page_of_another_web_server_is_no_answer(
    hostile: Hostile, api: HttpReservationApi, status: int, content_type: str, raw: bytes
) -> None:
    hostile.script = Script(raw=raw, http_status=status, content_type=content_type)
    error = await no_answer(api)
    assert (error.code, error.reached) == ("INVALID_ANSWER", True)


async def test_a_wrong_prefix_rejects_nothing(hostile: Hostile, api: HttpReservationApi) -> None:
    hostile.script = Script(raw=b'{"detail": "Not Found"}', http_status=404)
    assert (await no_answer(api)).code == "INVALID_ANSWER"
    hostile.script.http_status = 422
    assert await api.apply(hold(), timeout=5) == PermanentFailure("INVALID_ARGUMENT", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (email.utils.formatdate(START / SECOND + 90, usegmt=True), 90 * SECOND),
        (email.utils.formatdate(START / SECOND - 90, usegmt=True), None),
        ("-5", None),
        ("soon", None),
        ("1e9", None),
        ("9" * 5000, 86_400 * SECOND),
    ],
)
async def test_retry_after_may_be_seconds_or_a_date_and_an_invalid_one_is_ignored(
    hostile: Hostile, api: HttpReservationApi, text: str, expected: int | None
) -> None:
    hostile.script = Script(raw=b"", http_status=503, headers={"Retry-After": text})
    error = await no_answer(api)
    assert (error.code, error.retry_after_us) == ("HTTP_503", expected)


@pytest.mark.parametrize(
    "reservation",
    [
        {"revision": "1e400"},
        {"revision": 10**30},
        {"grantedQuantity": 2**31},
        {"grantedQuantity": 1.5},
        {"expireTime": "yesterday"},
        {"expireTime": "99999-01-01T00:00:00Z"},
        {"state": "STATE_SOLD"},
        {"labels": []},
    ],
)
async def test_answers_with_impossible_values_are_invalid(
    hostile: Hostile, api: HttpReservationApi, reservation: dict[str, object]
) -> None:
    hostile.script = Script(raw=json.dumps({"reservation": reservation}).encode())
    assert (await no_answer(api)).code == "INVALID_ANSWER"


@pytest.mark.parametrize("revision", ["1", 1])
async def test_unknown_fields_and_both_ways_to_write_a_revision_are_accepted(
    hostile: Hostile, api: HttpReservationApi, revision: object
) -> None:
    intent = hold()
    reservation = {"reservationId": intent.reservation_id, "revision": revision, "state": "STATE_RELEASED"}
    newer = reservation | {"warehouse": "north", "shelf": {"row": [1, None]}}
    hostile.script = Script(
        raw=json.dumps({"reservation": newer, "trace": 1}).encode(), content_type="application/json; charset=utf-8"
    )
    answer = await api.apply(intent, timeout=5)
    assert isinstance(answer, Decision)
    line = {"results": [{"reservationId": intent.reservation_id, "reservation": newer, "shard": 3}], "trace": 1}
    hostile.script = Script(raw=json.dumps(line).encode())
    assert [applied async for applied in api.apply_batch([intent], timeout=5)] == [[(0, answer)]]


async def test_an_answer_is_read_up_to_a_limit_and_never_decompressed(
    hostile: Hostile, api: HttpReservationApi
) -> None:
    intent = hold()
    message = reservation_pb2.ApplyReservationResponse(reservation=answered(intent, Message.STATE_HELD, 2))
    raw = json_format.MessageToJson(message).encode()
    hostile.script = Script(raw=raw)
    assert isinstance(await api.apply(intent, timeout=5), Decision)
    padded, packed = raw + b" " * wire.MAX_ANSWER_BYTES, gzip.compress(raw)
    for script in (Script(raw=padded), Script(raw=packed, headers={"Content-Encoding": "gzip"})):
        hostile.script = script
        with pytest.raises(NoAnswerError, match="INVALID_ANSWER"):
            await api.apply(intent, timeout=5)


LINE_TYPES = ["application/x-ndjson", "application/jsonl; charset=utf-8", "application/json"]


def lines(*intents: Intent, separator: bytes = b"\n") -> bytes:
    """The answer to a batch: a line for each intent, and none after the last."""
    results = [
        {"reservationId": each.reservation_id, "reservation": json_format.MessageToDict(held)}
        for each in intents
        for held in (answered(each, Message.STATE_HELD, 2),)
    ]
    return separator.join(json.dumps({"results": [each]}).encode() for each in results)


async def applied(api: HttpReservationApi, *intents: Intent) -> set[int]:
    """Apply a batch, and return the positions that were decided."""
    batch = api.apply_batch(intents, timeout=5)
    return {position for message in [each async for each in batch] for position, _ in message}


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"\n\n \n"])
@pytest.mark.parametrize("content_type", LINE_TYPES)
@pytest.mark.parametrize("name", [b"reservationId", b"reservation_id"])
async def test_lines_may_be_written_in_several_ways(
    hostile: Hostile, api: HttpReservationApi, separator: bytes, content_type: str, name: bytes
) -> None:
    intents = [hold(), hold()]
    raw = lines(*intents, separator=separator).replace(b"reservationId", name)
    hostile.script = Script(raw=raw, content_type=content_type)
    assert await applied(api, *intents) == {0, 1}


async def test_the_page_of_another_web_server_does_not_answer_a_batch(
    hostile: Hostile, api: HttpReservationApi
) -> None:
    intent = hold()
    hostile.script = Script(raw=lines(intent), content_type="text/html")
    with pytest.raises(NoAnswerError, match="INVALID_ANSWER"):
        await applied(api, intent)


@pytest.mark.parametrize(
    "odd", [{"reservationId": []}, {"reservationId": {}}, {"reservationId": None}, {"error": 3}, {}]
)
async def test_a_result_without_a_usable_id_harms_no_other(
    hostile: Hostile, api: HttpReservationApi, odd: dict[str, Any]
) -> None:
    intents = [hold(), hold()]
    hostile.script = Script(raw=json.dumps({"results": [odd]}).encode() + b"\n" + lines(*intents))
    assert await applied(api, *intents) == {0, 1}


@pytest.mark.parametrize("line", [b"3", b"[]", b"null", b'{"results": 3}', b'{"results": [3]}', b'{"results": {}}'])
async def test_a_line_that_is_no_message_ends_the_batch(hostile: Hostile, api: HttpReservationApi, line: bytes) -> None:
    intent = hold()
    hostile.script = Script(raw=line + b"\n" + lines(intent))
    with pytest.raises(NoAnswerError, match="INVALID_ANSWER"):
        await applied(api, intent)


async def test_an_impossible_value_in_a_line_harms_no_other_result(hostile: Hostile, api: HttpReservationApi) -> None:
    intents = [hold(), hold()]
    [one, other] = [json.loads(line)["results"][0] for line in lines(*intents).splitlines()]
    one["reservation"]["grantedQuantity"] = 2**40
    hostile.script = Script(raw=json.dumps({"results": [one, other]}).encode())
    [[first, second]] = [each async for each in api.apply_batch(intents, timeout=5)]
    assert isinstance(first.outcome, NoAnswerError)
    assert (first.outcome.code, isinstance(second.outcome, Decision)) == ("INVALID_ANSWER", True)


class RawServer:
    """Answers the calls of one connection with these bytes, then closes it."""

    def __init__(self, *answers: bytes) -> None:
        self.calls = 0
        self._answers = answers

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            for answer in self._answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.split(b":")[1]))
                self.calls += 1
                writer.write(answer)
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


async def start(raw: RawServer) -> tuple[asyncio.Server, str]:
    """Serve `raw` on a free port."""
    server = await asyncio.start_server(raw.talk, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


HEAD = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


async def test_a_message_is_not_sent_again_when_a_reused_connection_breaks() -> None:
    raw = RawServer(HEAD % (b"500 Oops", 0), b"")
    server, url = await start(raw)
    api = connect(url)
    assert (await no_answer(api)).code == "HTTP_500"
    assert (await no_answer(api)).code == "UNAVAILABLE"
    assert raw.calls == 2
    await api.close()
    server.close()


@pytest.mark.parametrize(
    "answer",
    [
        HEAD % (b"200 OK", 500) + b'{"reservation": {',
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"\x00\x01\x02 what?\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
async def test_a_truncated_or_garbled_answer_is_no_answer(answer: bytes) -> None:
    server, url = await start(RawServer(answer))
    api = connect(url)
    assert (await no_answer(api)).code == "INVALID_ANSWER"
    await api.close()
    server.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "informational responses": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "early hints": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    "empty lines": (b"", b"\r\n"),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
    "one header": (b"HTTP/1.1 200 OK\r\nA: ", b"b"),
    "chunks": (OK, b"1\r\n \r\n"),
    "a chunk extension": (OK + b"1;", b"a"),
    "trailers": (OK + b"2\r\n{}\r\n0\r\n", b"A: b\r\n"),
    "answers": (HEAD % (b"500 Oops", 0), HEAD % (b"500 Oops", 0)),
}


@pytest.mark.parametrize(("head", "unit"), ENDLESS.values(), ids=ENDLESS)
async def test_a_server_that_sends_without_end_is_cut_off_and_starves_nobody(head: bytes, unit: bytes) -> None:
    cut_off = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head)
            while True:
                writer.write(unit * 1000)
                await writer.drain()
        except OSError:
            cut_off.set()
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    api = connect(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with asyncio.timeout(30):
        # Had the client read until its time-out, the code would be DEADLINE_EXCEEDED.
        assert (await no_answer(api, timeout=20)).code in ("INVALID_ANSWER", "HTTP_500")
        await cut_off.wait()
    await api.close()
    server.close()
