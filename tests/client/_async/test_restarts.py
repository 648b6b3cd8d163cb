"""Servers that stop, die and lose replies under a caller. Each add has one effect."""

import itertools
import signal
import threading
import time

import pytest
from cartgrpc.v1 import cart_pb2

from cart_grpc.client import CartClient
from tests.client.shop import Shop, meanwhile

DOWN_SECONDS = 6.0
KEPT_OUT_SECONDS = 2.5


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
async def test_a_restart_fails_no_add_and_repeats_none(by: signal.Signals, own_shop: Shop) -> None:
    back_at = 0.0
    answered: list[float] = []
    begun = threading.Event()

    def restart() -> None:
        nonlocal back_at
        begun.wait()
        own_shop.stop(by)
        time.sleep(DOWN_SECONDS)
        own_shop.start()
        back_at = time.monotonic()

    async with CartClient(own_shop.address, timeout=30) as client:
        cart = client.cart("alice")
        await cart.add("beans")
        with meanwhile(restart):
            while not back_at or time.monotonic() < back_at + 0.5 or answered[-1] < back_at:
                await cart.add("beans")
                answered.append(time.monotonic())
                begun.set()
        assert (await cart.get()).items[0].quantity == 1 + len(answered)
    before, after = max(itertools.pairwise(answered), key=lambda pair: pair[1] - pair[0])
    assert after - before > DOWN_SECONDS
    # With gRPC's own settings, the next attempt to connect comes about three seconds later.
    assert after - back_at < KEPT_OUT_SECONDS


async def test_a_lost_reply_is_not_a_second_add(own_shop: Shop) -> None:
    async with CartClient(own_shop.address, timeout=30) as client:
        cart = client.cart("alice")
        await cart.add("beans")
        own_shop.die_before_next_reply()
        with meanwhile(own_shop.start_when_dead):
            assert (await cart.add("beans", 2)).item.quantity == 3
        assert (await cart.get()).items[0].quantity == 3


async def test_a_watch_goes_on_after_a_restart(own_shop: Shop) -> None:
    async with CartClient(own_shop.address, timeout=30) as client:
        cart = client.cart("alice")
        first = await cart.add("beans")
        states = cart.watch()
        seen = [await anext(states)]
        for by in (signal.SIGTERM, signal.SIGKILL):
            own_shop.stop(by)
            own_shop.start()
            await cart.add("beans")
            seen.append(await anext(states))
        await cart.delete()
        seen += [state async for state in states]
    assert seen[0].revision >= first.revision
    assert [sum(item.quantity for item in state.items) for state in seen] == [1, 2, 3, 0]
    assert seen[-1].state == cart_pb2.Cart.STATE_DELETED
