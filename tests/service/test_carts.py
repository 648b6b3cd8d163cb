"""Whole carts: create, update, clear, delete, create again, and list in pages."""

import grpc
import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from tests.service.conftest import CART, Service

ALICE = "users/alice"
State = cart_pb2.Cart.State


async def create(service: Service, cart_id: str, **fields: object) -> cart_pb2.Cart:
    request = cart_service_pb2.CreateCartRequest(parent=ALICE, cart_id=cart_id, cart=cart_pb2.Cart(**fields))  # type: ignore[arg-type]
    return (await service.stub.CreateCart(request)).cart


async def delete(service: Service, name: str) -> cart_pb2.Cart:
    return (await service.stub.DeleteCart(cart_service_pb2.DeleteCartRequest(name=name))).cart


async def pages(service: Service, size: int, **more: object) -> list[list[str]]:
    """Call ListCarts until the last page; return each page's cart ids."""
    found, token = [], ""
    for _ in range(100):
        request = cart_service_pb2.ListCartsRequest(parent=ALICE, page_size=size, page_token=token, **more)  # type: ignore[arg-type]
        response = await service.stub.ListCarts(request)
        found.append([cart.name.rpartition("/")[2] for cart in response.carts])
        token = response.next_page_token
        if not token:
            return found
    raise AssertionError(f"100 pages and no last one: {found}")


async def test_a_cart_can_be_created_before_its_first_item(service: Service) -> None:
    made = await create(service, "gifts", labels={"for": "bob"}, currency_code="EUR", ttl=Duration(seconds=3600))
    assert (made.name, made.state, made.revision) == (f"{ALICE}/carts/gifts", State.STATE_ACTIVE, 1)
    assert (dict(made.labels), made.currency_code, made.ttl.seconds) == ({"for": "bob"}, "EUR", 3600)
    assert made.expire_time.seconds == made.update_time.seconds + 3600
    assert await service.get(made.name) == made


async def test_an_update_sets_quantity_price_and_labels(service: Service) -> None:
    item = await service.add(quantity=2)
    changed = cart_pb2.Item(
        name=item.name, quantity=5, labels={"a": "b"}, unit_price=cart_pb2.Money(currency_code="EUR", minor_units=250)
    )
    request = cart_service_pb2.UpdateItemRequest(
        item=changed, update_mask=FieldMask(paths=["quantity", "labels", "unit_price"])
    )
    updated = (await service.stub.UpdateItem(request)).item
    assert (updated.quantity, dict(updated.labels), updated.unit_price.minor_units) == (5, {"a": "b"}, 250)
    cart = await service.settled()
    assert (cart.subtotal.minor_units, cart.subtotal.currency_code, cart.total_quantity) == (1250, "EUR", 5)
    assert cart.items[0].reservation.reserved_quantity == 5


async def test_a_cart_update_changes_only_the_fields_in_its_mask(service: Service) -> None:
    await create(service, "default", labels={"a": "b"}, currency_code="EUR")
    request = cart_service_pb2.UpdateCartRequest(
        cart=cart_pb2.Cart(name=CART, labels={"c": "d"}), update_mask=FieldMask(paths=["labels"])
    )
    updated = (await service.stub.UpdateCart(request)).cart
    assert (dict(updated.labels), updated.currency_code, updated.revision) == ({"c": "d"}, "EUR", 2)


async def test_a_cleared_cart_stays_active_and_holds_no_stock(service: Service) -> None:
    for sku in ("a", "b"):
        await service.add(sku)
    await service.settled()
    request = cart_service_pb2.ClearCartRequest(name=CART, max_wait=Duration(seconds=10))
    cleared = (await service.stub.ClearCart(request)).cart
    assert (cleared.state, cleared.item_count, cleared.reconciling) == (State.STATE_ACTIVE, 0, False)
    assert [service.simulator.levels(sku).held for sku in ("a", "b")] == [0, 0]


async def test_a_deleted_cart_holds_no_stock_and_its_name_can_be_used_again(service: Service) -> None:
    await service.add()
    before = await service.settled()
    deleted = await delete(service, CART)
    assert (deleted.state, deleted.item_count) == (State.STATE_DELETED, 0)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await service.stub.ClearCart(cart_service_pb2.ClearCartRequest(name=CART))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    made = await create(service, "default")
    assert made.uid != before.uid
    assert made.revision > deleted.revision
    await service.add(quantity=3)
    again = await service.settled()
    assert [item.reservation.reserved_quantity for item in again.items] == [3]
    assert service.simulator.levels("espresso-beans").held == 3


async def test_adding_to_a_deleted_cart_starts_a_new_cart(service: Service) -> None:
    await service.add("a")
    uid = (await service.get()).uid
    await delete(service, CART)
    await service.add("b")
    cart = await service.get()
    assert cart.uid != uid
    assert [item.sku for item in cart.items] == ["b"]


