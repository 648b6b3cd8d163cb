"""Streams behind the pipeline, on a real server: a method that only these tests register, health and reflection."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from cart_grpc.carts.refusals import CartNotFound, ShuttingDown
from cart_grpc.rpc import server as server_module
from cart_grpc.rpc.admission import OpenStreams
from cart_grpc.rpc.layers import write_each
from cart_grpc.rpc.methods import CART_SERVICE, Method
from cart_grpc.rpc.permissions import PERMISSIONS
from cart_grpc.rpc.receiving import Receiver
from cart_grpc.rpc.server import Server
from cart_grpc.rpc.services import Service
from cart_grpc.rpc.unread import Unread
from tests.deadlines import growing
from tests.rpc.refusal import to_refusal
from tests.rpc.serving import permissions_of, pipeline_of, started, streams_with
from tests.rpc.test_pipeline import BUGS, CART, GARBAGE, GET
from tests.service.conftest import Replica
from tests.waiting import until

WATCH = f"/{CART_SERVICE}/WatchCart"
CHAT = f"/{CART_SERVICE}/Chat"
ROWS = (Method("WatchCart", ("name",), streams=True), Method("Chat", streams=True, takes_stream=True))
REPLY = cart_service_pb2.GetCartResponse(cart=cart_pb2.Cart(name=CART))
HEALTH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


class Stream:
    """A servicer: replies `count` times, then raises `error`, or hangs if there is none. It records how it ended."""

    def __init__(self, count: int = 0, error: BaseException | None = None) -> None:
        self.count, self.error = count, error
        self.requests: list[Any] = []
        self.open = self.hanging = 0
        self.ends: list[type[BaseException] | None] = []

    async def watch(self, request: Any, _context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        self.open += 1
        try:
            for _ in range(self.count):
                yield REPLY
            await self._end()
        except BaseException as error:
            self.ends.append(type(error))
            raise
        finally:
            self.open -= 1

    async def _end(self) -> None:
        if self.error:
            raise self.error
        self.hanging += 1
        await asyncio.Event().wait()

    async def write(self, request: Any, context: Any) -> None:
        """The same as `watch`, by writing to the context."""
        async for reply in self.watch(request, context):
            await context.write(reply)

    async def chat(self, requests: Any, _context: Any) -> AsyncIterator[Any]:
        """Replies to each request."""
        self.open += 1
        try:
            async for request in requests:
                self.requests.append(request)
                yield REPLY
            if self.error:
                raise self.error
        finally:
            self.open -= 1


@asynccontextmanager
async def streaming(servicer: Stream, *, writes: bool = False, **parts: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A server with `servicer` behind the pipeline."""
    server = grpc.aio.server()
    decode = cart_service_pb2.GetCartRequest.FromString
    encode = cart_service_pb2.GetCartResponse.SerializeToString
    watch: Any = servicer.write if writes else servicer.watch
    methods: Any = {
        "WatchCart": grpc.unary_stream_rpc_method_handler(watch, decode, encode),
        "Chat": grpc.stream_stream_rpc_method_handler(servicer.chat, decode, encode),
    }
    pipeline_of(server, ROWS, **parts).add_registered_method_handlers(CART_SERVICE, methods)
    async with started(server) as (channel, _):
        yield channel


def watch(channel: grpc.aio.Channel, data: bytes = GET.SerializeToString(), path: str = WATCH) -> Any:
    """An open call with one request, in bytes."""
    method: Any = channel.unary_stream(path)
    return method(data, timeout=20)


def half_open(channel: grpc.aio.Channel, path: str = WATCH) -> Any:
    """A call whose request never arrives."""
    method: Any = channel.stream_stream(path)
    return method(timeout=20)


