"""A pool of connections to one gRPC server that grows with the calls in flight.

A server limits the concurrent streams of a connection. Calls beyond the limit wait inside the client while their
deadlines run. Most servers allow 100, but some count a stream slightly longer than its client does and refuse the next
one. So at most 50 calls share a connection. Measured with 1,000 calls in flight and a gRPC server that allows 100
streams: it refused 65 % of the calls on one connection, 8 % with 100 calls per connection, none with 50.

A channel keeps its credentials. With new ones, new channels take its place, and it closes when its calls have ended.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc

from cart_grpc.reservation_api.credentials import Headers, hide_token

CALLS_PER_CONNECTION: Final = 50


@dataclass(slots=True, eq=False)
class _Connection:
    channel: grpc.aio.Channel
    method: Any
    calls: int = 0
    lost: bool = False
    outdated: bool = False

    @property
    def usable(self) -> bool:
        return not self.lost and not self.outdated


class Connections:
    """Makes calls of one `method` over channels from `open_channel`. Use it inside the running loop.

    `credentials` returns the newest credentials, which a new channel gets; None: no TLS. `headers` returns the metadata
    of a call. `streamed` means that the server answers with a stream: use `stream`, otherwise `call`.
    """

    def __init__(
        self,
        open_channel: Callable[[grpc.ChannelCredentials | None], grpc.aio.Channel],
        method: str,
        *,
        credentials: Callable[[], grpc.ChannelCredentials | None] = lambda: None,
        headers: Callable[[], Headers] = lambda: (),
        streamed: bool = False,
    ) -> None:
        self._open_channel = open_channel
        self._method = method
        self._find_credentials = credentials
        self._headers = headers
        self._credentials = credentials()
        self._streamed = streamed
        self._all: set[_Connection] = set()
        # One entry per call that fits. Last in, first out: a few calls at a time need a single connection.
        self._free: list[_Connection] = []

    async def call(self, request: bytes, timeout: float) -> bytes | None:
        """Make one call within `timeout` seconds. Returns None if the status is OK, but no message came.

        Raises AioRpcError, and CancelledError if the server cancels it.
        """
        headers = self._headers()
        async with self._connect(headers) as connection:
            answer: bytes | None = await connection.method(
                request, timeout=timeout, metadata=headers, wait_for_ready=False
            )
            return answer and hide_token(headers, answer)

    async def stream(self, request: bytes, timeout: float) -> AsyncGenerator[bytes, None]:
        """Make one call within `timeout` seconds and yield its messages. Closing the generator cancels the call.

        Raises as `call` does.
        """
        headers = self._headers()
        async with self._connect(headers) as connection:
            call = connection.method(request, timeout=timeout, metadata=headers, wait_for_ready=False)
            try:
                while (message := await call.read()) is not grpc.aio.EOF:
                    yield hide_token(headers, message)
            finally:
                call.cancel()

    async def close(self) -> None:
        """Close all connections. Calls in flight are cancelled."""
        for connection in list(self._all):
            await connection.channel.close()

    @asynccontextmanager
    async def _connect(self, headers: Headers) -> AsyncGenerator[_Connection, None]:
        """Take a place on a connection for one call, and notice if the call finds the connection lost.

        The error of the call does not contain the token in `headers`.
        """
        await self._replace_outdated()
        connection = self._take()
        connection.calls += 1
        try:
            yield connection
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                connection.lost |= connection.channel.get_state() is not grpc.ChannelConnectivity.READY
            raise _without_token(error, headers) from None
        finally:
            connection.calls -= 1
            await self._give_back(connection)

    async def _replace_outdated(self) -> None:
        """If the credentials are new, close the connections without calls, and use none of the others again."""
        if (credentials := self._find_credentials()) is self._credentials:
            return
        self._credentials = credentials
        for connection in self._all:
            connection.outdated = True
        idle = [connection for connection in self._all if not connection.calls]
        self._all.difference_update(idle)
        for connection in idle:
            await connection.channel.close()

    def _take(self) -> _Connection:
        while self._free:
            connection = self._free.pop()
            if connection.usable:
                return connection
        channel = self._open_channel(self._credentials)
        open_method = channel.unary_stream if self._streamed else channel.unary_unary
        connection = _Connection(channel, open_method(self._method))
        self._all.add(connection)
        self._free.extend([connection] * (CALLS_PER_CONNECTION - 1))
        return connection

    async def _give_back(self, connection: _Connection) -> None:
        """Free the call's place. A lost connection is not reused: it would wait for its own reconnect backoff."""
        if connection.usable:
            self._free.append(connection)
        elif not connection.calls:
            self._all.discard(connection)
            await connection.channel.close()


def _without_token(error: grpc.aio.AioRpcError, headers: Headers) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(
        *(
            (name, hide_token(headers, value) if isinstance(value, bytes) else value)
            for name, value in error.trailing_metadata()
        )
    )
    details = hide_token(headers, (error.details() or "").encode()).decode()
    return grpc.aio.AioRpcError(error.code(), error.initial_metadata(), trailing, details)
