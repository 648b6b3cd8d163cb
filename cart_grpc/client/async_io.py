"""The network and the clock of the asynchronous client. `sync_io` is the same for the synchronous one."""

import asyncio
import inspect
from asyncio import sleep
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import grpc
from cartgrpc.v1.cart_service_pb2 import WatchCartRequest, WatchCartResponse
from cartgrpc.v1.cart_service_pb2_grpc import CartServiceStub
from google.protobuf.message import Message

from cart_grpc.channels import open_async_channel
from cart_grpc.client.errors import CartError, to_error
from cart_grpc.client.options import OPTIONS

if TYPE_CHECKING:
    from cartgrpc.v1.cart_service_pb2_grpc import CartServiceAsyncStub

__all__ = ["Channel", "Method", "Stream", "Stub", "Token", "call", "get_token", "open_channel", "open_stub", "read"]
__all__ += ["sleep", "watch"]

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)
Channel: TypeAlias = grpc.aio.Channel
# Strings: grpc's classes are generic in their stubs only.
Method: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[Q, R]"
Stream: TypeAlias = "grpc.aio.UnaryStreamCall[WatchCartRequest, WatchCartResponse]"
Stub: TypeAlias = "CartServiceAsyncStub"
Token: TypeAlias = Callable[[], str | Awaitable[str]]
Metadata: TypeAlias = tuple[tuple[str, str], ...]


def open_channel(address: str, credentials: grpc.ChannelCredentials | None) -> Channel:
    """Open a channel in the running event loop."""
    return open_async_channel(address, OPTIONS, credentials)


def open_stub(channel: Channel) -> Stub:
    """Return the calls of the service on this channel."""
    stub: CartServiceAsyncStub = CartServiceStub(channel)
    return stub


async def get_token(token: Token, seconds: float) -> str:
    """Return a token from the callback. Raises DeadlineExceeded if it takes longer."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            made = token()
            return await made if inspect.isawaitable(made) else made
    except TimeoutError:
        if limit.expired():
            raise to_error(grpc.StatusCode.DEADLINE_EXCEEDED, "there was no token in time") from None
        raise


async def call(method: "Method[Q, R]", request: Q, seconds: float, metadata: Metadata) -> R:
    """Make one attempt of a call. Raises CartError, which is CANCELLED without a reason if the channel was closed."""
    try:
        return await method(request, timeout=seconds, metadata=metadata)
    except grpc.RpcError as error:
        raise _to_error(error) from None
    except asyncio.CancelledError:
        raise _unless_cancelled() from None


def watch(stub: Stub, name: str, metadata: Metadata) -> Stream:
    """Begin to watch the cart."""
    return stub.WatchCart(WatchCartRequest(name=name), metadata=metadata)


async def read(stream: Stream, seconds: float) -> WatchCartResponse | None:
    """Return the next message, or None if the stream has ended. Raises CartError as `call` does.

    It is UNAVAILABLE if there is no message within `seconds`: the stream is then cancelled.
    """
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            message = await stream.read()
    except grpc.RpcError as error:
        raise _to_error(error) from None
    except TimeoutError:
        if limit.expired():
            raise to_error(grpc.StatusCode.UNAVAILABLE, f"no message came for {seconds:.0f} s") from None
        raise
    except asyncio.CancelledError:
        raise _unless_cancelled() from None
    return message if isinstance(message, WatchCartResponse) else None


def _to_error(error: Any) -> CartError:
    return to_error(error.code(), error.details() or "", error.trailing_metadata() or ())


def _unless_cancelled() -> CartError:
    """Return the error for a call that gRPC cancelled. Raises CancelledError if somebody cancelled the task."""
    task = asyncio.current_task()
    if task and task.cancelling():
        raise asyncio.CancelledError
    return to_error(grpc.StatusCode.CANCELLED, "the call was cancelled")