async def refused(call: Any) -> grpc.aio.AioRpcError:
    """The error that ends a stream."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the stream ended with OK")


@pytest.mark.parametrize("writes", [False, True], ids=["a generator", "a writer"])
async def test_a_stream_sends_its_replies_and_then_its_refusal_with_details(writes: bool) -> None:
    servicer = Stream(3, CartNotFound(CART))
    async with streaming(servicer, writes=writes) as channel:
        call = watch(channel)
        assert [await call.read() for _ in range(3)] == [REPLY.SerializeToString()] * 3
        refusal = to_refusal(await refused(call))
    assert servicer.requests == [GET]
    assert (refusal.code, refusal.info.reason) == ("NOT_FOUND", "CART_NOT_FOUND")
    assert refusal.detail(error_details_pb2.ResourceInfo).resource_name == CART


async def test_a_stream_that_ends_by_itself_ends_with_ok() -> None:
    async with streaming(Stream()) as channel:
        method: Any = channel.stream_stream(CHAT)
        call = method(iter([GET.SerializeToString()] * 2), timeout=20)
        assert [reply async for reply in call] == [REPLY.SerializeToString()] * 2
        assert await call.code() == grpc.StatusCode.OK


@pytest.mark.parametrize("kind", list(GARBAGE))
async def test_a_stream_refuses_a_malformed_request(kind: str) -> None:
    servicer = Stream(1)
    async with streaming(servicer) as channel:
        refusal = to_refusal(await refused(watch(channel, GARBAGE[kind])))
    assert list(refusal.violations.values()) == ["MALFORMED_REQUEST"]
    assert servicer.requests == []


async def test_a_stream_of_requests_is_refused_at_the_first_malformed_one() -> None:
    servicer = Stream()
    async with streaming(servicer) as channel:
        method: Any = channel.stream_stream(CHAT)
        refusal = to_refusal(await refused(method(iter([GET.SerializeToString(), b"\xff"]), timeout=20)))
    assert list(refusal.violations.values()) == ["MALFORMED_REQUEST"]
    assert servicer.requests == [GET]
    assert servicer.open == 0


async def test_a_later_request_that_is_incomplete_counts_like_the_first_one() -> None:
    servicer, receiver = Stream(), Receiver(1)
    async with streaming(servicer, receiver=receiver) as channel:
        method: Any = channel.stream_stream(CHAT)
        first = method(timeout=20)
        await first.write(GET.SerializeToString())
        assert await first.read() == REPLY.SerializeToString()
        second = half_open(channel, CHAT)
        refusal = to_refusal(await refused(first))
        assert (refusal.code, refusal.info.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert not second.done()


@pytest.mark.parametrize("path", [HEALTH, REFLECTION])
async def test_health_and_reflection_refuse_malformed_requests(validator: Replica, path: str) -> None:
    method: Any = validator.channel.stream_stream(path)
    refusal = to_refusal(await refused(method(iter([b"\xff"]), timeout=20)))
    assert (refusal.code, refusal.info.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert list(refusal.violations.values()) == ["MALFORMED_REQUEST"]


async def test_health_watch_sends_the_state(validator: Replica) -> None:
    call = watch(validator.channel, health_pb2.HealthCheckRequest(service=CART_SERVICE).SerializeToString(), HEALTH)
    reply = health_pb2.HealthCheckResponse.FromString(await call.read())
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
    call.cancel()


async def test_reflection_answers_one_request_after_the_other(validator: Replica) -> None:
    method: Any = validator.channel.stream_stream(REFLECTION)
    call = method(timeout=20)
    for symbol in (CART_SERVICE, "grpc.health.v1.Health"):
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
        await call.write(request.SerializeToString())
        reply = reflection_pb2.ServerReflectionResponse.FromString(await call.read())
        assert reply.file_descriptor_response.file_descriptor_proto
    await call.done_writing()
    assert await call.code() == grpc.StatusCode.OK


@pytest.mark.parametrize("path", [WATCH, CHAT])
@pytest.mark.parametrize("kind", list(BUGS))
async def test_a_bug_in_a_stream_reaches_the_caller_as_an_id(
    kind: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with streaming(Stream(1, BUGS[kind])) as channel:
        error = await refused(watch(channel, path=path))
    refusal = to_refusal(error)
    error_id = refusal.info.metadata["error_id"]
    assert (refusal.code, refusal.message) == ("INTERNAL", f"internal error {error_id}")
    assert "hunter2" not in f"{error!r} {error.trailing_metadata()} {error.initial_metadata()}"
    logged = [record for record in caplog.records if error_id in record.getMessage()]
    assert [record.levelno for record in logged] == [logging.ERROR]
    assert path in logged[0].getMessage()
    assert "hunter2" in caplog.text


@pytest.mark.parametrize("writes", [False, True], ids=["a generator", "a writer"])
async def test_a_reply_that_cannot_be_encoded_reaches_the_caller_as_an_id(
    writes: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tests.rpc.test_streams.REPLY", 7)
    async with streaming(Stream(1), writes=writes) as channel:
        refusal = to_refusal(await refused(watch(channel)))
    assert refusal.code == "INTERNAL"
    assert refusal.info.metadata["error_id"] in caplog.text


@pytest.mark.parametrize("writes", [False, True], ids=["a generator", "a writer"])
async def test_a_cancelled_stream_ends_its_servicer_and_frees_its_slot(
    writes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    servicer, streams = Stream(1), streams_with(max_per_user=1)
    async with streaming(servicer, writes=writes, streams=streams) as channel:
        for opened in (1, 2):
            call = watch(channel)
            assert await call.read() == REPLY.SerializeToString()
            # The caller may have the reply before the write is over. A cancellation would then end the write.
            await until(lambda opened=opened: servicer.hanging == opened)  # type: ignore[misc]
            call.cancel()
            await until(lambda opened=opened: len(servicer.ends) == opened and is_empty(streams))  # type: ignore[misc]
    assert servicer.ends == [asyncio.CancelledError] * 2
    assert not caplog.records


async def test_a_generator_is_closed_before_its_call_ends() -> None:
    class Context:
        async def write(self, _reply: Any) -> None:
            raise ConnectionError

        def peer(self) -> str:
            return "here"

    servicer, context = Stream(1), Context()
    endpoint: Any = SimpleNamespace(unread=Unread())
    with pytest.raises(ConnectionError):
        await write_each(endpoint, servicer.watch)(GET, context)  # type: ignore[arg-type]
    assert servicer.ends == [GeneratorExit]


async def test_a_refusal_after_the_caller_has_gone_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    refused_late = asyncio.Event()

    async def watch_on(_request: Any, context: Any) -> None:
        # The caller may have the reply, and leave, before the write is over.
        try:
            await context.write(REPLY)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            refused_late.set()
            raise CartNotFound(CART) from None

    servicer: Any = Stream()
    servicer.watch = watch_on
    async with streaming(servicer) as channel:
        call = watch(channel)
        await call.read()
        call.cancel()
        async with asyncio.timeout(10):
            await refused_late.wait()
        assert (await watch(channel).read()) == REPLY.SerializeToString()
    assert not caplog.records


def is_empty(streams: OpenStreams) -> bool:
    return not (streams._tasks or streams._users or streams._connections)


async def test_a_caller_that_vanishes_ends_its_servicer_and_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    servicer, streams = Stream(100_000), streams_with()
    server = grpc.aio.server()
    decode = cart_service_pb2.GetCartRequest.FromString
    methods: Any = {"WatchCart": grpc.unary_stream_rpc_method_handler(servicer.watch, decode)}
    pipeline_of(server, ROWS[:1], streams=streams).add_registered_method_handlers(CART_SERVICE, methods)
    async with started(server) as (_, port):
        for _ in range(20):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = watch(channel)
                await call.read()
        await until(lambda: servicer.open == 0 and is_empty(streams))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_stream_beyond_the_users_limit_is_rejected_while_other_users_open_theirs() -> None:
    servicer = Stream(1)
    async with streaming(servicer, streams=streams_with(max_per_user=2)) as channel:
        mine = [watch(channel) for _ in range(2)]
        for call in mine:
            await call.read()
        refusal = to_refusal(await refused(watch(channel)))
        assert (refusal.code, refusal.info.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS")
        assert dict(refusal.info.metadata) == {"holder": "user", "limit": "2"}
        assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 500
        other = cart_service_pb2.GetCartRequest(name="users/bob/carts/default").SerializeToString()
        assert await watch(channel, other).read() == REPLY.SerializeToString()


@pytest.mark.parametrize("path", [WATCH, CHAT])
async def test_a_stream_beyond_the_connections_limit_is_rejected_while_other_connections_open_theirs(path: str) -> None:
    servicer = Stream(1)
    server = grpc.aio.server()
    decode = cart_service_pb2.GetCartRequest.FromString
    methods: Any = {
        "WatchCart": grpc.unary_stream_rpc_method_handler(servicer.watch, decode),
        "Chat": grpc.stream_stream_rpc_method_handler(servicer.chat, decode),
    }
    pipeline = pipeline_of(server, ROWS, streams=streams_with(max_per_connection=2))
    pipeline.add_registered_method_handlers(CART_SERVICE, methods)
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    async with started(server) as (channel, port):
        mine = [watch(channel) for _ in range(2)]
        for call in mine:
            await call.read()
        refusal = to_refusal(await refused(watch(channel, path=path)))
        assert dict(refusal.info.metadata) == {"holder": "connection", "limit": "2"}
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=own_connection) as other:
            assert await watch(other, path=path).read() == REPLY.SerializeToString()


async def test_draining_ends_every_stream_and_refuses_new_ones() -> None:
    servicer, streams = Stream(1), streams_with()
    async with streaming(servicer, streams=streams) as channel:
        method: Any = channel.stream_stream(CHAT)
        calls = [watch(channel), watch(channel), method(timeout=20)]
        await calls[2].write(GET.SerializeToString())
        for call in calls:
            assert await call.read() == REPLY.SerializeToString()
        streams.drain()
        refusals = [to_refusal(await refused(call)) for call in (*calls, watch(channel))]
        assert servicer.open == 0
    for refusal in refusals:
        assert (refusal.code, refusal.info.reason) == ("UNAVAILABLE", ShuttingDown.reason)
        assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 1000


async def test_a_stopping_server_ends_its_streams_after_its_health_watchers_see_not_serving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "METHODS", {CART_SERVICE: ROWS[:1]})
    monkeypatch.setattr(server_module, "PERMISSIONS", {**PERMISSIONS, **permissions_of(ROWS[:1])})
    servicer, decode = Stream(1), cart_service_pb2.GetCartRequest.FromString
    methods: Any = {"WatchCart": grpc.unary_stream_rpc_method_handler(servicer.watch, decode)}
    added = Service((CART_SERVICE,), lambda pipeline: pipeline.add_registered_method_handlers(CART_SERVICE, methods))
    server = Server(added, 10)
    await server.start("127.0.0.1:0")
    await server.open()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = watch(channel)
        assert await call.read() == REPLY.SerializeToString()
        health = watch(channel, health_pb2.HealthCheckRequest(service=CART_SERVICE).SerializeToString(), HEALTH)
        await health.read()
        stopping = asyncio.create_task(server.stop(30))
        assert to_refusal(await refused(call)).info.reason == "SHUTTING_DOWN"
        state = health_pb2.HealthCheckResponse.FromString(await health.read())
        assert state.status == health_pb2.HealthCheckResponse.NOT_SERVING
        health.cancel()
        await asyncio.wait_for(stopping, 10)


async def test_a_stream_that_its_caller_cancels_while_it_drains_gets_no_status() -> None:
    streams = streams_with()

    async def stream() -> None:
        with streams.slot("alice", "here"):
            await asyncio.Event().wait()

    task = asyncio.create_task(stream())
    await asyncio.sleep(0)
    streams.drain()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_empty(streams)


@pytest.mark.parametrize("path", [WATCH, CHAT])
async def test_a_stream_whose_request_never_arrives_ends_at_the_timeout(path: str) -> None:
    servicer, streams = Stream(1), streams_with()
    async with streaming(servicer, timeout=0.2, streams=streams) as channel:
        refusal = to_refusal(await refused(half_open(channel, path)))
        assert (refusal.code, refusal.info.reason) == ("DEADLINE_EXCEEDED", "CALL_TIMEOUT")
        await until(lambda: is_empty(streams))
    assert servicer.requests == []


@pytest.mark.parametrize("path", [WATCH, CHAT])
async def test_a_stream_may_last_longer_than_the_timeout(path: str) -> None:
    deadlines = growing(0.2)
    while True:
        seconds = next(deadlines)
        async with streaming(Stream(1), timeout=seconds) as channel:
            method: Any = channel.stream_stream(path)
            call = method(timeout=5 * seconds)
            try:
                await call.write(GET.SerializeToString())
                assert await call.read() == REPLY.SerializeToString()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                # The request was too late.
                continue
            # The end is the caller's own deadline, which has no details.
            error = await refused(call)
            break
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert not [key for key, _ in error.trailing_metadata() or () if key == "grpc-status-details-bin"]


async def test_a_stream_without_any_request_is_malformed() -> None:
    async with streaming(Stream()) as channel:
        call = half_open(channel)
        await call.done_writing()
        refusal = to_refusal(await refused(call))
    assert list(refusal.violations.values()) == ["MALFORMED_REQUEST"]
