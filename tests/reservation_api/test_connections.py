"""The connection pool, against real gRPC servers."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from cart_grpc.reservation_api.connections import CALLS_PER_CONNECTION, Connections
from tests.ports import free_port

METHOD = "/test.Service/Call"
Behaviour = Callable[[bytes, grpc.aio.ServicerContext[Any, Any]], Awaitable[bytes]]


async def serve(behaviour: Behaviour, port: int = 0) -> tuple[grpc.aio.Server, int]:
    """Start a server that allows 100 streams per connection. Returns it and its port."""
    server = grpc.aio.server(options=[("grpc.max_concurrent_streams", 100), ("grpc.so_reuseport", 0)])
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(behaviour)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {"Call": method}),))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server, bound


def connections(port: int) -> Connections:
    options = [
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_reconnect_backoff_ms", 60_000),
    ]
    return Connections(lambda _: grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options), METHOD)


async def outcomes(calling: Connections, count: int) -> list[object]:
    """Make `count` calls at once. Returns the answer or the status code of each."""
    ended = await asyncio.gather(*(calling.call(b"", 10) for _ in range(count)), return_exceptions=True)
    return [each.code() if isinstance(each, grpc.aio.AioRpcError) else each for each in ended]


async def test_hanging_calls_do_not_delay_other_calls() -> None:
    count, arrived, all_there = 450, 0, asyncio.Event()

    async def hang(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        nonlocal arrived
        arrived += 1
        if arrived == count:
            all_there.set()
        await all_there.wait()
        return b"there"

    server, port = await serve(hang)
    calling = connections(port)
    assert await outcomes(calling, count) == [b"there"] * count
    await calling.close()
    await server.stop(0)


async def test_a_new_call_right_after_an_answer_is_not_refused() -> None:
    async def answer(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        await asyncio.sleep(0.05)
        return b""

    server, port = await serve(answer)
    calling = connections(port)
    for _ in range(5):
        assert await outcomes(calling, 300) == [b""] * 300
    await calling.close()
    await server.stop(0)


async def test_fifty_calls_share_one_connection_and_the_next_opens_another() -> None:
    async def tell(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        return context.peer().encode()

    server, port = await serve(tell)
    calling = connections(port)
    for count in (1, CALLS_PER_CONNECTION, 3):
        assert len(set(await outcomes(calling, count))) == 1
    assert len(set(await outcomes(calling, CALLS_PER_CONNECTION + 1))) == 2
    await calling.close()
    await server.stop(0)


async def test_new_credentials_replace_every_connection_and_disturb_no_call_in_flight() -> None:
    arrived, released = asyncio.Event(), asyncio.Event()

    async def tell(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        if request:
            arrived.set()
            await released.wait()
        return context.peer().encode()

    server, port = await serve(tell)
    newest, given = grpc.ssl_channel_credentials(), []

    def open_channel(credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
        given.append(credentials)
        return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])

    first = newest
    calling = Connections(open_channel, METHOD, credentials=lambda: newest)
    hanging = asyncio.ensure_future(calling.call(b"hang", 10))
    await arrived.wait()
    # A second connection, which has no call when the credentials change.
    before = set(await outcomes(calling, CALLS_PER_CONNECTION))
    newest = grpc.ssl_channel_credentials()
    after = set(await outcomes(calling, 3))
    assert (len(before), len(after), before & after) == (2, 1, set())
    released.set()
    assert await hanging in before
    assert len(calling._all) == 1
    assert set(await outcomes(calling, CALLS_PER_CONNECTION)) == after
    assert given == [first, first, newest]
    await calling.close()
    await server.stop(0)


async def test_every_call_reaches_a_server_that_has_come_back() -> None:
    async def answer(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        return b"here"

    server, port = await serve(answer, free_port())
    calling = connections(port)
    assert await outcomes(calling, 200) == [b"here"] * 200
    await server.stop(0)
    for _ in range(2):
        assert await outcomes(calling, 200) == [grpc.StatusCode.UNAVAILABLE] * 200
    server, _ = await serve(answer, port)
    assert await outcomes(calling, 200) == [b"here"] * 200
    await calling.close()
    await server.stop(0)
