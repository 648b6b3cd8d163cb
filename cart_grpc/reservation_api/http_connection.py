"""A connection of the HTTP client that bounds what a server can send per call.

aiohttp bounds a header line, not the informational responses (HTTP 1xx) before an answer, the trailers after it, or the
extensions of its chunks. It takes such bytes as fast as they come and without giving way to the event loop. A server
that sends them without end would starve every other call of this process, and no time-out would run.
"""

from functools import partial
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

from cart_grpc.reservation_api import wire

_MAX_INFORMATIONAL: Final = 8
# The longest answer, with as much again for its head and its chunks.
_MAX_BYTES: Final = 2 * wire.MAX_LOOKUP_BYTES
# Few enough that even the densest bytes are parsed within milliseconds.
_PART: Final = 8192


class BoundedResponseHandler(ResponseHandler):
    """The protocol of one connection. It aborts a connection whose server sends too much for one call."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._received = self._informational = 0

    def set_response_params(self, **options: Any) -> None:
        """See ResponseHandler. aiohttp calls it for each request."""
        self._received = self._informational = 0
        super().set_response_params(**options)

    def feed_data(self, data: Any, *size: int) -> None:
        """See ResponseHandler. The parser calls it for each complete head."""
        message, _ = data
        self._informational += 100 <= message.code < 200
        super().feed_data(data, *size)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._received += len(data)
        for start in range(0, max(len(data), 1), _PART):
            if self._received > _MAX_BYTES or self._informational > _MAX_INFORMATIONAL:
                self._abort()
            if self._exception is not None:
                return
            super().data_received(data[start : start + _PART])

    def _abort(self) -> None:
        error = HttpProcessingError(code=0, message="the answer does not end")
        if self._payload is not None:
            self._payload.set_exception(aiohttp.ClientPayloadError(error.message))
        self.set_exception(error)
        if self.transport is not None:
            self.transport.abort()


def bounded_connector(**options: Any) -> aiohttp.TCPConnector:
    """Return a connector whose connections are bounded. Call it inside the running loop."""
    connector: Any = aiohttp.TCPConnector(**options)
    # aiohttp has no public way to choose the protocol. A test proves that this one is used.
    connector._factory = partial(BoundedResponseHandler, loop=connector._loop)  # noqa: SLF001
    return connector  # type: ignore[no-any-return]
