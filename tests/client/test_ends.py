"""The end of a call or a client: nothing of it goes on, in either client."""

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from cart_grpc.client import CartClient, CartError, DeadlineExceeded, SyncCartClient
from tests.client.scripted import Scripted, scripted_server, state
from tests.deadlines import growing


async def no_other_tasks(before: set[asyncio.Task[Any]]) -> None:
    """Return once all other tasks have ended: those of gRPC end a moment after their call."""
    async with asyncio.timeout(30):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.01)


async def test_a_cancelled_call_ends_at_the_server_and_leaves_no_task(scripted: Scripted) -> None:
    before = asyncio.all_tasks()
    async with CartClient(scripted.address) as client:
        call = asyncio.create_task(client.cart("alice").add("beans"))
        await asyncio.to_thread(scripted.called.wait)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(scripted.ended.wait, 30)
    await no_other_tasks(before)
    assert len(scripted.attempts) == 1


async def test_a_time_limit_of_the_caller_ends_a_call_and_a_watch(scripted: Scripted) -> None:
    async with CartClient(scripted.address) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.cart("alice").add("beans")
        scripted.watches = [[state(1), None]]
        watch = client.cart("alice").watch()
        await anext(watch)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await anext(watch)


async def test_a_closed_client_ends_its_calls_and_watches(scripted: Scripted) -> None:
    before = asyncio.all_tasks()
    client = CartClient(scripted.address)
    scripted.watches = [[state(1), None]]
    watch = client.cart("alice").watch()
    await anext(watch)
    running = asyncio.gather(client.cart("alice").add("beans"), anext(watch), return_exceptions=True)
    while len(scripted.attempts) < 2:
        await asyncio.sleep(0.01)
    await client.close()
    for error in await running:
        assert isinstance(error, CartError)
        assert error.reason == "CLIENT_CLOSED"
    with pytest.raises(CartError, match="CLIENT_CLOSED"):
        await client.cart("alice").get()
    await client.close()
    await no_other_tasks(before)


async def test_a_token_that_takes_too_long_is_not_waited_for(scripted: Scripted) -> None:
    async def token() -> str:
        await asyncio.sleep(20)
        return ""

    async with CartClient(scripted.address, timeout=0.2, token=token) as client:
        with pytest.raises(DeadlineExceeded, match="token"):
            await client.cart("alice").add("beans")
    assert not scripted.attempts


async def test_a_token_may_come_from_a_plain_function() -> None:
    deadlines = growing(0.3)
    while True:
        seconds = next(deadlines)
        with scripted_server() as scripted:
            async with CartClient(scripted.address, timeout=seconds, token=lambda: "one") as client:
                with pytest.raises(DeadlineExceeded):
                    await client.cart("alice").add("beans")
        if scripted.attempts:
            break
    assert [attempt.authorization for attempt in scripted.attempts] == ["Bearer one"]


def test_a_closed_synchronous_client_ends_its_calls_and_watches(scripted: Scripted) -> None:
    scripted.watches = [[state(1), None]]
    with ThreadPoolExecutor(2) as pool:
        client = SyncCartClient(scripted.address)
        watch = client.cart("alice").watch()
        next(watch)
        running: list[Future[object]] = [pool.submit(client.cart("alice").add, "beans"), pool.submit(next, watch)]
        while len(scripted.attempts) < 2:
            scripted.called.wait(0.01)
        client.close()
        for one in running:
            error = one.exception(10)
            assert isinstance(error, CartError)
            assert error.reason == "CLIENT_CLOSED"
    with pytest.raises(CartError, match="CLIENT_CLOSED"):
        client.cart("alice").get()
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_threads_share_a_synchronous_client() -> None:
    deadlines = growing(0.3)
    while True:
        seconds = next(deadlines)
        with (
            scripted_server() as scripted,
            SyncCartClient(scripted.address, timeout=seconds) as client,
            ThreadPoolExecutor(4) as pool,
        ):
            errors = [one.exception() for one in [pool.submit(client.cart("a").add, "beans") for _ in range(4)]]
        assert all(isinstance(error, DeadlineExceeded) for error in errors)
        # A call that has ended has no peer.
        if all(scripted.peers) and len(scripted.peers) == 4:
            break
    assert len(set(scripted.peers)) == 1
