"""The layers between the network and the servicers. Each takes an endpoint and the next step, and returns a step.

A step takes a request and a context and returns the reply, or None if it has written its replies to the context. The
layers replace three behaviours of gRPC: it sends the text of an exception to the caller, as UNKNOWN; it does the same
for bytes that are no message; and if a servicer raises a stray CancelledError, it lets the caller hang.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from inspect import isasyncgenfunction
from typing import Any, NoReturn

import grpc

from cart_grpc.authentication.caller import NOBODY
from cart_grpc.authentication.refusals import TokenExpired, TokenMissing
from cart_grpc.carts.refusals import CallRefused, Overloaded
from cart_grpc.rpc import status
from cart_grpc.rpc.access import CALLER
from cart_grpc.rpc.call_log import CALL, log_error, note_request
from cart_grpc.rpc.endpoint import Context, Endpoint, Step
from cart_grpc.rpc.fields import MAX_WAIT_SECONDS
from cart_grpc.rpc.measuring import count_refusal
from cart_grpc.rpc.messages import serialize
from cart_grpc.rpc.permissions import check_of


class WriteCancelled(Exception):
    """The call was cancelled while it wrote a reply: the peer does not read, or has gone. No status can follow."""


def errors(endpoint: Endpoint, next_step: Step) -> Step:
    """Turn exceptions into statuses: a refusal with its details, anything else into INTERNAL with an id for the log."""

    async def step(request: Any, context: Context) -> Any:
        try:
            return await next_step(request, context)
        except CallRefused as refusal:
            count_refusal(endpoint, refusal.reason)
            await status.refuse(context, refusal)
        except grpc.aio.AbortError:
            raise
        except WriteCancelled:
            # gRPC refuses a status while a write is under way. It ends the call with the connection, or when it stops.
            raise asyncio.CancelledError from None
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise
            # A stray CancelledError: this task was not cancelled. Without a status, its caller would hang.
            await _abort_internal(context, endpoint, error)
        except Exception as error:  # noqa: BLE001 - a bug: the log has it, the caller gets an id
            await _abort_internal(context, endpoint, error)

    return step


def refuse_if_closed(endpoint: Endpoint, next_step: Step) -> Step:
    """Refuse the call if the server's door is closed. Raises DatabaseUnavailable or ShuttingDown."""
    door = endpoint.guards.door
    if door is None:
        return next_step

    def step(request: Any, context: Context) -> Awaitable[Any]:
        return next_step(request, context) if door.is_open else door.refuse()

    return step


def reject_if_full(endpoint: Endpoint, next_step: Step) -> Step:
    """Reject the call before its request is received if every slot is taken. Raises Overloaded."""
    admission = endpoint.guards.admission
    if admission is None:
        return next_step

    def step(request: Any, context: Context) -> Awaitable[Any]:
        if admission.is_full:
            raise Overloaded
        return next_step(request, context)

    return step


def authenticate(endpoint: Endpoint, next_step: Step) -> Step:
    """Find out who makes the call before its request is received. Raises Unauthenticated or Unavailable."""
    access, deadlines = endpoint.access, endpoint.guards.deadlines
    if access is None:
        return next_step
    allows_nobody = endpoint.method.allows_nobody

    async def verify(request: Any, context: Context) -> Any:
        try:
            CALLER.set(await deadlines.run(access.verify(context)))
        except TokenMissing:
            if not allows_nobody:
                raise
            CALLER.set(NOBODY)
        return await next_step(request, context)

    def step(request: Any, context: Context) -> Awaitable[Any]:
        if caller := access.find(context):
            CALLER.set(caller)
            return next_step(request, context)
        return verify(request, context)

    return step


def deadline(endpoint: Endpoint, next_step: Step) -> Step:
    """Receive the request and finish the call within the time-out plus max_wait. Raises CallTimeout."""
    receive, decode, waits = endpoint.guards.receiver.receive, endpoint.decode, endpoint.method.waits
    run, extend = endpoint.guards.deadlines.run, endpoint.guards.deadlines.extend

    async def received(context: Context) -> Any:
        request = decode(await receive(context))
        note_request(request)
        if waits and request.HasField("max_wait"):
            return await extend(next_step(request, context), _bounded_seconds(request.max_wait))
        return await next_step(request, context)

    return lambda _, context: run(received(context))


def receive_one(endpoint: Endpoint, next_step: Step) -> Step:
    """Receive the request within the time-out; the replies may take longer. Raises CallTimeout."""

    async def step(_: Any, context: Context) -> Any:
        data = await endpoint.guards.deadlines.run(endpoint.guards.receiver.receive(context))
        request = endpoint.decode(data)
        note_request(request)
        return await next_step(request, context)

    return step


