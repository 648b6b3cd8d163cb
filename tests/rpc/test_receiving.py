"""Requests that never arrive: they end at the time-out, their number is bounded, and they keep no other call out."""

import asyncio
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_service_pb2
from google.rpc import error_details_pb2

from cart_grpc.rpc.methods import CART_SERVICE
from cart_grpc.rpc.receiving import Receiver
from tests.rpc.refusal import Refusal, call, to_refusal
from tests.rpc.serving import admitting, serving
from tests.rpc.test_pipeline import GET
from tests.service.conftest import Replica
from tests.waiting import until


async def reply(_request: Any, _context: Any) -> Any:
    return cart_service_pb2.GetCartResponse()


def half_open(server: Replica) -> Any:
    """A GetCart whose request never arrives."""
    method: Any = server.channel.stream_unary(f"/{CART_SERVICE}/GetCart")
    return method(timeout=20)


async def refusal_of(pending: Any) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await pending
    return to_refusal(caught.value)


async def test_a_call_whose_request_never_arrives_ends_at_the_timeout() -> None:
    receiver = Receiver(10)
    async with serving(reply, timeout=0.2, receiver=receiver) as server:
        refusal = await refusal_of(half_open(server))
    assert (refusal.code, refusal.info.reason) == ("DEADLINE_EXCEEDED", "CALL_TIMEOUT")
    assert not receiver._incomplete


async def test_one_incomplete_request_too_many_rejects_the_oldest_and_no_other() -> None:
    receiver = Receiver(3)
    async with serving(reply, receiver=receiver) as server:
        calls = []
        for count in (1, 2, 3):
            calls.append(half_open(server))
            await until(lambda count=count: len(receiver._incomplete) == count)  # type: ignore[misc]
        await call(server, "GetCart", GET)
        refusal = await refusal_of(calls[0])
        assert not any(one.done() for one in calls[1:])
        assert len(receiver._incomplete) == 2
    assert (refusal.code, refusal.info.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert refusal.message.startswith("too many requests are incomplete")
    assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 500


async def test_a_stream_of_half_open_calls_keeps_no_honest_call_out() -> None:
    async with serving(reply, receiver=Receiver(5), admission=admitting()) as server:
        for _ in range(20):
            open_calls = [half_open(server) for _ in range(10)]
            await call(server, "GetCart", GET)
            for one in open_calls:
                one.cancel()


async def test_a_rejected_call_that_its_caller_cancels_gets_no_status() -> None:
    class Context:
        async def read(self) -> None:
            await asyncio.Event().wait()

    context: Any = Context()
    receiver = Receiver(1)
    oldest = asyncio.create_task(receiver.receive(context))
    await asyncio.sleep(0)
    newest = asyncio.create_task(receiver.receive(context))
    await asyncio.sleep(0)
    oldest.cancel()
    newest.cancel()
    ended = await asyncio.gather(oldest, newest, return_exceptions=True)
    assert [type(one) for one in ended] == [asyncio.CancelledError] * 2
    assert not receiver._incomplete


async def test_a_call_that_closes_without_a_request_is_malformed() -> None:
    async with serving(reply) as server:
        pending = half_open(server)
        await pending.done_writing()
        refusal = await refusal_of(pending)
    assert (refusal.code, list(refusal.violations.values())) == ("INVALID_ARGUMENT", ["MALFORMED_REQUEST"])


async def test_calls_that_are_reset_at_once_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    receiver = Receiver(10)
    async with serving(reply, receiver=receiver) as server:
        for _ in range(200):
            pending = half_open(server)
            await pending.wait_for_connection()
            pending.cancel()
        await call(server, "GetCart", GET)
        await until(lambda: not receiver._incomplete)
    assert not caplog.records
