# Made by `make sync-client` from the file of the same name in _async. Do not edit.
"""Replacing items, and selling them, at a real server."""

from datetime import timedelta
from uuid import uuid4

import pytest
from cartgrpc.v1 import cart_pb2

from cart_grpc.client import FailedPrecondition, NotFound, SyncCart, SyncCartClient
from cart_grpc.client.money import money

Checkout = cart_pb2.Checkout


def test_a_cart_is_made_exactly_this(cart: SyncCart) -> None:
    kept = (cart.add("beans", 2)).item
    cart.add("cups")
    reply = cart.replace([cart_pb2.Item(sku="beans", quantity=2), cart_pb2.Item(sku="filters")])
    assert [item.sku for item in reply.cart.items] == ["beans", "filters"]
    assert [item.sku for item in reply.removed_items] == ["cups"]
    assert reply.cart.items[0].reservation.reservation_id == kept.reservation.reservation_id


def test_a_cart_is_checked_out(client: SyncCartClient) -> None:
    user = str(uuid4())
    cart = client.cart(user)
    cart.add("beans", 2, unit_price=money("12.34", "EUR"), wait=20)
    checkout = cart.begin_checkout(window=timedelta(minutes=5), expected_subtotal=money("24.68", "EUR"), wait=20)
    assert (checkout.state, checkout.ready) == (Checkout.STATE_OPEN, True)
    with pytest.raises(FailedPrecondition, match="CART_FROZEN"):
        cart.add("beans")
    sold = client.complete_checkout(checkout.name, "order-1", wait=20)
    assert sold.state == Checkout.STATE_COMPLETED
    assert client.get_checkout(checkout.name) == sold
    listed = [one.name for one in client.list_checkouts(user, filter="state = COMPLETED")]
    assert listed == [checkout.name]


def test_a_checkout_is_cancelled_and_refused(client: SyncCartClient, cart: SyncCart) -> None:
    with pytest.raises(NotFound, match="CHECKOUT_NOT_FOUND"):
        client.get_checkout(f"users/nobody/checkouts/{uuid4()}")
    cart.add("rare", 4, wait=20)
    with pytest.raises(FailedPrecondition, match="NOT_RESERVED") as refused:
        cart.begin_checkout()
    assert len(refused.value.violations) == 1
    cart.clear()
    cart.add("beans", wait=20)
    checkout = cart.begin_checkout(window=60)
    assert (client.cancel_checkout(checkout.name)).state == Checkout.STATE_CANCELLED
    assert (cart.get()).state == cart_pb2.Cart.STATE_ACTIVE
