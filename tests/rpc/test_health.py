"""The health service: checks, lists and watches. A watcher that does not read delays nobody."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cart_grpc.rpc import server as server_module
from cart_grpc.rpc.methods import CART_SERVICE, HEALTH_ONLY
from cart_grpc.rpc.server import Server
from cart_grpc.rpc.services import no_service
from tests.attacks.wire import DATA as DATA_FRAME
from tests.attacks.wire import END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, call_of, frame, message, wired
from tests.rpc.refusal import to_refusal
from tests.rpc.test_pipeline import call_bytes
from tests.service.conftest import Replica
from tests.waiting import until

Status = health_pb2.HealthCheckResponse
TEST = "test.v1.Test"
HEALTH = "grpc.health.v1.Health"
# SETTINGS_INITIAL_WINDOW_SIZE 0: the server may send no message on any stream.
CLOSED_WINDOW = PREFACE + frame(SETTINGS, 0, 0, b"\0\4\0\0\0\0")


async def check_health(replica: Replica, service: str) -> Status:
    request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    return Status.FromString(await call_bytes(replica.channel, f"/{HEALTH}/Check", request))


@asynccontextmanager
async def started() -> AsyncIterator[tuple[Server, grpc.aio.Channel]]:
    """A server of nothing but health."""
    server = Server(no_service(TEST), 10, beside=HEALTH_ONLY)
    await server.start("127.0.0.1:0")
    await server.open()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield server, channel
    finally:
        await server.stop(0)


def watch(channel: Any, service: str = TEST) -> Any:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=20)


def watching(stream: int) -> list[bytes]:
    """The frames of a Watch."""
    request = health_pb2.HealthCheckRequest(service=TEST).SerializeToString()
    return [
        frame(HEADERS, END_HEADERS, stream, call_of(f"/{HEALTH}/Watch")),
        frame(DATA_FRAME, END_STREAM, stream, message(len(request)) + request),
    ]


@pytest.mark.parametrize("service", ["", CART_SERVICE])
async def test_health_is_serving(validator: Replica, service: str) -> None:
    assert (await check_health(validator, service)).status == Status.SERVING


async def test_health_of_an_unknown_service_is_not_found(validator: Replica) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check_health(validator, "cartgrpc.v1.Nonsense")
    refusal = to_refusal(caught.value)
    assert (refusal.code, refusal.info.reason) == ("NOT_FOUND", "SERVICE_NOT_FOUND")
    assert refusal.info.metadata["resource_name"] == "cartgrpc.v1.Nonsense"


async def test_list_has_every_service(validator: Replica) -> None:
    stub: Any = health_pb2_grpc.HealthStub(validator.channel)
    pb: Any = health_pb2
    answer = await stub.List(pb.HealthListRequest(), timeout=10)
    assert {service: status.status for service, status in answer.statuses.items()} == {
        "": Status.SERVING,
        CART_SERVICE: Status.SERVING,
    }


async def test_a_watch_sends_each_status_once_and_unknown_for_an_unknown_service() -> None:
    async with started() as (server, channel):
        call, unknown = watch(channel), watch(channel, "cartgrpc.v1.Nonsense")
        assert (await unknown.read()).status == Status.SERVICE_UNKNOWN
        assert (await call.read()).status == Status.SERVING
        for ready in (True, False, False, True):
            await server.set_ready(ready=ready)
        await server.set_ready(ready=False)
        assert (await call.read()).status == Status.NOT_SERVING
        await server.set_ready(ready=True)
        assert (await call.read()).status == Status.SERVING


async def test_a_watcher_that_does_not_read_delays_neither_readiness_nor_other_watchers() -> None:
    async with started() as (server, channel), AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(wired(f"127.0.0.1:{server.port}", CLOSED_WINDOW)) for _ in range(3)]
        for wire in wires:
            await wire.send(watching(1))
        await until(lambda: len(server._watches._tasks) == 3)
        call = watch(channel)
        assert (await call.read()).status == Status.SERVING
        for ready in (False, True) * 3:
            # Without a pause: the loop that reports readiness waits for no peer.
            await asyncio.wait_for(server.set_ready(ready=ready), 5)
            expected = Status.SERVING if ready else Status.NOT_SERVING
            assert (await asyncio.wait_for(call.read(), 5)).status == expected
        assert not any(DATA_FRAME in wire.seen for wire in wires)


async def test_a_watch_ends_with_the_server_after_it_has_sent_not_serving() -> None:
    async with started() as (server, channel):
        call = watch(channel)
        assert (await call.read()).status == Status.SERVING
        stopping = asyncio.create_task(server.stop(30))
        assert (await call.read()).status == Status.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert to_refusal(caught.value).info.reason == "SHUTTING_DOWN"
        # Nothing else runs, so the grace is not used up.
        await asyncio.wait_for(stopping, 10)


async def test_a_watcher_that_does_not_read_is_cut_off_at_the_end_of_the_grace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with started() as (server, _), wired(f"127.0.0.1:{server.port}", CLOSED_WINDOW) as wire:
        await wire.send(watching(1))
        await until(lambda: len(server._watches._tasks) == 1)
        await asyncio.wait_for(server.stop(0.2), 10)
        await wire.ended(10)
    assert not caplog.records


async def test_a_server_that_is_about_to_stop_stays_not_serving_and_answers() -> None:
    async with started() as (server, channel):
        server.announce_stop()
        await server.set_ready(ready=True)
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", TEST):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert answer.status == Status.NOT_SERVING


async def test_watches_are_bounded_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_HEALTH_WATCHES", 3)
    async with started() as (_, channel):
        calls = [watch(channel) for _ in range(3)]
        for call in calls:
            await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watch(channel).read()
        refusal = to_refusal(caught.value)
        assert (refusal.code, refusal.info.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS")
        assert dict(refusal.info.metadata) == {"holder": "server", "limit": "3"}