def receive_many(endpoint: Endpoint, next_step: Step) -> Step:
    """Receive the first of a stream of requests within the time-out; the others may take longer."""

    async def requests(context: Context) -> AsyncGenerator[Any, None]:
        data = await endpoint.guards.deadlines.run(endpoint.guards.receiver.receive(context))
        while data is not grpc.aio.EOF:
            yield endpoint.decode(data)
            # Counted like the first one: it may be as long, and may never be complete.
            data = await endpoint.guards.receiver.receive(context)

    async def step(_: Any, context: Context) -> Any:
        async with aclosing(requests(context)) as received:
            return await next_step(received, context)

    return step


def authorize(endpoint: Endpoint, next_step: Step) -> Step:
    """Refuse what the caller may not do, before the request is validated. Raises PermissionDenied."""
    if endpoint.access is None:
        return next_step
    check = check_of(endpoint.method, endpoint.scope)

    def step(request: Any, context: Context) -> Awaitable[Any]:
        check(CALLER.get(), request)
        return next_step(request, context)

    return step


def admit(endpoint: Endpoint, next_step: Step) -> Step:
    """Run the call in a slot of its user and its service. Raises Overloaded or TooManyCalls."""
    admission, user_of = endpoint.guards.admission, endpoint.method.user_of
    if admission is None:
        return next_step

    async def step(request: Any, context: Context) -> Any:
        await admission.take_slot(user_of(request), request.ByteSize(), CALLER.get().acting_service)
        try:
            reply = await next_step(request, context)
            admission.note_reply(len(reply))
            return reply
        finally:
            admission.free_slot()

    return step


def admit_stream(endpoint: Endpoint, next_step: Step) -> Step:
    """Count the stream for its user, its service and its connection. Raises TooManyStreams or ShuttingDown."""
    streams, method = endpoint.guards.streams, endpoint.method

    async def step(request: Any, context: Context) -> Any:
        user = "" if method.takes_stream else method.user_of(request)
        with streams.slot(user, context.peer(), CALLER.get().acting_service):
            return await next_step(request, context)

    return step


def end_at_expiry(endpoint: Endpoint, next_step: Step) -> Step:
    """End the stream when the identity of its caller ends. Raises TokenExpired."""
    if endpoint.access is None:
        return next_step

    async def step(request: Any, context: Context) -> Any:
        expiry = CALLER.get().expiry
        timeout = asyncio.timeout(None if expiry is None else expiry - time.time())
        try:
            async with timeout:
                return await next_step(request, context)
        except TimeoutError:
            if timeout.expired():
                raise TokenExpired from None
            raise

    return step


def encode(endpoint: Endpoint, next_step: Step) -> Step:
    """Serialise the reply, unless it is bytes already. Raises Overloaded if the caller does not read its replies."""
    unread, writes = endpoint.unread, endpoint.method.writes

    async def step(request: Any, context: Context) -> bytes:
        unread.check(context)
        reply = serialize(await next_step(request, context))
        if not writes:
            # Many calls may have passed the first check together. A write has had its effect, so it must be answered.
            unread.check(context)
        unread.add(reply, context)
        return reply

    return step


def write_each(endpoint: Endpoint, next_step: Any) -> Step:
    """Write each reply that an asynchronous generator yields. A servicer may also write its replies itself.

    Raises Overloaded if the connection does not read its replies.
    """
    if not isasyncgenfunction(next_step):
        step: Step = next_step
        return step

    async def write(request: Any, context: Context) -> None:
        call = CALL.get()
        # `aclosing` runs the generator's `finally` when the call ends, not when the garbage collector finds it.
        async with aclosing(next_step(request, context)) as replies:
            async for reply in replies:
                encoded = serialize(reply)
                try:
                    with endpoint.unread.writing(encoded, context):
                        await context.write(encoded)
                except asyncio.CancelledError:
                    raise WriteCancelled from None
                if call:
                    call.note_opened()

    return write


def _bounded_seconds(max_wait: Any) -> float:
    """Return max_wait, which is not checked yet, within its bounds."""
    seconds: float = max_wait.seconds + max_wait.nanos / 1e9
    return min(max(seconds, 0.0), float(MAX_WAIT_SECONDS))


async def _abort_internal(context: Context, endpoint: Endpoint, error: BaseException) -> NoReturn:
    error_id = secrets.token_hex(8)
    count_refusal(endpoint, "INTERNAL")
    log_error(context, endpoint.path, error_id, error)
    await status.abort(context, status.internal(error_id))
