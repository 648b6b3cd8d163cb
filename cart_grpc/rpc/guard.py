"""What stands between the network and the servicers: nothing that a caller sends can get past it as a bug.

grpc.aio by itself sends an exception's text to the caller as UNKNOWN, answers garbage bytes the same way, and lets the
caller hang where a handler raises a stray CancelledError.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message

from cart_grpc.carts.refusals import CallTimeout, FieldViolation, InvalidArgument, Refused
from cart_grpc.rpc import status
from cart_grpc.rpc.fields import MAX_WAIT_SECONDS

log = logging.getLogger(__name__)
# Strings: grpc's classes are generic in their stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"

_MALFORMED = object()


class Guard(grpc.aio.ServerInterceptor):
    """Wraps every method, deserialisation and behaviour both, once per method.

    A call ends after `timeout` seconds at the latest (its max_wait comes on top), or at the caller's own deadline.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        method = str(handler_call_details.method)
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            wrapped = self._wrap(method, handler) if handler.unary_unary else _wrap_stream(handler)
            self._wrapped[method] = wrapped
        return wrapped

    def _wrap(self, method: str, handler: Handler) -> Handler:
        deserialize, behaviour = handler.request_deserializer, handler.unary_unary

        def decode(data: bytes) -> Any:
            try:
                return deserialize(data) if deserialize else data
            except Exception:  # noqa: BLE001 - whatever the parser raises, the bytes are not a request
                return _MALFORMED

        async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                return _serialize(await self._run(behaviour, request, context))
            except Refused as refusal:
                await status.abort(context, status.to_status(refusal))
            except grpc.aio.AbortError:
                raise
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task and task.cancelling():
                    raise
                # Not the caller's cancellation: raised on, it would leave the caller without any answer.
                await _abort_internal(context, method, error)
            except Exception as error:  # noqa: BLE001 - a bug: the log has it, the caller gets an id
                await _abort_internal(context, method, error)

        return grpc.unary_unary_rpc_method_handler(guarded, request_deserializer=decode, response_serializer=None)

    async def _run(self, behaviour: Any, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        if request is _MALFORMED:
            raise InvalidArgument([FieldViolation("", "MALFORMED_REQUEST", "the bytes are not a request")])
        seconds = self._timeout + _max_wait(request)
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                return await behaviour(request, context)
        except TimeoutError:
            if deadline.expired():
                raise CallTimeout(seconds) from None
            raise


def _wrap_stream(handler: Handler) -> Handler:
    """Health's Watch and reflection: bytes that are no request are taken for an empty one, which both answer."""
    deserialize = handler.request_deserializer

    def decode(data: bytes) -> Any:
        try:
            return deserialize(data) if deserialize else data
        except Exception:  # noqa: BLE001 - as above
            return deserialize(b"") if deserialize else b""

    behaviour: Any = handler.stream_stream or handler.unary_stream
    if handler.stream_stream:
        return grpc.stream_stream_rpc_method_handler(behaviour, decode, handler.response_serializer)
    return grpc.unary_stream_rpc_method_handler(behaviour, decode, handler.response_serializer)


def _max_wait(request: Any) -> float:
    if "max_wait" not in request.DESCRIPTOR.fields_by_name:
        return 0.0
    seconds: float = request.max_wait.seconds + request.max_wait.nanos / 1e9
    return min(max(seconds, 0.0), float(MAX_WAIT_SECONDS))


def _serialize(response: Message | bytes) -> bytes:
    # Maps in the order of their keys: a reply that is given again has the same bytes.
    return response if isinstance(response, bytes) else response.SerializeToString(deterministic=True)


async def _abort_internal(context: grpc.aio.ServicerContext[Any, Any], method: str, error: BaseException) -> None:
    error_id = secrets.token_hex(8)
    log.error("error %s in %s", error_id, method, exc_info=error)
    await status.abort(context, status.internal(error_id))
