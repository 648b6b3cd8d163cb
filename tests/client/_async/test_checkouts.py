"""Replacing items, and selling them, at a real server."""

from datetime import timedelta
from uuid import uuid4

import pytest
from cartgrpc.v1 import cart_pb2

from cart_grpc.client import AsyncCart, CartClient, FailedPrecondition, NotFound
from cart_grpc.client.money import money

Checkout = cart_pb2.Checkout


async def test_a_cart_is_made_exactly_this(cart: AsyncCart) -> None:
    kept = (await cart.add("beans", 2)).item
    await cart.add("cups")
    reply = await cart.replace([cart_pb2.Item(sku="beans", quantity=2), cart_pb2.Item(sku="filters")])
    assert [item.sku for item in reply.cart.items] == ["beans", "filters"]
    assert [item.sku for item in reply.removed_items] == ["cups"]
    assert reply.cart.items[0].reservation.reservation_id == kept.reservation.reservation_id


async def test_a_cart_is_checked_out(client: CartClient) -> None:
    user = str(uuid4())
    cart = client.cart(user)
    await cart.add("beans", 2, unit_price=money("12.34", "EUR"), wait=20)
    checkout = await cart.begin_checkout(window=timedelta(minutes=5), expected_subtotal=money("24.68", "EUR"), wait=20)
    assert (checkout.state, checkout.ready) == (Checkout.STATE_OPEN, True)
    with pytest.raises(FailedPrecondition, match="CART_FROZEN"):
        await cart.add("beans")
    sold = await client.complete_checkout(checkout.name, "order-1", wait=20)
    assert sold.state == Checkout.STATE_COMPLETED
    assert await client.get_checkout(checkout.name) == sold
    listed = [one.name async for one in client.list_checkouts(user, filter="state = COMPLETED")]
    assert listed == [checkout.name]


async def test_a_checkout_is_cancelled_and_refused(client: CartClient, cart: AsyncCart) -> None:
    with pytest.raises(NotFound, match="CHECKOUT_NOT_FOUND"):
        await client.get_checkout(f"users/nobody/checkouts/{uuid4()}")
    await cart.add("rare", 4, wait=20)
    with pytest.raises(FailedPrecondition, match="NOT_RESERVED") as refused:
        await cart.begin_checkout()
    assert len(refused.value.violations) == 1
    await cart.clear()
    await cart.add("beans", wait=20)
    checkout = await cart.begin_checkout(window=60)
    assert (await client.cancel_checkout(checkout.name)).state == Checkout.STATE_CANCELLED
    assert (await cart.get()).state == cart_pb2.Cart.STATE_ACTIVE
