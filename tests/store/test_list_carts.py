"""Pages of carts that were created at the same time."""

import asyncio

import pytest

from cart_grpc.carts.model import CartState
from cart_grpc.names import cart_key, user_key
from cart_grpc.store.engine import Engine
from cart_grpc.store.read.reads import Page, Reads
from cart_grpc.store.write_queue import WriteQueue
from tests.store.writes import add

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
