"""The HTTP client that both HTTP contracts share. It makes each call once and never retries.

A call without a valid answer raises NoAnswerError, see `ReservationApi.apply`.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final

import aiohttp

from cart_grpc.reservation_api import wire
from cart_grpc.reservation_api.api import NoAnswerError
from cart_grpc.reservation_api.http_connection import bounded_connector

REFUSALS: Final = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 409: "FAILED_PRECONDITION", 422: "INVALID_ARGUMENT"}
"""The statuses of permanent errors, each with the code to report if the body has none."""

_REACHED: Final = frozenset({429})
# No compression: 64 KiB could expand to 64 MiB.
_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity", "Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """The answer to one call."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def to_json(self) -> Any:
        """Return the parsed body. Raises NoAnswerError("INVALID_ANSWER") if it is not JSON."""
        content_type = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if content_type != "application/json":
            raise wire.invalid_answer(f"the answer's content type is {content_type or 'missing'}, not application/json")
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError):
            raise wire.invalid_answer("the answer is not JSON") from None

    def to_object(self) -> dict[str, Any]:
        """Return the JSON object in the body. Raises NoAnswerError("INVALID_ANSWER")."""
        value = self.to_json()
        if not isinstance(value, dict):
            raise wire.invalid_answer("the answer is not a JSON object")
        return value

    def to_error(self) -> tuple[str, str, str]:
        """Return the code, the reason and the message of a permanent error.

        Raises NoAnswerError("INVALID_ANSWER") if the body is not that of a Reservation API.
        """
        error = self.to_object().get("error")
        if not isinstance(error, dict):
            # Every web server answers 404 to an unknown path. Unchecked, a wrong prefix would reject every item.
            if self.status == 404:
                raise wire.invalid_answer("HTTP status 404 without the error body of a Reservation API")
            error = {}
        name = wire.clean_reason(_to_str(error.get("status"))) or REFUSALS[self.status]
        return name, _to_str(error.get("reason")), _to_str(error.get("message"))

    def to_no_answer(self, now: int) -> NoAnswerError:
        """Return, not raise, the NoAnswerError for this status. `now` is in microseconds since the epoch."""
        if 200 <= self.status < 300:
            return wire.invalid_answer(f"HTTP status {self.status} instead of 200")
        return NoAnswerError(
            f"HTTP_{self.status}",
            wire.clean_text(self.content[:2000].decode(errors="replace")),
            retry_after_us=_find_retry_after(self.headers, now),
            reached=self.status in _REACHED,
        )


class HttpClient:
    """An HTTP session. Create it inside the running loop.

    `clock` returns the time in microseconds since the epoch; it turns a Retry-After date into a duration.
    """

    def __init__(self, *, clock: Callable[[], int]) -> None:
        self.clock = clock
        self._session = aiohttp.ClientSession(
            # No limit: the reconciler bounds the calls in flight, and each needs a connection.
            connector=bounded_connector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            headers=_HEADERS,
            auto_decompress=False,
        )
        # By default aiohttp repeats a PUT or DELETE when a reused connection breaks. A test proves that this stops it.
        self._session._retry_connection = False  # noqa: SLF001 - aiohttp has no public switch

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
        """Make one call, with `body` as JSON, within `timeout` seconds, and return the answer.

        Raises NoAnswerError, also if the answer has more than `max_bytes` bytes.
        """
        data = None if body is None else json.dumps(body).encode()
        try:
            async with asyncio.timeout(timeout):
                async with self._session.request(
                    method, url, data=data, params=query or None, allow_redirects=False
                ) as response:
                    return HttpAnswer(response.status, response.headers, await _read(response, max_bytes))
        except NoAnswerError:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise NoAnswerError("CANCELLED", "the connection was closed during the call") from None
        except TimeoutError:
            raise NoAnswerError("DEADLINE_EXCEEDED", f"no answer within {round(timeout, 2):g} s") from None
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as error:
            raise wire.invalid_answer(f"{type(error).__name__}: {error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise NoAnswerError("UNAVAILABLE", wire.clean_text(f"{type(error).__name__}: {error}")) from error
        except Exception as error:
            raise NoAnswerError("UNKNOWN", wire.clean_text(f"{type(error).__name__}: {error}")) from error

    async def close(self) -> None:
        """Close the connections. Calls in flight end with NoAnswerError."""
        await self._session.close()


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > max_bytes:
            raise wire.invalid_answer(f"the answer is longer than {max_bytes >> 10} KiB")
    return bytes(content)


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
