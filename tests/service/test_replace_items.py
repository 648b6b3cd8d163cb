"""Whole carts in one call, and what replies show of removed items and of replaced prices."""

from typing import Any

from cartgrpc.v1 import cart_pb2
from cartgrpc.v1 import cart_service_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from tests.service.conftest import CART, Service

State = cart_pb2.Reservation.State
WAIT = Duration(seconds=20)
LARGE, SMALL = {"size": "L"}, {"size": "S"}


def euros(minor_units: int) -> cart_pb2.Money:
    return cart_pb2.Money(currency_code="EUR", minor_units=minor_units)


async def replace_items(service: Service, *items: cart_pb2.Item, **more: Any) -> pb.ReplaceItemsResponse:
    return await service.stub.ReplaceItems(pb.ReplaceItemsRequest(name=CART, items=items, **more), timeout=30)


async def test_the_cart_becomes_exactly_what_the_call_says_and_unchanged_items_keep_their_reservations(
    service: Service,
) -> None:
    # The simulator has 10 units of each sku: the large size gets them only once the small one has returned them.
    items = [cart_pb2.Item(sku="same", quantity=2), cart_pb2.Item(sku="shirt", options=SMALL, quantity=10)]
    first = await replace_items(service, *items, max_wait=WAIT)
    assert [item.reservation.state for item in first.cart.items] == [State.STATE_RESERVED] * 2
    before = await service.settled()
    items[1].options.update(LARGE)
    second = await replace_items(service, *items, request_id="once", max_wait=WAIT)
    same, shirt = second.cart.items
    assert same == before.items[0]
    assert (shirt.reservation.state, shirt.reservation.reserved_quantity) == (State.STATE_RESERVED, 10)
    assert list(second.removed_items) == [before.items[1]]
    assert not second.cart.reconciling
    assert {sku: service.simulator.levels(sku).held for sku in ("same", "shirt")} == {"same": 2, "shirt": 10}
    # The same once more changes nothing, and a repeated call is answered as before.
    third = await replace_items(service, *items)
    assert (third.cart.etag, list(third.removed_items)) == (second.cart.etag, [])
    assert await replace_items(service, *items, request_id="once", max_wait=WAIT) == second
    emptied = await replace_items(service, max_wait=WAIT)
    assert (list(emptied.cart.items), emptied.cart.reconciling) == ([], False)
    assert service.simulator.levels("shirt").held == 0


async def test_replies_show_what_was_removed_as_it_was_and_the_prices_that_were_replaced(service: Service) -> None:
    async def add(sku: str, price: cart_pb2.Money | None) -> pb.AddItemResponse:
        request = pb.AddItemRequest(parent=CART, item=cart_pb2.Item(sku=sku, unit_price=price))
        return await service.stub.AddItem(request, timeout=10)

    assert not (await add("a", euros(5))).HasField("previous_unit_price")
    assert not (await add("a", euros(5))).HasField("previous_unit_price")
    assert (await add("a", euros(7))).previous_unit_price == euros(5)
    assert not (await add("a", None)).HasField("previous_unit_price")
    await add("b", None)
    batch = [pb.AddItemRequest(item=cart_pb2.Item(sku=sku, unit_price=euros(9))) for sku in ("b", "a", "c")]
    added = await service.stub.BatchAddItems(pb.BatchAddItemsRequest(parent=CART, requests=batch), timeout=10)
    name = {item.sku: item.name for item in added.items}
    assert list(added.price_changes) == [pb.PriceChange(item=name["a"], previous_unit_price=euros(7))]
    items = {item.sku: item for item in (await service.settled()).items}
    removal = pb.RemoveItemRequest(name=name["c"], request_id="r")
    removed = await service.stub.RemoveItem(removal, timeout=10)
    assert removed.item == items["c"]
    assert removed.item.reservation.state == State.STATE_RESERVED
    assert await service.stub.RemoveItem(removal, timeout=10) == removed
    dollars = cart_pb2.Money(currency_code="USD", minor_units=9)
    replaced = await replace_items(service, cart_pb2.Item(sku="a", unit_price=dollars))
    assert list(replaced.price_changes) == [pb.PriceChange(item=name["a"], previous_unit_price=euros(9))]
    assert [item.sku for item in replaced.removed_items] == ["b"]
    assert (replaced.cart.subtotal, replaced.removed_items[0].unit_price) == (dollars, euros(9))
    last = await service.settled()
    deletion = pb.DeleteCartRequest(name=CART, request_id="d")
    deleted = await service.stub.DeleteCart(deletion, timeout=10)
    assert list(deleted.removed_items) == list(last.items)
    await service.add("later")
    assert await service.stub.DeleteCart(deletion, timeout=10) == deleted
