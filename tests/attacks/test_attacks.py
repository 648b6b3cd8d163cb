"""Whoever reaches the port may be hostile: memory stays bounded, and whoever is honest is served meanwhile."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import psutil
import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2

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
from tests.processes.harness import LISTENS, Program, connected, running_programs
from tests.service.conftest import Replica

MIB = 1 << 20
SECONDS = 1.5
# Over all that these tests do to one server, on a machine that lets them do much. Without its limits some of them take
# gigabytes.
ROOM = 700 * MIB
CALL = call_of("/cartgrpc.v1.CartService/GetCart")
Attack = Callable[[Wire], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Program, str, int]]:
    """A server of its own process, where it listens, and its memory before anything happened."""
    with running_programs(tmp_path_factory.mktemp("attacked")) as programs:
        program = programs.start("serve", listen="127.0.0.1:0", reservation_url="grpc://127.0.0.1:1")
        address = (await program.says(LISTENS))[1]
        async with connected(address) as client:
            await client.add()
        yield program, address, memory(program)


def memory(program: Program) -> int:
    resident: int = psutil.Process(program.pid).memory_info().rss
    return resident


def streams() -> Iterator[int]:
    return itertools.count(1, 2)


async def reset_rapidly(wire: Wire) -> None:
    """CVE-2023-44487: each call is withdrawn as soon as it is made, so that none counts as open."""
    numbers = streams()
    while True:
        await wire.send(
            frame(HEADERS, END_HEADERS, stream, CALL) + frame(RST_STREAM, 0, stream, CANCEL)
            for stream in itertools.islice(numbers, 100)
        )


async def reset_whole_calls(wire: Wire) -> None:
    """As above, each with a request."""
    numbers = streams()
    while True:
        await wire.send(
            frame(HEADERS, END_HEADERS, stream, CALL)
            + frame(DATA, END_STREAM, stream, message(0))
            + frame(RST_STREAM, 0, stream, CANCEL)
            for stream in itertools.islice(numbers, 100)
        )


async def open_and_never_finish(wire: Wire) -> None:
    """Calls without a request."""
    numbers = streams()
    while True:
        await wire.send(frame(HEADERS, END_HEADERS, stream, CALL) for stream in itertools.islice(numbers, 100))


async def fill_every_window(wire: Wire, length: int = 60_000) -> None:
    """Calls with a request and more behind it, as much as the server says that it has windows for."""
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
    """As above, with a request as long as gRPC takes by default, and so long in coming."""
    await fill_every_window(wire, 4_000_000)


async def never_end_the_headers(wire: Wire) -> None:
    """CVE-2024-27316: one call whose headers go on for ever."""
    await wire.send([frame(HEADERS, 0, 1, CALL)])
    more = frame(CONTINUATION, 0, 1, header("x" * 20, "y" * 100) * 10)
    while True:
        await wire.send([more] * 100)


async def ping(wire: Wire) -> None:
    """Each asks for an answer."""
    while not wire.has_ended:
        await wire.send([frame(PING, 0, 0, b"12345678")] * 100)


async def send_settings(wire: Wire) -> None:
    """Each is to be acknowledged."""
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
async def test_an_attack_takes_bounded_memory_and_nobody_elses_turn(
    attack: Attack, server: tuple[Program, str, int]
) -> None:
    program, address, before = server
    async with AsyncExitStack() as stack:
        honest = await stack.enter_async_context(connected(address))
        wires = [await stack.enter_async_context(wired(address)) for _ in range(2)]
        attacking = [asyncio.create_task(attack(wire)) for wire in wires]
        served, most = await serve_meanwhile(honest, program)
        for task in attacking:
            task.cancel()
        await asyncio.gather(*attacking, return_exceptions=True)
        assert not [task for task in attacking if not task.cancelled() and task.exception()]
    assert served >= 3
    assert most - before < ROOM
    # And afterwards, by a connection that is made then.
    async with connected(address) as after:
        await after.add(cart="users/bob/carts/default")


async def serve_meanwhile(client: Replica, program: Program) -> tuple[int, int]:
    """How many calls of an honest client were answered, all of them with OK, and the most memory that was seen."""
    served, most, deadline = 0, 0, time.monotonic() + SECONDS
    while time.monotonic() < deadline or served < 3:
        await client.add(cart="users/bob/carts/default")
        served, most = served + 1, max(most, memory(program))
        await asyncio.sleep(0.02)
    return served, max(most, memory(program))


async def test_connections_that_say_nothing_are_ended(server: tuple[Program, str, int]) -> None:
    program, address, before = server
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(wired(address, b"", is_polite=False)) for _ in range(300)]
        async with connected(address) as honest:
            await honest.add(cart="users/carol/carts/default")
        assert {await wire.ended(10) for wire in wires} == {"Did not receive HTTP/2 settings before handshake timeout"}
        assert min(wire.ended_after for wire in wires) > 4
    assert memory(program) - before < ROOM


async def test_none_of_a_burst_of_calls_is_cancelled(server: tuple[Program, str, int]) -> None:
    program, address, before = server
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(address)) for _ in range(30)]
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

        ended = Counter(await asyncio.gather(*(call(number) for number in range(10_000))))
    # What is more than we take in at a time is refused as such.
    assert ended.keys() <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}, ended
    assert ended[grpc.StatusCode.OK] > 1_000
    assert memory(program) - before < ROOM
