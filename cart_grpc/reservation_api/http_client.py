"""The HTTP client that both HTTP contracts share. It makes each call once and never retries.

A call without a valid answer raises NoAnswerError, see `ReservationApi.apply`.
"""

import asyncio
import json
import re
import ssl
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final

import aiohttp

from cart_grpc.reservation_api import wire
from cart_grpc.reservation_api.api import NoAnswerError
from cart_grpc.reservation_api.credentials import Headers, hide_token
from cart_grpc.reservation_api.http_connection import bounded_connector
from cart_grpc.tls.client import explain

REFUSALS: Final = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 409: "FAILED_PRECONDITION", 422: "INVALID_ARGUMENT"}
"""The statuses of permanent errors, each with the code to report if the body has none."""

_REACHED: Final = frozenset({429})
# No compression: 64 KiB could expand to 64 MiB.
_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity", "Content-Type": "application/json"}

# One message per line. An answer that has only one message is also JSON.
_LINE_TYPES: Final = ("application/x-ndjson", "application/jsonl", "application/json")
_ACCEPT_LINES: Final = "application/x-ndjson, application/json"
_CONTEXT: Final = re.compile(r" ssl:<[^>]*>")


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """The answer to one call."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def to_json(self) -> Any:
        """Return the parsed body. Raises NoAnswerError("INVALID_ANSWER") if it is not JSON."""
        _check_content_type(self.headers, ("application/json",))
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


class UnexpectedStatus(Exception):
    """The status is not 200. `answer` is the whole answer."""

    def __init__(self, answer: HttpAnswer) -> None:
        super().__init__(f"HTTP status {answer.status}")
        self.answer = answer


class HttpClient:
    """An HTTP session. Create it inside the running loop.

    `clock` returns the time in microseconds since the epoch; it turns a Retry-After date into a duration. `context`
    returns the newest context for TLS, True: aiohttp's own. `headers` returns the newest headers of a call. aiohttp
    uses a connection only for calls with the context that it was opened with, and closes it after 15 s without a call.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], int],
        context: Callable[[], ssl.SSLContext | bool] = lambda: True,
        headers: Callable[[], Headers] = lambda: (),
    ) -> None:
        self.clock = clock
        self._context = context
        self._headers = headers
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
        data, headers = None if body is None else json.dumps(body).encode(), self._headers()
        with _to_no_answers(timeout):
            async with (
                asyncio.timeout(timeout),
                self._session.request(
                    method,
                    url,
                    data=data,
                    params=query or None,
                    headers=dict(headers),
                    ssl=self._context(),
                    allow_redirects=False,
                ) as response,
            ):
                content = hide_token(headers, await _read(response, max_bytes))
                return HttpAnswer(response.status, response.headers, content)

    async def post_for_lines(
        self, url: str, body: object, *, timeout: float, max_line_bytes: int
    ) -> AsyncGenerator[bytes, None]:
        """POST `body` as JSON and yield the lines of the answer as they arrive, without empty ones.

        Closing the generator ends the call. Raises NoAnswerError, also if a line has more than `max_line_bytes` bytes,
        and UnexpectedStatus for every status except 200.
        """
        data, headers = json.dumps(body).encode(), self._headers()
        # Not one time-out around everything: it would cancel the caller while it works on a line.
        deadline = asyncio.get_running_loop().time() + timeout
        with _to_no_answers(timeout):
            async with asyncio.timeout_at(deadline):
                response = await self._session.post(
                    url,
                    data=data,
                    headers={"Accept": _ACCEPT_LINES, **dict(headers)},
                    ssl=self._context(),
                    allow_redirects=False,
                )
            async with response:
                if response.status != 200:
                    async with asyncio.timeout_at(deadline):
                        content = hide_token(headers, await _read(response, wire.MAX_ANSWER_BYTES))
                    raise UnexpectedStatus(HttpAnswer(response.status, response.headers, content))
                _check_content_type(response.headers, _LINE_TYPES)
                async for line in _split(_read_chunks(response, deadline), max_line_bytes):
                    yield hide_token(headers, line)

    async def close(self) -> None:
        """Close the connections. Calls in flight end with NoAnswerError."""
        await self._session.close()


@contextmanager
def _to_no_answers(timeout: float) -> Iterator[None]:
    try:
        yield
    except (NoAnswerError, UnexpectedStatus):
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
        # aiohttp's text contains the context's address in memory.
        text = _CONTEXT.sub("", f"{type(error).__name__}: {error}")
        raise NoAnswerError("UNAVAILABLE", wire.clean_text(explain(text))) from error
    except Exception as error:
        raise NoAnswerError("UNKNOWN", wire.clean_text(f"{type(error).__name__}: {error}")) from error


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > max_bytes:
            raise wire.invalid_answer(f"the answer is longer than {max_bytes >> 10} KiB")
    return bytes(content)


async def _read_chunks(response: aiohttp.ClientResponse, deadline: float) -> AsyncGenerator[bytes, None]:
    while True:
        async with asyncio.timeout_at(deadline):
            chunk = await response.content.readany()
        if not chunk:
            return
        yield chunk


async def _split(chunks: AsyncGenerator[bytes, None], max_line_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the lines in `chunks`, without empty ones. A last line need not end with a line feed."""
    line = bytearray()
    async with aclosing(chunks):
        async for chunk in chunks:
            *ends, start = chunk.split(b"\n")
            for end in ends:
                _extend(line, end, max_line_bytes)
                if line.strip():
                    yield bytes(line)
                line.clear()
            _extend(line, start, max_line_bytes)
    if line.strip():
        yield bytes(line)


def _extend(line: bytearray, part: bytes, max_bytes: int) -> None:
    line += part
    if len(line) > max_bytes:
        raise wire.invalid_answer(f"a line of the answer is longer than {max_bytes >> 10} KiB")


def _check_content_type(headers: Mapping[str, str], expected: Collection[str]) -> None:
    content_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if content_type not in expected:
        names = " or ".join(expected)
        raise wire.invalid_answer(f"the answer's content type is {content_type or 'missing'}, not {names}")


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