async def test_a_batch_is_added_completely_or_not_at_all(service: Service) -> None:
    def batch(*quantities: int) -> cart_service_pb2.BatchAddItemsRequest:
        items = [cart_pb2.Item(sku=f"sku-{index}", quantity=quantity) for index, quantity in enumerate(quantities)]
        return cart_service_pb2.BatchAddItemsRequest(
            parent=CART, requests=[cart_service_pb2.AddItemRequest(item=item) for item in items]
        )

    response = await service.stub.BatchAddItems(batch(1, 2, 3))
    assert [item.quantity for item in response.items] == [1, 2, 3]
    with pytest.raises(grpc.aio.AioRpcError):
        await service.stub.BatchAddItems(batch(1, 1, 101))
    cart = await service.settled()
    assert (cart.item_count, cart.total_quantity) == (3, 6)
    assert [item.reservation.reserved_quantity for item in cart.items] == [1, 2, 3]


async def test_pages_contain_each_cart_once_in_each_order(service: Service) -> None:
    ids = [f"cart-{number:02}" for number in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)]
    for cart_id in ids:
        await create(service, cart_id)
    for order, expected in (("name", sorted(ids)), ("create_time", ids), ("update_time", ids)):
        for order_by, wanted in ((order, expected), (f"{order} desc", expected[::-1])):
            found = await pages(service, 3, order_by=order_by)
            assert [name for page in found for name in page] == wanted
            assert all(len(page) == 3 for page in found[:-1])


@pytest.mark.parametrize(("order", "seen"), [("create_time", True), ("create_time desc", False)])
async def test_a_cart_created_between_two_pages_neither_repeats_nor_hides_another(
    service: Service, order: str, seen: bool
) -> None:
    for number in range(5):
        await create(service, f"old-{number}")
    request = cart_service_pb2.ListCartsRequest(parent=ALICE, page_size=2, order_by=order)
    first = await service.stub.ListCarts(request)
    await create(service, "new")
    request.page_token = first.next_page_token
    request.page_size = 10
    second = await service.stub.ListCarts(request)
    names = [cart.name.rpartition("/")[2] for cart in (*first.carts, *second.carts)]
    assert sorted(name for name in names if name != "new") == [f"old-{number}" for number in range(5)]
    assert names.count("new") == seen


async def test_deleted_carts_are_listed_only_if_the_filter_names_them(service: Service) -> None:
    for cart_id in ("kept", "gone"):
        await create(service, cart_id)
    await delete(service, f"{ALICE}/carts/gone")
    assert await pages(service, 10) == [["kept"]]
    assert await pages(service, 10, filter="state = DELETED") == [["gone"]]
    assert await pages(service, 10, filter="state = ACTIVE OR state = DELETED") == [["gone", "kept"]]


async def test_a_page_token_is_refused_with_another_query(service: Service) -> None:
    for number in range(3):
        await create(service, f"cart-{number}")
    request = cart_service_pb2.ListCartsRequest(parent=ALICE, page_size=1)
    token = (await service.stub.ListCarts(request)).next_page_token
    request = cart_service_pb2.ListCartsRequest(parent="users/bob", page_size=1, page_token=token)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await service.stub.ListCarts(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_currency_of_a_cart_comes_from_its_prices_unless_a_caller_set_it(service: Service) -> None:
    async def add_price(currency: str, cart: str = CART) -> None:
        price = cart_pb2.Money(currency_code=currency, minor_units=100)
        item = cart_pb2.Item(sku=f"sku-{currency}", unit_price=price)
        await service.stub.AddItem(cart_service_pb2.AddItemRequest(parent=cart, item=item), timeout=10)

    await add_price("USD")
    cleared = await service.stub.ClearCart(cart_service_pb2.ClearCartRequest(name=CART), timeout=10)
    assert cleared.cart.currency_code == ""
    await add_price("EUR")
    [item] = (await service.get()).items
    await service.stub.RemoveItem(cart_service_pb2.RemoveItemRequest(name=item.name), timeout=10)
    await add_price("CHF")
    found = await service.get()
    assert (found.currency_code, found.subtotal.currency_code, found.subtotal.minor_units) == ("CHF", "CHF", 100)

    owned = "users/alice/carts/owned"
    made = cart_service_pb2.CreateCartRequest(
        parent="users/alice", cart_id="owned", cart=cart_pb2.Cart(currency_code="USD")
    )
    await service.stub.CreateCart(made, timeout=10)
    await add_price("USD", owned)
    await service.stub.ClearCart(cart_service_pb2.ClearCartRequest(name=owned), timeout=10)
    assert (await service.get(owned)).currency_code == "USD"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await add_price("EUR", owned)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
