"""Watching a cart through reconnections."""

import time
from collections.abc import AsyncGenerator
from typing import Final

import grpc
from cartgrpc.v1 import cart_pb2

from cart_grpc.client import async_io as io
from cart_grpc.client import errors
from cart_grpc.client._async.connection import Connection
from cart_grpc.client.errors import CartError
from cart_grpc.client.retries import find_delay
from cart_grpc.client.states import has_ended, is_news

# The server sends a heartbeat every 30 s.
SILENCE_SECONDS: Final = 90.0
# A stream that lived for this long was good: the next attempt follows at once. After a shorter one, attempts back off.
GOOD_SECONDS: Final = 1.0


async def watch(connection: Connection, name: str, timeout: float) -> AsyncGenerator[cart_pb2.Cart, None]:
    """Yield each state of a cart until it has ended. Connects again after failures, as long as it takes.

    Raises CartError if the server refuses, or if there is no first state within `timeout` seconds.
    """
    seen: cart_pb2.Cart | None = None
    first_deadline = time.monotonic() + timeout
    attempt = 0
    while True:
        began = time.monotonic()
        stream: io.Stream | None = None
        try:
            patience = SILENCE_SECONDS if seen else first_deadline - began
            metadata = await connection.metadata(patience)
            stream = io.watch(connection.stub, name, metadata)
            while (message := await io.read(stream, SILENCE_SECONDS if seen else patience)) is not None:
                if message.HasField("cart") and is_news(message.cart, seen):
                    seen = message.cart
                    yield seen
                    if has_ended(seen):
                        return
            failure = errors.to_error(grpc.StatusCode.UNAVAILABLE, "the stream ended before the cart did")
        except CartError as error:
            failure = error
        finally:
            if stream is not None:
                stream.cancel()
        now = time.monotonic()
        attempt = 0 if now - began > GOOD_SECONDS else attempt + 1
        delay = find_delay(failure, attempt)
        if delay is None or (seen is None and now + delay >= first_deadline):
            raise failure
        await io.sleep(delay)
