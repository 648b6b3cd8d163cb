"""Receiving a request whose message may never arrive.

gRPC calls a unary method only when the request is complete, and has no time-out for that. In an attack, 16,000
half-open calls (headers without a message) from 40 connections held 432 MiB for an unlimited time. So each method is
registered as one that takes a stream of requests, and its single message is read here, within the call's time-out. The
wire format is the same, and so is the cost: server CPU of an empty call is 0.999 of that with a unary method (median of
120 interleaved rounds on one server; the quartiles of single rounds are 10 % apart).
"""

import asyncio
from typing import Any

import grpc

from cart_grpc.carts.refusals import FieldViolation, InvalidArgument, Overloaded

Context = grpc.aio.ServicerContext[Any, Any]


class MalformedRequest(InvalidArgument):
    """The bytes are not a request message, or the caller closed its side without sending one.

    `data` is what arrived: bytes, or grpc.aio.EOF. A bridge can send JSON, as application/grpc+json. gRPC hides the
    content type from us, so the JSON itself must tell.
    """

    def __init__(self, data: Any = None) -> None:
        description = "the request message is missing, or its bytes are not valid"
        if isinstance(data, bytes) and data.lstrip().startswith(b"{"):
            description = "the request message is JSON; this server speaks only protobuf: send application/grpc+proto"
        super().__init__([FieldViolation("", "MALFORMED_REQUEST", description)])


class Receiver:
    """Receives the requests of one server; at most `max_incomplete` of them are incomplete at a time.

    At the limit, a new request makes the oldest be rejected. A caller that sends its headers and its message together
    is never the oldest for long, so it is served during an attack. If the newest were rejected, it would not be.
    """

    def __init__(self, max_incomplete: int) -> None:
        self._max_incomplete = max_incomplete
        self._incomplete: dict[asyncio.Task[Any] | None, None] = {}

    async def receive(self, context: Context) -> Any:
        """Return the bytes of the call's next message; grpc.aio.EOF if there is none. Raises Overloaded."""
        task = asyncio.current_task()
        self._incomplete[task] = None
        if len(self._incomplete) > self._max_incomplete:
            self._reject_oldest()
        try:
            return await context.read()
        except asyncio.CancelledError:
            if task and task not in self._incomplete and task.uncancel() == 0:
                raise Overloaded(_INCOMPLETE) from None
            # The caller cancelled the call, or its time is up.
            raise
        finally:
            self._incomplete.pop(task, None)

    def _reject_oldest(self) -> None:
        oldest = next(iter(self._incomplete))
        del self._incomplete[oldest]
        if oldest:
            oldest.cancel()


_INCOMPLETE = "too many requests are incomplete; send each request at once, and try again shortly"
