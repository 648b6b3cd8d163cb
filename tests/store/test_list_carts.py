"""Pages of carts: carts that were created at the same time, and carts with long labels."""

import asyncio
from dataclasses import replace

import pytest

from cart_grpc.carts.calls import CartUpdate, CreateCart
from cart_grpc.carts.model import CartState
from cart_grpc.names import cart_key, user_key
from cart_grpc.store.engine import Engine
from cart_grpc.store.read.reads import Page, Reads
from cart_grpc.store.write_queue import WriteQueue
from tests.store.writes import add, mutation

USER = user_key("alice")


@pytest.mark.parametrize("descending", [False, True])
async def test_carts_with_one_create_time_are_ordered_by_id(
    queue: WriteQueue, engine: Engine, descending: bool
) -> None:
    ids = [f"cart-{number}" for number in range(5)]
    await asyncio.gather(*(queue.submit(add(key=cart_key(USER, cart_id))) for cart_id in ids))
    found: list[str] = []
    after = None
    for _ in range(3):
        page = Page(USER, 2, frozenset({CartState.ACTIVE}), "create_time", descending, after)
        carts = [one.cart for one in await Reads(engine).list_carts(page)][:2]
        found += [cart.key.cart_id for cart in carts]
        after = (carts[-1].create_time, carts[-1].key.cart_id)
    assert found == sorted(ids, reverse=descending)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("order_by", ["name", "update_time"])
async def test_a_page_is_read_in_parts_until_it_is_full_or_its_labels_are_long(
    queue: WriteQueue, engine: Engine, order_by: str, descending: bool
) -> None:
    ids = [f"cart-{number:03}" for number in range(250)]
    labels = CartUpdate(frozenset(), {"note": "x" * 90})
    calls = [mutation(CreateCart(cart_key(USER, cart_id), labels)) for cart_id in ids]
    await asyncio.gather(*(queue.submit(call) for call in calls))
    page = Page(USER, 230, frozenset({CartState.ACTIVE}), order_by, descending, None)
    everything = [one.cart for one in await Reads(engine).list_carts(replace(page, size=500))]
    assert sorted(cart.key.cart_id for cart in everything) == ids
    in_order = sorted(everything, key=lambda cart: (page.order_value(cart), cart.key.cart_id), reverse=descending)
    assert everything == in_order
    assert [one.cart for one in await Reads(engine).list_carts(page)] == in_order[:231]
    # The second part exceeds it, so there is no third.
    cut = await Reads(engine).list_carts(replace(page, max_bytes=12_000))
    assert len(cut) == 201
