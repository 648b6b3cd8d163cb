"""Any peer may be hostile: memory stays bounded, and honest callers are served during an attack.

The attackers have tokens, so that their calls get as far as those of a port without identities; and TLS ends before
HTTP/2 begins, so HTTP/2 is attacked here as on a plaintext port. An attack in the clear would prove no more.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2

from cart_grpc.carts.calls import Limits
from cart_grpc.rpc.server import OPTIONS
from cart_grpc.rpc.services import MAX_INCOMPLETE_BYTES, REQUEST_ROOM
from tests.attacks.target import CART, Target, running_target
from tests.attacks.wire import (
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW,
    Wire,
    call_of,
    frame,
    header,
    message,
    wired,
)
from tests.authentication.issuer import make_token
from tests.service.conftest import Replica
from tests.waiting import until

MIB = 1 << 20
SECONDS = 1.5
# The most that one server may grow over all of these tests, on a fast machine. Without the server's limits, some of
# them take gigabytes.
ROOM = 700 * MIB
# The longest request that the server accepts.
REQUEST_LIMIT = Limits().max_cart_bytes + REQUEST_ROOM
MAX_INCOMPLETE_REQUESTS = MAX_INCOMPLETE_BYTES // REQUEST_LIMIT
# Half-open calls have headers and no request. Without a bound, these take 164 MiB until their connections end; with it,
# 65 MiB, most of it kept by the allocator.
HALF_OPEN_CALLS = 8_000
CALLS_PER_CONNECTION = dict(OPTIONS)["grpc.max_concurrent_streams"]
HALF_OPEN_TIMEOUT = 5
HALF_OPEN_ROOM = 120 * MIB
PATH = "/cartgrpc.v1.CartService/GetCart"
CALL = call_of(PATH, make_token("mallory"))
Attack = Callable[[Wire], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    async with running_target(tmp_path_factory.mktemp("attacked")) as target:
        yield target


def streams() -> Iterator[int]:
    return itertools.count(1, 2)


async def reset_rapidly(wire: Wire) -> None:
    """CVE-2023-44487: reset each call at once, so that none counts as open."""
    numbers = streams()
    while True:
        await wire.send(
            frame(HEADERS, END_HEADERS, stream, CALL) + frame(RST_STREAM, 0, stream, CANCEL)
            for stream in itertools.islice(numbers, 100)
        )


async def reset_whole_calls(wire: Wire) -> None:
    """As above, with a complete request in each call."""
    numbers = streams()
    while True:
        await wire.send(
            frame(HEADERS, END_HEADERS, stream, CALL)
            + frame(DATA, END_STREAM, stream, message(0))
            + frame(RST_STREAM, 0, stream, CANCEL)
            for stream in itertools.islice(numbers, 100)
        )


async def open_and_never_finish(wire: Wire) -> None:
    """Open calls and never send a request."""
    numbers = streams()
    while True:
        await wire.send(frame(HEADERS, END_HEADERS, stream, CALL) for stream in itertools.islice(numbers, 100))


async def fill_every_window(wire: Wire, length: int = REQUEST_LIMIT) -> None:
    """Open calls and send a request with more bytes behind it, as much as the flow-control windows allow."""
    sent: Counter[int] = Counter()
    numbers = list(itertools.islice(streams(), 1_000))
    await wire.send(frame(HEADERS, END_HEADERS, stream, CALL) for stream in numbers)
    while not wire.has_ended:
        for stream in numbers:
            window = wire.settings.get(INITIAL_WINDOW_SIZE, WINDOW) + wire.granted[stream] - sent[stream]
            size = min(window, wire.connection_window, MAX_FRAME)
            if size > 5 and stream not in wire.refused:
                part = (message(length) if not sent[stream] else b"").ljust(size, b"x")
                await wire.send([frame(DATA, 0, stream, part)])
                wire.connection_window -= size
                sent[stream] += size
        await asyncio.sleep(0.001)


async def withhold_long_messages(wire: Wire) -> None:
    """As above, with requests as long as gRPC accepts by default, which never complete."""
    await fill_every_window(wire, 4_000_000)


async def never_end_the_headers(wire: Wire) -> None:
    """CVE-2024-27316: one call whose headers never end."""
    await wire.send([frame(HEADERS, 0, 1, CALL)])
    more = frame(CONTINUATION, 0, 1, header("x" * 20, "y" * 100) * 10)
    while True:
        await wire.send([more] * 100)


async def ping(wire: Wire) -> None:
    """Send PING frames; the server must answer each."""
    while not wire.has_ended:
        await wire.send([frame(PING, 0, 0, b"12345678")] * 100)


async def send_settings(wire: Wire) -> None:
    """Send SETTINGS frames; the server must acknowledge each."""
    while True:
        await wire.send([frame(SETTINGS, 0, 0, b"\0\4\0\1\0\0")] * 100)


@pytest.mark.parametrize(
    "attack",
    [
        reset_rapidly,
        reset_whole_calls,
        open_and_never_finish,
        fill_every_window,
        withhold_long_messages,
        never_end_the_headers,
        ping,
        send_settings,
    ],
    ids=lambda attack: attack.__name__,
)
async def test_an_attack_takes_bounded_memory_and_honest_callers_are_served(attack: Attack, target: Target) -> None:
    async with AsyncExitStack() as stack:
        honest = await stack.enter_async_context(target.honest())
        wires = [await stack.enter_async_context(wired(target.address, tls=target.tls())) for _ in range(2)]
        attacking = [asyncio.create_task(attack(wire)) for wire in wires]
        served, most = await serve_meanwhile(honest, target)
        for task in attacking:
            task.cancel()
        await asyncio.gather(*attacking, return_exceptions=True)
        assert not [task for task in attacking if not task.cancelled() and task.exception()]
    assert served >= 3
    assert most - target.before < ROOM
    # A connection that opens after the attack is served, too.
    async with target.honest() as after:
        await after.add(cart=CART)


async def serve_meanwhile(client: Replica, target: Target) -> tuple[int, int]:
    """Return how many calls of an honest client succeeded, all of them with OK, and the largest memory seen."""
    served, most, deadline = 0, 0, time.monotonic() + SECONDS
    while time.monotonic() < deadline or served < 3:
        await client.add(cart=CART)
        served, most = served + 1, max(most, target.memory)
        await asyncio.sleep(0.02)
    return served, max(most, target.memory)


async def test_half_open_calls_end_and_honest_callers_are_served(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("half-open")
    async with running_target(folder, call_timeout=str(HALF_OPEN_TIMEOUT)) as target, AsyncExitStack() as stack:
        honest = await stack.enter_async_context(target.honest())
        wires = [
            await stack.enter_async_context(wired(target.address, tls=target.tls()))
            for _ in range(HALF_OPEN_CALLS // CALLS_PER_CONNECTION)
        ]
        await serve_meanwhile(honest, target)
        before = target.memory
        for wire in wires:
            await wire.send(
                frame(HEADERS, END_HEADERS, stream, CALL)
                for stream in itertools.islice(streams(), CALLS_PER_CONNECTION)
            )
            # It is answered after the server has accepted the calls before it, so no queue inside gRPC overflows.
            await honest.add(cart=CART)
        await until(lambda: HALF_OPEN_CALLS - ended(wires) <= MAX_INCOMPLETE_REQUESTS, 20)
        _, most = await serve_meanwhile(honest, target)
        assert most - before < HALF_OPEN_ROOM
        await until(lambda: ended(wires) == HALF_OPEN_CALLS, HALF_OPEN_TIMEOUT + 20)
        _, most = await serve_meanwhile(honest, target)
        assert most - before < HALF_OPEN_ROOM
        assert not any(wire.has_ended for wire in wires)


def ended(wires: list[Wire]) -> int:
    """How many calls the server has ended."""
    return sum(len(wire.ended_streams) for wire in wires)


async def test_connections_that_are_silent_after_tls_are_closed(target: Target) -> None:
    async with AsyncExitStack() as stack:
        wires = [
            await stack.enter_async_context(wired(target.address, b"", is_polite=False, tls=target.tls()))
            for _ in range(300)
        ]
        async with target.honest() as honest:
            await honest.add(cart=CART)
        assert {await wire.ended(10) for wire in wires} == {"Did not receive HTTP/2 settings before handshake timeout"}
        assert min(wire.ended_after for wire in wires) > 4
    assert target.memory - target.before < ROOM


async def test_none_of_a_burst_of_calls_of_a_service_is_cancelled(target: Target) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(target.web()) for _ in range(30)]
        for client in clients:
            await client.add(cart="users/dave/carts/default")

        async def call(number: int) -> grpc.StatusCode:
            request = cart_service_pb2.AddItemRequest(
                parent=f"users/u{number % 500}/carts/burst", item=cart_pb2.Item(sku="beans")
            )
            try:
                await clients[number % len(clients)].stub.AddItem(request, timeout=50)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        ended = Counter(await asyncio.gather(*(call(number) for number in range(4_000))))
    # Calls beyond the limits are rejected with the status for that, never cancelled.
    assert ended.keys() <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}, ended
    assert ended[grpc.StatusCode.OK] > 500
    assert target.memory - target.before < ROOM
