"""Watching a cart through heartbeats, silence and reconnections."""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from cartgrpc.v1 import cart_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from cart_grpc.client import AsyncCart, CartClient, CartError, NotFound, Unavailable
from cart_grpc.client._async import watch
from tests.client.scripted import Scripted, heartbeat, refusal, state

ENDED = cart_pb2.Cart.STATE_DELETED
GONE = refusal(StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


async def seen_by(states: AsyncIterator[cart_pb2.Cart]) -> list[tuple[str, int]]:
    return [(cart.uid, cart.revision) async for cart in states]


async def test_a_watch_yields_each_state_once_and_ends_with_the_cart(
    scripted: Scripted, scripted_cart: AsyncCart
) -> None:
    scripted.watches = [[state(1), heartbeat(), state(3), state(3), heartbeat(), state(4, state=ENDED)]]
    assert await seen_by(scripted_cart.watch()) == [("1", 1), ("1", 3), ("1", 4)]
    assert scripted.attempts[0].request.name == scripted_cart.name


async def test_a_watch_goes_on_after_any_failure_and_repeats_no_state(
    scripted: Scripted, scripted_cart: AsyncCart
) -> None:
    scripted.watches = [
        [GONE],
        [state(1), GONE],
        [state(1), state(2), refusal(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS", retry_after=0.05)],
        [refusal(StatusCode.CANCELLED)],
        # Orderly, but the cart has not ended.
        [state(2)],
        # An older state than the last one, as a replica with a delay may have.
        [state(1), state(5), refusal(StatusCode.UNAVAILABLE)],
        # Another cart has taken the name.
        [state(6, uid="2"), state(7, uid="2", state=ENDED)],
    ]
    expected = [("1", 1), ("1", 2), ("1", 5), ("2", 6), ("2", 7)]
    assert await seen_by(scripted_cart.watch()) == expected


async def test_a_change_that_only_time_causes_is_yielded(scripted: Scripted, scripted_cart: AsyncCart) -> None:
    soon = Timestamp(seconds=1)
    scripted.watches = [[state(1, expire_time=soon), state(1), state(2, state=ENDED)]]
    assert await seen_by(scripted_cart.watch()) == [("1", 1), ("1", 1), ("1", 2)]


async def test_a_watch_of_a_missing_cart_raises_at_once(scripted: Scripted, scripted_cart: AsyncCart) -> None:
    scripted.watches = [[refusal(StatusCode.NOT_FOUND, "CART_NOT_FOUND")]]
    with pytest.raises(NotFound, match="CART_NOT_FOUND"):
        await anext(scripted_cart.watch())
    assert len(scripted.attempts) == 1


async def test_a_silent_connection_is_replaced(
    scripted: Scripted, scripted_cart: AsyncCart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SILENCE_SECONDS", 0.3)
    # On a busy machine, an attempt without an answer in time is replaced, too.
    scripted.watches = [[state(1), None], *[[state(2, state=ENDED)]] * 100]
    assert await seen_by(scripted_cart.watch()) == [("1", 1), ("1", 2)]
    assert scripted.ended.wait(20)


async def test_a_watch_without_a_first_state_ends_at_the_timeout(scripted: Scripted, unused_address: str) -> None:
    for address in (scripted.address, unused_address):
        began = time.monotonic()
        async with CartClient(address, timeout=0.5) as client:
            with pytest.raises(Unavailable):
                await anext(client.cart("alice").watch())
        assert time.monotonic() - began < 2


async def test_a_watch_that_is_left_ends_its_call(scripted: Scripted, scripted_cart: AsyncCart) -> None:
    scripted.watches = [[state(1), None]]
    async with aclosing(scripted_cart.watch()) as states:
        async for _ in states:
            break
    assert scripted.ended.wait(20)


async def test_watches_take_no_place_of_calls(scripted: Scripted) -> None:
    scripted.watches = [[state(1), GONE]]
    async with CartClient(scripted.address) as client:
        assert (await anext(client.cart("alice").watch())).revision == 1
        with pytest.raises(CartError, match="UNIMPLEMENTED"):
            await client.cart("alice").get()
    watching, calling = scripted.peers
    assert watching != calling
