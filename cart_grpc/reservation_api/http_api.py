"""The Reservation API over HTTP: the same messages as proto3 JSON."""

import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import quote

from cartgrpc.reservation.v1 import reservation_pb2
from google.protobuf import json_format
from google.protobuf.message import Message

from cart_grpc.protocol.reservation import Decision, Intent
from cart_grpc.reservation_api import wire
from cart_grpc.reservation_api.api import UNRECORDED, Answer, Applied, Attempt, BatchesUnsupported, Style
from cart_grpc.reservation_api.batches import Result, apply_batch
from cart_grpc.reservation_api.http_client import REFUSALS, HttpAnswer, HttpClient, UnexpectedStatus
from cart_grpc.units import to_seconds

# Statuses that say to call again later.
_LATER: Final = frozenset({408, 425, 429})

_Message = TypeVar("_Message", bound=Message)


class HttpReservationApi:
    """Implements AuditableApi at `base_url` over `client`. Owns the client."""

    styles: ClassVar[frozenset[Style]] = frozenset(Style)
    max_batch: int = wire.MAX_BATCH

    def __init__(self, base_url: str, client: HttpClient) -> None:
        self._base = base_url.rstrip("/")
        self._client = client

    async def apply(self, intent: Intent, *, timeout: float, attempt: Attempt = UNRECORDED) -> Answer:
        """See ReservationApi.apply."""
        return await self._apply(_to_body(intent), intent, timeout)

    async def apply_as(self, style: Style, intent: Intent, *, timeout: float) -> Answer:
        """See AuditableApi.apply_as."""
        body = _to_body(intent)
        if style is Style.JSON_NUMBERS:
            body["reservation"]["revision"] = intent.revision
        elif style is Style.LONG_DURATIONS:
            body["reservation"]["ttl"] = f"{to_seconds(intent.ttl_us):.9f}s"
        else:
            body["reservation"] |= {"priority": 3, "gift": {"wrapped": [True, None]}}
            body["trace"] = "x"
        return await self._apply(body, intent, timeout)

    async def _apply(self, body: dict[str, Any], intent: Intent, timeout: float) -> Answer:
        answer = await self._call("PUT", _path(intent.reservation_id), timeout, body)
        if answer.status in REFUSALS:
            return _to_failure_or_stale_revision(answer, intent)
        return wire.to_decision(_to_reservation(self._to_object(answer)), intent)

    def apply_batch(self, intents: Sequence[Intent], *, timeout: float) -> AsyncGenerator[Sequence[Applied], None]:
        """See ReservationApi.apply_batch."""
        return apply_batch(intents, partial(self._send_batch, timeout), _parse_line)

    async def _send_batch(self, timeout: float, request: Message) -> AsyncGenerator[bytes, None]:
        """Yield the lines of the answer. Raises NoAnswerError, and BatchesUnsupported before the first line."""
        lines = self._client.post_for_lines(
            f"{self._base}/v1/reservations:batchApply",
            json_format.MessageToDict(request),
            timeout=timeout,
            max_line_bytes=wire.MAX_BATCH_MESSAGE_BYTES,
        )
        try:
            async with aclosing(lines):
                async for line in lines:
                    yield line
        except UnexpectedStatus as error:
            if _refuses_batches(error.answer.status):
                raise BatchesUnsupported(f"HTTP_{error.answer.status}", "") from None
            raise error.answer.to_no_answer(self._client.clock()) from None

    async def find(self, reservation_id: str, *, timeout: float) -> Decision | None:
        """See AuditableApi.find."""
        answer = await self._call("GET", _path(reservation_id), timeout)
        if answer.status == 404:
            answer.to_error()
            return None
        return wire.to_latest(_to_reservation(self._to_object(answer)), reservation_id)

    async def look_up(self, reservation_ids: Sequence[str], *, timeout: float) -> tuple[list[Decision], list[str]]:
        """See AuditableApi.look_up."""
        body = {"reservationIds": list(reservation_ids)}
        answer = await self._call("POST", "/v1/reservations:lookup", timeout, body, wire.MAX_LOOKUP_BYTES)
        found = _parse(self._to_object(answer), reservation_pb2.LookupReservationsResponse())
        return wire.to_looked_up(found, reservation_ids)

    async def close(self) -> None:
        """See ReservationApi.close."""
        await self._client.close()

    async def _call(
        self,
        method: str,
        path: str,
        timeout: float,
        body: object = None,
        max_bytes: int = wire.MAX_ANSWER_BYTES,
    ) -> HttpAnswer:
        return await self._client.call(method, self._base + path, body, timeout=timeout, max_bytes=max_bytes)

    def _to_object(self, answer: HttpAnswer) -> dict[str, Any]:
        if answer.status != 200:
            raise answer.to_no_answer(self._client.clock())
        return answer.to_object()


def _refuses_batches(status: int) -> bool:
    """Whether the server, or a proxy that knows only the other paths, refuses the batch as a whole.

    If the reason concerns single calls, too, they will report it.
    """
    return (400 <= status < 500 and status not in _LATER) or status == 501


def _parse_line(line: bytes) -> Iterator[Result]:
    """Return the results in a message. Each is parsed alone, so that an impossible value harms only its entry."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise wire.invalid_answer("a line of the answer is not JSON") from None
    results = message.get("results", []) if isinstance(message, dict) else None
    if not isinstance(results, list) or not all(isinstance(each, dict) for each in results):
        raise wire.invalid_answer("a line of the answer is not an object with an array of results")
    for each in results:
        reservation_id = each.get("reservationId", each.get("reservation_id"))
        if isinstance(reservation_id, str):
            yield reservation_id, partial(_to_outcome, each)


def _to_outcome(value: dict[str, Any], intent: Intent) -> Answer:
    return wire.to_outcome(_parse(value, reservation_pb2.ReservationResult()), intent)


def _path(reservation_id: str) -> str:
    return f"/v1/reservations/{quote(reservation_id, safe='')}"


def _to_body(intent: Intent) -> dict[str, Any]:
    request = reservation_pb2.ApplyReservationRequest(reservation=wire.to_message(intent))
    body: dict[str, Any] = json_format.MessageToDict(request)
    return body


def _to_reservation(body: Mapping[str, Any]) -> reservation_pb2.Reservation:
    value = body.get("reservation")
    if not isinstance(value, dict):
        raise wire.invalid_answer("the answer contains no reservation")
    return _parse(value, reservation_pb2.Reservation())


def _parse(value: dict[str, Any], message: _Message) -> _Message:
    try:
        # A newer API may send fields that we do not know.
        return json_format.ParseDict(value, message, ignore_unknown_fields=True)
    except Exception as error:  # noqa: BLE001 - json_format raises more than ParseError for odd values
        raise wire.invalid_answer(f"the answer contains no valid {message.DESCRIPTOR.name}: {error}") from None


def _to_failure_or_stale_revision(answer: HttpAnswer, intent: Intent) -> Answer:
    name, reason, message = answer.to_error()
    if answer.status == 409 and name == "ABORTED":
        return wire.to_stale_revision(_to_reservation(answer.to_object()), intent)
    return wire.to_permanent_failure(reason, name, message)
