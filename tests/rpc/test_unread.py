"""Callers that do not read their replies: the memory for them is bounded, and other callers are served."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cart_grpc.carts.refusals import Overloaded
from cart_grpc.rpc import pipeline as pipeline_module
from cart_grpc.rpc import unread as unread_module
from cart_grpc.rpc.unread import CALL_BYTES, Unread
from tests.attacks.wire import DATA, END_HEADERS, END_STREAM, HEADERS, Wire, call_of, frame, message, wired
from tests.rpc.refusal import call
from tests.rpc.serving import serving
from tests.rpc.test_health import CLOSED_WINDOW
from tests.rpc.test_pipeline import GET
from tests.service.conftest import Replica
from tests.waiting import until

REPLY = b"\xf2\x3f\x80\x80\x04" + b"x" * 65_536
COST = CALL_BYTES + 2 * len(REPLY)
GET_CART = "/cartgrpc.v1.CartService/GetCart"
ADD_ITEM = "/cartgrpc.v1.CartService/AddItem"


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> Unread:
    """The counts of the server under test. Its limits are small: a connection may have 4 long replies at most."""
    counts = Unread()
    monkeypatch.setattr(pipeline_module, "Unread", lambda: counts)
    monkeypatch.setattr(unread_module, "FREE_BYTES", 2 * COST)
    monkeypatch.setattr(unread_module, "MAX_BYTES", 12 * COST)
    monkeypatch.setattr(unread_module, "MIN_SHARE_BYTES", COST)
    return counts


async def reply(_request: Any, _context: Any) -> bytes:
    return REPLY


@asynccontextmanager
async def silent(server: Replica) -> AsyncIterator[Wire]:
    """A connection that reads no reply."""
    async with wired(f"127.0.0.1:{server.port}", CLOSED_WINDOW) as wire:
        yield wire


async def ask(wire: Wire, streams: range, path: str = GET_CART) -> None:
    """Send complete calls, one after the other, so that each is admitted by what came before."""
    for stream in streams:
        data = GET.SerializeToString()
        await wire.send(
            [
                frame(HEADERS, END_HEADERS, 2 * stream + 1, call_of(path)),
                frame(DATA, END_STREAM, 2 * stream + 1, message(len(data)) + data),
            ]
        )


async def test_a_connection_that_does_not_read_gets_no_further_replies_and_others_do(unread: Unread) -> None:
    async with serving(reply) as server, silent(server) as wire:
        await ask(wire, range(40))
        # Refusals are trailers, which no window holds back.
        await until(lambda: len(wire.ended_streams) >= 30)
        assert unread._total <= 12 * COST
        for _ in range(20):
            await call(server, "GetCart", GET)
        # Others do not read either: each gets a smaller share, and readers are still served.
        async with silent(server) as second, silent(server) as third:
            for other in (second, third):
                await ask(other, range(20))
                await until(lambda other=other: len(other.ended_streams) >= 15)  # type: ignore[misc]
            assert unread._total <= 12 * COST
            for _ in range(20):
                await call(server, "GetCart", GET)
        await wire.close()
        # Those that were counted when all was quiet count until the next look.
        await until(lambda: unread._total <= 2 * COST)
    assert not +unread._connections


async def test_a_write_that_has_had_its_effect_is_answered(unread: Unread) -> None:
    effects = []

    async def write(_request: Any, _context: Any) -> bytes:
        effects.append(1)
        return REPLY

    async with serving(write) as server, silent(server) as wire:
        await ask(wire, range(30), ADD_ITEM)
        await until(lambda: len(wire.ended_streams) + len(effects) == 30)
        assert 2 <= len(effects) < 15


async def test_a_quiet_server_looks_after_no_reply(unread: Unread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_module, "FREE_BYTES", 1_000 * COST)
    async with serving(reply) as server:
        for _ in range(20):
            await call(server, "GetCart", GET)
    assert len(unread._recent) == 20
    assert not unread._connections


async def test_replies_that_are_sent_are_forgotten(unread: Unread) -> None:
    class Context:
        def peer(self) -> str:
            return "ipv4:127.0.0.1:1"

    context: Any = Context()
    sent = asyncio.Event()

    async def send() -> None:
        unread.check(context)
        unread.add(REPLY, context)
        await sent.wait()

    tasks = [asyncio.create_task(send()) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="does not read"):
        unread.check(context)
    sent.set()
    await asyncio.gather(*tasks)
    await asyncio.sleep(0)
    assert unread._total == 0
    unread.check(context)
    await asyncio.create_task(send())
