"""A server that stops: new calls are refused with the reason, running calls finish or get the reason, none is lost."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_service_pb2
from google.rpc import error_details_pb2

from cart_grpc.rpc import server as server_module
from cart_grpc.rpc import services as rpc_services
from cart_grpc.rpc.deadlines import Deadlines
from cart_grpc.rpc.methods import CART_SERVICE
from cart_grpc.rpc.permissions import PERMISSIONS
from cart_grpc.rpc.server import Server
from tests.gate import Gate
from tests.rpc.refusal import Refusal, to_refusal
from tests.rpc.serving import ROWS, permissions_of
from tests.rpc.test_pipeline import CART
from tests.waiting import until

GRACE = 30.0


class Service:
    """A server whose GetCart and AddItem answer when the gate is open."""

    def __init__(self, server: Server, channel: grpc.aio.Channel, gate: Gate) -> None:
        self.server, self.channel, self.gate = server, channel, gate
        self.running = self.answered = 0

    def call(self, method: str = "GetCart", request: bytes = b"") -> Any:
        calling: Any = self.channel.unary_unary(f"/{CART_SERVICE}/{method}")
        return calling(request, timeout=20)

    async def answer(self, _request: Any, _context: Any) -> Any:
        self.running += 1
        try:
            await self.gate.sleep(1)
        finally:
            self.running -= 1
        self.answered += 1
        return b""


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with serving(monkeypatch) as service:
        yield service


@asynccontextmanager
async def serving(monkeypatch: pytest.MonkeyPatch, *, is_open: bool = True) -> AsyncIterator[Service]:
    def add(pipeline: Any) -> None:
        requests: Any = (cart_service_pb2.GetCartRequest, cart_service_pb2.AddItemRequest)

        async def answer(request: Any, context: Any) -> Any:
            return await serving_one.answer(request, context)

        handlers: Any = {
            row.name: grpc.unary_unary_rpc_method_handler(answer, request_deserializer=request.FromString)
            for row, request in zip(ROWS, requests, strict=True)
        }
        pipeline.add_registered_method_handlers(CART_SERVICE, handlers)

    monkeypatch.setattr(server_module, "METHODS", {CART_SERVICE: ROWS})
    monkeypatch.setattr(server_module, "PERMISSIONS", {**PERMISSIONS, **permissions_of(ROWS)})
    server = Server(rpc_services.Service((CART_SERVICE,), add), call_timeout=20)
    await server.start("127.0.0.1:0")
    if is_open:
        await server.open()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        serving_one = Service(server, channel, Gate())
        yield serving_one
    await server.stop(0)


async def refused(call: Any) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return to_refusal(caught.value)


async def test_a_server_that_is_not_open_yet_refuses_a_call_before_it_has_its_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(monkeypatch, is_open=False) as service:
        unsent: Any = service.channel.stream_unary(f"/{CART_SERVICE}/GetCart")
        for call in (service.call(), unsent(timeout=20)):
            refusal = await refused(call)
            assert (refusal.code, refusal.info.reason) == ("UNAVAILABLE", "DATABASE_UNAVAILABLE")
        await service.server.open()
        service.gate.open()
        assert await service.call() == b""
        assert service.answered == 1


async def test_a_server_that_never_opened_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, is_open=False) as service:
        await asyncio.wait_for(service.server.stop(GRACE), 10)


async def test_a_running_call_finishes_and_a_later_one_is_refused_with_the_reason(service: Service) -> None:
    running = service.call()
    await until(lambda: service.running == 1)
    stopping = asyncio.create_task(service.server.stop(GRACE))
    await asyncio.sleep(0)
    refusal = await refused(service.call())
    assert (refusal.code, refusal.info.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
    assert refusal.message == "this server is shutting down; nothing was changed"
    assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 1000
    assert not stopping.done()
    service.gate.open()
    assert await running == b""
    await asyncio.wait_for(stopping, 10)


@pytest.mark.parametrize("max_wait", [0, 50])
async def test_a_call_that_runs_at_the_end_of_the_grace_is_refused_with_the_reason(
    max_wait: int, service: Service
) -> None:
    request = cart_service_pb2.AddItemRequest(parent=CART)
    if max_wait:
        request.max_wait.seconds = max_wait
    running = [service.call("AddItem", request.SerializeToString()) for _ in range(3)]
    await until(lambda: service.running == 3)
    await asyncio.wait_for(service.server.stop(0.1), 10)
    for call in running:
        refusal = await refused(call)
        assert (refusal.code, refusal.info.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
        assert "the change may have been made" in refusal.message
    assert service.running == 0


async def test_callers_in_a_loop_get_an_answer_or_the_reason_for_each_call(service: Service) -> None:
    service.gate.open()
    ended: Counter[str] = Counter()

    async def call_again_and_again() -> None:
        while not ended["nobody listens"]:
            try:
                await service.call()
            except grpc.aio.AioRpcError as error:
                nobody_listens = error.code() == grpc.StatusCode.UNAVAILABLE and "connect" in str(error.details())
                ended["nobody listens" if nobody_listens else to_refusal(error).info.reason] += 1
            else:
                ended["OK"] += 1

    callers = [asyncio.create_task(call_again_and_again()) for _ in range(32)]
    await until(lambda: ended["OK"] > 100)
    await service.server.stop(GRACE)
    await asyncio.gather(*callers)
    # None is cancelled: to_refusal fails for a status without details.
    assert ended.keys() == {"OK", "SHUTTING_DOWN", "nobody listens"}
    # GOAWAY arrives before the refusals, so no caller gets two.
    assert ended["SHUTTING_DOWN"] <= 32


async def test_a_client_that_watches_health_leaves_before_the_stop_and_loses_no_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As operations.md advises.
    config = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": CART_SERVICE}}
    async with serving(monkeypatch) as one, serving(monkeypatch) as two:
        target = f"ipv4:127.0.0.1:{one.server.port},127.0.0.1:{two.server.port}"
        options = [("grpc.service_config", json.dumps(config)), ("grpc.enable_retries", 0)]
        async with grpc.aio.insecure_channel(target, options) as channel:
            calling: Any = channel.unary_unary(f"/{CART_SERVICE}/GetCart")

            async def calls_reach(*services: Service) -> None:
                """Call until only these services, and all of them, answered the last 20 calls."""
                async with asyncio.timeout(20):
                    while True:
                        before = [each.answered for each in (one, two)]
                        for _ in range(20):
                            await calling(b"", timeout=10)
                        after = [each.answered for each in (one, two)]
                        if [a > b for a, b in zip(after, before, strict=True)] == [s in services for s in (one, two)]:
                            return

            for each in (one, two):
                each.gate.open()
            await calls_reach(one, two)
            one.server.announce_stop()
            await calls_reach(two)
            await one.server.stop(GRACE)
            await calls_reach(two)


async def test_calls_are_served_until_the_stop_begins(service: Service) -> None:
    service.gate.open()
    service.server.announce_stop()
    assert await service.call() == b""


async def test_a_server_that_has_stopped_can_be_stopped_again(service: Service) -> None:
    await service.server.stop(0)
    await service.server.stop(0)


async def test_a_call_that_its_caller_cancels_at_the_end_of_the_grace_stays_cancelled() -> None:
    for seconds in (None, 60.0):
        deadlines = Deadlines(60)
        work = asyncio.Event().wait()
        call = asyncio.create_task(deadlines.run(deadlines.extend(work, seconds) if seconds else work))
        await asyncio.sleep(0)
        deadlines.end_all()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not {*deadlines._due, *deadlines._ended, *deadlines._extended}
