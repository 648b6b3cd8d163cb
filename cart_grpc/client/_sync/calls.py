# Made by `make sync-client` from the file of the same name in _async. Do not edit.
"""Unary calls: a deadline for each, and retries where they are safe."""

import itertools
import time
from typing import TypeVar

from google.protobuf.message import Message

from cart_grpc.client import sync_io as io
from cart_grpc.client._sync.connection import Connection
from cart_grpc.client.arguments import complete
from cart_grpc.client.errors import CartError
from cart_grpc.client.retries import find_delay

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)


class Calls:
    """Makes calls on a connection. Each may take `timeout` seconds plus its `wait`, with all its attempts."""

    def __init__(self, connection: Connection, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout

    @property
    def stub(self) -> io.Stub:
        """The service. Raises CartError if the connection is closed."""
        return self._connection.stub

    def read(self, method: "io.Method[Q, R]", request: Q) -> R:
        """Make a call that changes nothing. Raises CartError."""
        return self._repeat(method, request, self._timeout, "")

    def change(
        self, method: "io.Method[Q, R]", request: Q, *, wait: float = 0.0, etag: str = "", request_id: str = ""
    ) -> R:
        """Make a call that changes something, with one request_id for all attempts. Raises CartError, ValueError."""
        sent_id = complete(request, wait=wait, etag=etag, request_id=request_id)
        return self._repeat(method, request, self._timeout + wait, sent_id)

    def _repeat(self, method: "io.Method[Q, R]", request: Q, seconds: float, request_id: str) -> R:
        deadline = time.monotonic() + seconds
        failure: CartError | None = None
        for attempt in itertools.count():
            if failure and time.monotonic() >= deadline:
                # The wait took longer than planned. An attempt without time would only hide why this one failed.
                raise failure
            try:
                metadata = self._connection.metadata(deadline - time.monotonic())
                return io.call(method, request, deadline - time.monotonic(), metadata)
            except CartError as error:
                error.request_id = request_id
                delay = find_delay(error, attempt)
                if delay is None or time.monotonic() + delay >= deadline:
                    # The last attempt may have had no time left. Then only the failure before it shows why.
                    raise error from failure
                failure = error
            io.sleep(delay)
            # It raises if the client was closed meanwhile.
            _ = self._connection.stub
        raise AssertionError("the loop has no end")
