"""The network and the clock of the synchronous client. `async_io` is the same for the asynchronous one."""

import threading
from collections.abc import Callable
from time import sleep
from typing import Any, TypeAlias, TypeVar

import grpc
from cartgrpc.v1.cart_service_pb2 import WatchCartRequest, WatchCartResponse
from cartgrpc.v1.cart_service_pb2_grpc import CartServiceStub
from google.protobuf.message import Message

from cart_grpc import channels
from cart_grpc.client.errors import CartError, to_error
from cart_grpc.client.options import OPTIONS

__all__ = ["Channel", "Method", "Stream", "Stub", "Token", "call", "get_token", "open_channel", "open_stub", "read"]
__all__ += ["sleep", "watch"]

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)
Channel: TypeAlias = grpc.Channel
# Strings: grpc's classes are generic in their stubs only.
Method: TypeAlias = "grpc.UnaryUnaryMultiCallable[Q, R]"
# A call that is an iterator. Its class has no stubs.
Stream: TypeAlias = Any
Stub: TypeAlias = CartServiceStub
Token: TypeAlias = Callable[[], str]
Metadata: TypeAlias = tuple[tuple[str, str], ...]


def open_channel(address: str, credentials: grpc.ChannelCredentials | None) -> Channel:
    """Open a channel."""
    return channels.open_channel(address, OPTIONS, credentials)


def open_stub(channel: Channel) -> Stub:
    """Return the calls of the service on this channel."""
    return CartServiceStub(channel)


def get_token(token: Token, seconds: float) -> str:  # noqa: ARG001 - nothing can interrupt it
    """Return a token from the callback, which must end by itself."""
    return token()


def call(method: "Method[Q, R]", request: Q, seconds: float, metadata: Metadata) -> R:
    """Make one attempt of a call. Raises CartError, which is CANCELLED without a reason if the channel was closed."""
    try:
        return method(request, timeout=seconds, metadata=metadata)
    except grpc.RpcError as error:
        raise _to_error(error) from None


def watch(stub: Stub, name: str, metadata: Metadata) -> Stream:
    """Begin to watch the cart."""
    return stub.WatchCart(WatchCartRequest(name=name), metadata=metadata)


def read(stream: Stream, seconds: float) -> WatchCartResponse | None:
    """Return the next message, or None if the stream has ended. Raises CartError as `call` does.

    It is UNAVAILABLE if there is no message within `seconds`: the stream is then cancelled.
    """
    is_late = threading.Event()

    def end() -> None:
        is_late.set()
        stream.cancel()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        message: WatchCartResponse | None = next(stream, None)
    except grpc.RpcError as error:
        if is_late.is_set():
            raise to_error(grpc.StatusCode.UNAVAILABLE, f"no message came for {seconds:.0f} s") from None
        raise _to_error(error) from None
    finally:
        timer.cancel()
    return message


def _to_error(error: Any) -> CartError:
    return to_error(error.code(), error.details() or "", error.trailing_metadata() or ())
