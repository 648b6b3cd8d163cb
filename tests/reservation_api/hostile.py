"""Servers whose answers a test scripts, over real sockets: valid, invalid or none."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from aiohttp import web
from cartgrpc.reservation.v1 import reservation_pb2
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

HTTP_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 422,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


@dataclass
class Script:
    """The answer to every call: `raw`, else an error with `code`, else `reservation`; no answer while `hangs`.

    A batch is answered with `messages`. Then the call hangs, fails with `code`, or ends.
    """

    reservation: reservation_pb2.Reservation | None = None
    code: grpc.StatusCode | None = None
    reason: str = ""
    text: str = "because"
    current: reservation_pb2.Reservation | None = None
    retry_after: int | None = None
    raw: bytes | None = None
    hangs: bool = False
    http_status: int | None = None
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    messages: Sequence[reservation_pb2.BatchApplyReservationsResponse | bytes] = ()


class Hostile:
    """A server that answers as `script` says. It keeps the messages it `received`.

    It also keeps the `peers` of batches over gRPC. It sets `arrived` on each call, and `left` at the end of a batch,
    whether the server or the client ends it.
    """

    url = ""

    def __init__(self) -> None:
        self.script = Script()
        self.received: list[reservation_pb2.Reservation] = []
        self.peers: list[str] = []
        self.arrived = asyncio.Event()
        self.left = asyncio.Event()

    def _take(self, *received: reservation_pb2.Reservation) -> Script:
        self.received += received
        self.arrived.set()
        return self.script

    async def _hang(self, script: Script) -> None:
        if script.hangs:
            await asyncio.Event().wait()

    @contextmanager
    def _notes_the_end(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.left.set()


class HostileGrpc(Hostile):
    """The scripted server over gRPC. Its method returns raw bytes, so that they need not be a valid message."""

    async def answer(self, raw: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        """Answer one call."""
        script = self._take(reservation_pb2.ApplyReservationRequest.FromString(raw).reservation)
        await self._hang(script)
        if script.raw is not None:
            return script.raw
        if script.code is None:
            return reservation_pb2.ApplyReservationResponse(reservation=script.reservation).SerializeToString()
        await self._fail(script, script.code, context)
        raise AssertionError

    async def answer_batch(self, raw: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Answer one batch.

        It writes its messages and yields none: gRPC would leave a generator suspended at its `yield` if the client
        cancels while a message is on its way, and `left` would stay unset.
        """
        script = self._take(*reservation_pb2.BatchApplyReservationsRequest.FromString(raw).reservations)
        self.peers.append(context.peer())
        with self._notes_the_end():
            for message in script.messages:
                await context.write(message if isinstance(message, bytes) else message.SerializeToString())
            await self._hang(script)
            if script.code is not None:
                await self._fail(script, script.code, context)

    async def _fail(self, script: Script, code: grpc.StatusCode, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        details: list[Message] = [script.current] if script.current else []
        if script.reason:
            details.append(error_details_pb2.ErrorInfo(reason=script.reason))
        if script.retry_after is not None:
            details.append(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=script.retry_after)))
        packed = [AnyMessage() for _ in details]
        for each, detail in zip(packed, details, strict=True):
            each.Pack(detail)
        status = rpc_status.to_status(status_pb2.Status(code=code.value[0], message=script.text, details=packed))
        await context.abort(status.code, status.details, status.trailing_metadata)


class HostileHttp(Hostile):
    """The scripted server over HTTP."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one call."""
        message = json_format.Parse(await request.read(), reservation_pb2.ApplyReservationRequest())
        script = self._take(message.reservation)
        await self._hang(script)
        return self._answer(script)

    async def answer_batch(self, request: web.Request) -> web.StreamResponse:
        """Answer one batch. An error after a message breaks the connection."""
        message = json_format.Parse(await request.read(), reservation_pb2.BatchApplyReservationsRequest())
        script = self._take(*message.reservations)
        with self._notes_the_end():
            if not script.messages:
                await self._hang(script)
                return self._answer(script)
            return await self._stream(script, request)

    async def _stream(self, script: Script, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        for each in script.messages:
            line = each if isinstance(each, bytes) else json.dumps(json_format.MessageToDict(each)).encode()
            await response.write(line + b"\n")
        await self._hang(script)
        if script.code is not None and request.transport is not None:
            request.transport.abort()
        return response

    def _answer(self, script: Script) -> web.Response:
        status = script.http_status or (HTTP_STATUSES[script.code] if script.code else 200)
        if script.raw is not None:
            headers = {"Content-Type": script.content_type, **script.headers}
            return web.Response(body=script.raw, status=status, headers=headers)
        body: dict[str, Any] = {}
        if script.code is not None:
            error = {"code": status, "status": script.code.name, "message": script.text}
            body["error"] = error | ({"reason": script.reason} if script.reason else {})
        reservation = script.current if script.code else script.reservation
        if reservation is not None:
            body["reservation"] = json_format.MessageToDict(reservation)
        retry = {} if script.retry_after is None else {"Retry-After": str(script.retry_after)}
        return web.Response(
            body=json.dumps(body), status=status, content_type=script.content_type, headers=script.headers | retry
        )


@asynccontextmanager
async def hostile_grpc() -> AsyncIterator[Hostile]:
    """Serve a HostileGrpc on a free port."""
    hostile = HostileGrpc()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    methods: dict[str, Any] = {
        "ApplyReservation": grpc.unary_unary_rpc_method_handler(hostile.answer),
        "BatchApplyReservations": grpc.unary_stream_rpc_method_handler(hostile.answer_batch),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("cartgrpc.reservation.v1.ReservationService", methods),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    hostile.url = f"grpc://127.0.0.1:{port}"
    try:
        yield hostile
    finally:
        await server.stop(0)


@asynccontextmanager
async def hostile_http() -> AsyncIterator[Hostile]:
    """Serve a HostileHttp on a free port, under the path prefix /shop."""
    hostile = HostileHttp()
    app = web.Application()
    app.router.add_post("/shop/v1/reservations:batchApply", hostile.answer_batch)
    app.router.add_put("/shop/v1/reservations/{reservation_id}", hostile.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    hostile.url = f"http://127.0.0.1:{runner.addresses[0][1]}/shop"
    try:
        yield hostile
    finally:
        await runner.cleanup()
