"""Each gRPC option of the server has its effect: gRPC silently ignores an option name that it does not know."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cart_grpc.rpc import server
from cart_grpc.rpc.methods import HEALTH_ONLY
from cart_grpc.rpc.server import Server
from cart_grpc.rpc.services import no_service
from tests.attacks.wire import (
    CANCEL,
    END_HEADERS,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Wire,
    call_of,
    frame,
    wired,
)

HANDSHAKE = "Did not receive HTTP/2 settings before handshake timeout"
OPEN = frame(HEADERS, END_HEADERS, 1, call_of("/grpc.health.v1.Health/Check"))
Start = Callable[..., AbstractAsyncContextManager[str]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start a server with the product's options, some of them replaced by smaller values; yield its address."""

    @asynccontextmanager
    async def started(*, max_connections: int = server.MAX_CONNECTIONS, **smaller: int) -> AsyncIterator[str]:
        options = dict(server.OPTIONS)
        for name, value in smaller.items():
            (known,) = (each for each in options if each.endswith(f".{name}"))
            assert value < options[known]
            options[known] = value
        monkeypatch.setattr(server, "OPTIONS", tuple(options.items()))
        monkeypatch.setattr(server, "MAX_WAIT_SECONDS", 0)
        running = Server(no_service("test.v1.Test"), 0.3, beside=HEALTH_ONLY, max_connections=max_connections)
        await running.start("127.0.0.1:0")
        try:
            yield f"127.0.0.1:{running.port}"
        finally:
            await running.stop(0)

    return started


@pytest.mark.parametrize("said", [b"", PREFACE[:10], PREFACE], ids=["nothing", "half a preface", "no settings"])
async def test_a_peer_without_an_http_2_handshake_is_disconnected(said: bytes, start: Start) -> None:
    async with start(server_handshake_timeout_ms=300) as address, wired(address, said, is_polite=False) as wire:
        assert await wire.ended(20) == HANDSHAKE


async def test_a_peer_that_does_not_acknowledge_settings_is_disconnected(start: Start) -> None:
    async with start(settings_timeout=300) as address, wired(address, is_polite=False) as wire:
        assert await wire.ended(20) == "settings_timeout"


async def test_a_peer_that_does_not_answer_a_ping_is_disconnected(start: Start) -> None:
    async with start(keepalive_time_ms=200, ping_timeout_ms=300) as address, wired(address) as wire:
        await arrived(wire, SETTINGS)
        wire.is_polite = False
        assert await wire.ended(20) == "ping_timeout"


async def test_an_idle_connection_is_closed(start: Start) -> None:
    async with start(max_connection_idle_ms=300) as address, wired(address) as wire:
        assert await wire.ended(20) == "connection idle"


async def test_an_old_connection_is_closed_even_if_a_call_never_ends(start: Start) -> None:
    async with start(max_connection_age_ms=300) as address, wired(address) as wire:
        await wire.send([OPEN])
        assert await wire.ended(20) == "max_age"


async def test_a_peer_that_pings_at_the_allowed_rate_stays_connected(start: Start) -> None:
    async with start(min_ping_interval_without_data_ms=50) as address, wired(address) as wire:
        for count in range(1, 7):
            await wire.send([frame(PING, 0, 0, b"12345678")])
            # The server has this ping, so the next one comes later for the server, too.
            await arrived(wire, PING, count)
            await asyncio.sleep(0.1)
        assert not wire.has_ended


async def test_a_peer_that_pings_faster_is_disconnected(start: Start) -> None:
    async with start() as address, wired(address) as wire:
        # In one write: a ping that arrives after the end resets the connection, and the reset drops the GOAWAY.
        await wire.send([frame(PING, 0, 0, b"12345678")] * 6)
        assert await wire.ended(20) == "too_many_pings"


async def test_connections_beyond_the_limit_are_closed(start: Start) -> None:
    async with start(max_connections=3) as address, AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(wired(address)) for _ in range(5)]
        # The others get the server's settings. They may arrive later than the ends.
        async with asyncio.timeout(20):
            while sum(wire.has_ended or SETTINGS in wire.seen for wire in wires) < 5:
                await asyncio.sleep(0.01)
        assert sum(wire.has_ended for wire in wires) == 2
        assert sum(SETTINGS in wire.seen for wire in wires) == 3


async def test_the_server_announces_its_stream_and_window_limits(start: Start) -> None:
    async with start() as address, wired(address) as wire:
        await arrived(wire, SETTINGS)
        assert wire.settings[MAX_CONCURRENT_STREAMS] == 100
        assert wire.settings[INITIAL_WINDOW_SIZE] == 16 * 1024


async def arrived(wire: Wire, kind: int, count: int = 1) -> None:
    """Wait for a frame of this kind, or for several."""
    async with asyncio.timeout(20):
        while wire.seen[kind] < count:
            await asyncio.sleep(0.01)


def reset_calls(count: int) -> list[bytes]:
    """Calls that are reset at once: each ends long before its memory is free. Then a ping."""
    call, path = [], call_of("/grpc.health.v1.Health/Check")
    for stream in range(1, 2 * count, 2):
        call += [frame(HEADERS, END_HEADERS, stream, path), frame(RST_STREAM, 0, stream, CANCEL)]
    return [*call, frame(PING, 0, 0, b"12345678")]


@pytest.mark.parametrize(("calls", "are_refused"), [(30, False), (300, True)])
async def test_calls_that_have_ended_take_room_of_their_own_until_they_are_free(
    calls: int, are_refused: bool, start: Start
) -> None:
    async with start(max_concurrent_streams=10, max_deallocating_streams=20) as address, wired(address) as wire:
        await arrived(wire, SETTINGS)
        await wire.send(reset_calls(calls))
        await arrived(wire, PING)
        assert bool(wire.refused) == are_refused


async def check_health(address: str, service: str, metadata: int = 0) -> grpc.StatusCode:
    """Call Health/Check with so many bytes of metadata; return the status code."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: health_pb2_grpc.HealthAsyncStub = health_pb2_grpc.HealthStub(channel)  # type: ignore[name-defined]
        fields = [(f"x-{number}", "x" * 900) for number in range(metadata // 1000)]
        try:
            await stub.Check(health_pb2.HealthCheckRequest(service=service), metadata=fields, timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


async def test_metadata_is_always_accepted_up_to_its_limit_and_never_beyond(start: Start) -> None:
    async with start() as address:
        # With gRPC's defaults, about half of these are rejected at random.
        assert {await check_health(address, "", 12_000) for _ in range(12)} == {grpc.StatusCode.OK}
        assert {await check_health(address, "", 20_000) for _ in range(12)} == {grpc.StatusCode.RESOURCE_EXHAUSTED}


async def test_a_message_is_accepted_up_to_its_limit_and_not_beyond(start: Start) -> None:
    async with start() as address:
        # The callers' server accepts longer ones: tests/rpc/test_byte_limits.py.
        assert await check_health(address, "x" * 65_000) == grpc.StatusCode.NOT_FOUND
        assert await check_health(address, "x" * 66_000) == grpc.StatusCode.RESOURCE_EXHAUSTED
