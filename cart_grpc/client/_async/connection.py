"""A connection of the client: a channel that is opened when it is first used."""

import threading
from collections.abc import Callable, Mapping

import grpc

from cart_grpc.client import async_io as io
from cart_grpc.client import errors


class Connection:
    """A channel to `address`. Each attempt of a call gets a token from the callback `token`, if there is one.

    It also gets the pairs that `metadata` returns.
    """

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None = None,
        token: io.Token | None = None,
        metadata: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._address = address
        self._credentials = credentials
        self._token = token
        self._metadata = metadata
        self._lock = threading.Lock()
        self._channel: io.Channel | None = None
        self._stub: io.Stub | None = None
        self._is_closed = False

    @property
    def stub(self) -> io.Stub:
        """The service. Raises CartError if the connection is closed."""
        with self._lock:
            if self._is_closed:
                raise errors.closed()
            if self._stub is None:
                self._channel = io.open_channel(self._address, self._credentials)
                self._stub = io.open_stub(self._channel)
            return self._stub

    async def metadata(self, seconds: float) -> tuple[tuple[str, str], ...]:
        """Return the metadata of one attempt. Raises DeadlineExceeded if the token takes longer than `seconds`."""
        metadata = tuple(self._metadata().items())
        if self._token is None:
            return metadata
        token = await io.get_token(self._token, seconds)
        return (("authorization", f"Bearer {token}"), *metadata)

    async def close(self) -> None:
        """Close the channel and end its calls."""
        with self._lock:
            self._is_closed = True
            channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
