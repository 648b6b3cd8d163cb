"""The Reservation API over HTTP: the same messages as proto3 JSON."""

import asyncio
import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

import aiohttp
from google.protobuf import json_format
from google.protobuf.message import Message
from reservation.v1 import reservation_pb2

from cart_grpc.carts.reservation import Decision, Intent
from cart_grpc.reservations import wire
from cart_grpc.reservations.api import Answer, NoAnswer

_REFUSALS: Final = frozenset({400, 404, 409, 422})
_REACHED: Final = frozenset({429})
_STATUS_NAMES: Final = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 409: "FAILED_PRECONDITION", 422: "INVALID_ARGUMENT"}
# Compressed, 1 MiB could unfold into a thousand.
_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity", "Content-Type": "application/json"}

_Message = TypeVar("_Message", bound=Message)


class _Response(NamedTuple):
    status: int
    headers: Mapping[str, str]
    content: bytes


class HttpReservationApi:
    """Implements AuditableApi over one session to `base_url`, to be made inside the running loop.

    `clock` tells the time in microseconds, for a Retry-After that names a date. `max_connections` bounds the calls in
    flight, which need a connection each; 0 means no bound. `root_certificates` (PEM) replace the system's for https.
    """

    def __init__(
        self,
        base_url: str,
        *,
        clock: Callable[[], int],
        max_connections: int = 0,
        root_certificates: bytes | None = None,
    ) -> None:
        self._base = base_url.rstrip("/")
        self._clock = clock
        trusted = ssl.create_default_context(cadata=root_certificates.decode()) if root_certificates else True
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=max_connections, ssl=trusted),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            headers=_HEADERS,
            auto_decompress=False,
        )
        # aiohttp sends a PUT again, unasked, when a connection that it had used before breaks. A test
        # proves that this switch works.
        self._session._retry_connection = False  # noqa: SLF001 - there is no public one

    async def apply(self, intent: Intent, *, timeout: float) -> Answer:
        """See ReservationApi.apply."""
        request = reservation_pb2.ApplyReservationRequest(reservation=wire.to_message(intent))
        response = await self._call("PUT", _path(intent.reservation_id), timeout, request)
        if response.status in _REFUSALS:
            return _to_refusal_or_overtaken(response.status, _to_object(response), intent)
        return wire.to_decision(_to_reservation(_to_object(self._check(response))), intent)

    async def find(self, reservation_id: str, *, timeout: float) -> Decision | None:
        """See AuditableApi.find."""
        response = await self._call("GET", _path(reservation_id), timeout)
        if response.status == 404 and isinstance(_to_object(response).get("error"), dict):
            return None
        return wire.to_latest(_to_reservation(_to_object(self._check(response))), reservation_id)

    async def look_up(self, reservation_ids: Sequence[str], *, timeout: float) -> tuple[list[Decision], list[str]]:
        """See AuditableApi.look_up."""
        request = reservation_pb2.LookupReservationsRequest(reservation_ids=reservation_ids)
        response = await self._call("POST", "/v1/reservations:lookup", timeout, request)
        told = _parse(_to_object(self._check(response)), reservation_pb2.LookupReservationsResponse())
        return wire.to_looked_up(told, reservation_ids)

    async def close(self) -> None:
        """See ReservationApi.close."""
        await self._session.close()

    async def _call(self, method: str, path: str, timeout: float, request: Message | None = None) -> _Response:
        body = json.dumps(json_format.MessageToDict(request)).encode() if request is not None else None
        try:
            async with asyncio.timeout(timeout):
                async with self._session.request(
                    method, self._base + path, data=body, allow_redirects=False
                ) as response:
                    return _Response(response.status, response.headers, await _read(response))
        except NoAnswer:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise NoAnswer("CANCELLED", "the call was cut off") from None
        except TimeoutError:
            raise NoAnswer("DEADLINE_EXCEEDED", f"no answer within {timeout:g} s") from None
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as error:
            raise wire.invalid_answer(f"{type(error).__name__}: {error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise NoAnswer("UNAVAILABLE", wire.clean_text(f"{type(error).__name__}: {error}")) from error
        except Exception as error:
            raise NoAnswer("UNKNOWN", wire.clean_text(f"{type(error).__name__}: {error}")) from error

    def _check(self, response: _Response) -> _Response:
        """Return `response` if it is 200. Raises NoAnswer."""
        status, headers, content = response
        if status == 200:
            return response
        if 200 < status < 300:
            raise wire.invalid_answer(f"HTTP status {status} instead of 200")
        raise NoAnswer(
            f"HTTP_{status}",
            wire.clean_text(content[:2000].decode(errors="replace")),
            retry_after=_find_retry_after(headers, self._clock()),
            reached=status in _REACHED,
        )


def _path(reservation_id: str) -> str:
    return f"/v1/reservations/{quote(reservation_id, safe='')}"


async def _read(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > wire.MAX_ANSWER_BYTES:
            raise wire.invalid_answer("the answer is longer than 1 MiB")
    return bytes(content)


def _to_object(response: _Response) -> dict[str, Any]:
    content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise wire.invalid_answer(f"the answer is {content_type or 'of no type'} instead of application/json")
    try:
        value = json.loads(response.content)
    except (ValueError, RecursionError):
        raise wire.invalid_answer("the answer is not JSON") from None
    if not isinstance(value, dict):
        raise wire.invalid_answer("the answer is not a JSON object")
    return value


def _to_reservation(body: Mapping[str, Any]) -> reservation_pb2.Reservation:
    value = body.get("reservation")
    if not isinstance(value, dict):
        raise wire.invalid_answer("the answer holds no reservation")
    return _parse(value, reservation_pb2.Reservation())


def _parse(value: dict[str, Any], message: _Message) -> _Message:
    try:
        # Only what we know: a newer API may say more.
        return json_format.ParseDict(value, message, ignore_unknown_fields=True)
    except Exception as error:  # noqa: BLE001 - ParseError, and whatever else escapes json_format for odd values
        raise wire.invalid_answer(f"the answer holds no {message.DESCRIPTOR.name}: {error}") from None


def _to_refusal_or_overtaken(status: int, body: Mapping[str, Any], intent: Intent) -> Answer:
    error = body.get("error")
    if not isinstance(error, dict):
        # Any web server answers 404 to a path that it does not have: a wrong prefix would reject every item.
        if status == 404:
            raise wire.invalid_answer("HTTP status 404 without the error body of a Reservation API")
        error = {}
    if status == 409 and error.get("status") == "ABORTED":
        return wire.to_overtaken(_to_reservation(body), intent)
    name = wire.clean_reason(_to_str(error.get("status"))) or _STATUS_NAMES[status]
    return wire.to_refusal(_to_str(error.get("reason")), name, _to_str(error.get("message")))


def _to_str(value: object) -> str:
    return value if isinstance(value, str) else ""


def _find_retry_after(headers: Mapping[str, str], now: int) -> int | None:
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return wire.clean_retry_after(int(text[:9]) * 1_000_000)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return wire.clean_retry_after(int(date.timestamp() * 1_000_000) - now)
