"""Whatever a caller can store, a client with gRPC's default limits can read."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_pb2
from cartgrpc.v1 import cart_service_pb2 as pb
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from cart_grpc.carts.calls import Limits
from cart_grpc.rpc import pages
from cart_grpc.rpc.fields import MAX_KEY, MAX_LABELS, MAX_OPTIONS, MAX_VALUE
from tests.rpc.conftest import quiet_settings
from tests.rpc.refusal import call, refuse
from tests.service.conftest import Replica, running_replica

MOST = Limits().max_cart_bytes
LETTER = "\U0001f375"  # 4 bytes in UTF-8


def fattest(entries: int) -> dict[str, str]:
    """The longest labels or options that are valid."""
    return {f"{number:02}".ljust(MAX_KEY, LETTER): LETTER * MAX_VALUE for number in range(entries)}


FAT_LABELS = fattest(MAX_LABELS)


def fat_item(number: int) -> cart_pb2.Item:
    return cart_pb2.Item(sku=f"sku-{number}", options=fattest(MAX_OPTIONS), labels=FAT_LABELS)


async def fill(replica: Replica, cart: str) -> int:
    """Add fat items until one is refused; return how many fit."""
    for number in range(200):
        request = pb.AddItemRequest(parent=cart, item=fat_item(number))
        try:
            await call(replica, "AddItem", request)
        except grpc.aio.AioRpcError:
            refused = await refuse(replica, "AddItem", request)
            assert (refused.code, refused.info.reason) == ("RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED")
            told = dict(refused.info.metadata)
            assert (told["quota"], told["subject"], told["limit"]) == ("bytes_per_cart", cart, str(MOST))
            assert int(told["value"]) > MOST
            (violation,) = refused.detail(error_details_pb2.QuotaFailure).violations
            assert violation.subject == cart
            return number
    raise AssertionError("200 fat items were accepted")


async def fill_to_the_last_byte(replica: Replica, cart: str) -> None:
    """Fill the cart until not one more byte is accepted."""
    await fill(replica, cart)
    for number in range(MAX_LABELS * 2):
        labels = {f"{n:02}": "x" * MAX_VALUE for n in range(10)}
        item = cart_pb2.Item(sku=f"small-{number}", labels=labels)
        try:
            await call(replica, "AddItem", pb.AddItemRequest(parent=cart, item=item))
        except grpc.aio.AioRpcError:
            break
    labels = {}
    for number in range(MAX_LABELS):
        low, high = -1, MAX_VALUE
        while low < high:
            middle = (low + high + 1) // 2
            wanted = {**labels, f"{number:02}": "x" * middle}
            try:
                await call(replica, "UpdateCart", pb.UpdateCartRequest(cart=cart_pb2.Cart(name=cart, labels=wanted)))
                low = middle
            except grpc.aio.AioRpcError:
                high = middle - 1
        if low < 0:
            return
        labels[f"{number:02}"] = "x" * low
        if low < MAX_VALUE:
            return
    raise AssertionError("the cart is not full")


async def get(replica: Replica, cart: str) -> cart_pb2.Cart:
    found: cart_pb2.Cart = (await call(replica, "GetCart", pb.GetCartRequest(name=cart))).cart
    return found


async def test_the_fullest_cart_can_be_read_and_every_call_about_it_is_answered(keeper: Replica) -> None:
    cart = "users/full/carts/default"
    await fill_to_the_last_byte(keeper, cart)
    found = await get(keeper, cart)
    assert MOST * 0.9 < found.ByteSize() <= MOST
    # A request with a whole cart as it was read: nothing differs.
    same = await call(keeper, "ReplaceItems", pb.ReplaceItemsRequest(name=cart, items=found.items))
    assert (same.cart.items, same.cart.etag, list(same.removed_items)) == (found.items, found.etag, [])
    labels = cart_pb2.Cart(name=cart, labels=found.labels)
    updated = await call(keeper, "UpdateCart", pb.UpdateCartRequest(cart=labels, request_id="r"))
    assert updated.ByteSize() > MOST * 0.9
    longer = cart_pb2.Item(name=found.items[0].name, labels={**found.items[0].labels})
    assert (await call(keeper, "UpdateItem", pb.UpdateItemRequest(item=longer))).item.labels == longer.labels
    more = pb.AddItemRequest(item=cart_pb2.Item(sku=found.items[0].sku, options=found.items[0].options))
    many = await call(keeper, "BatchAddItems", pb.BatchAddItemsRequest(parent=cart, requests=[more]))
    assert many.items[0].quantity == 2
    refused = await refuse(keeper, "AddItem", pb.AddItemRequest(parent=cart, item=cart_pb2.Item(sku="x")))
    assert refused.info.metadata["quota"] == "bytes_per_cart"
    await call(keeper, "RemoveItem", pb.RemoveItemRequest(name=found.items[-1].name))
    await call(keeper, "AddItem", pb.AddItemRequest(parent=cart, item=cart_pb2.Item(sku="x")))


async def test_a_full_cart_is_replaced_by_another_full_one_in_one_call_whose_reply_a_client_can_read(
    keeper: Replica,
) -> None:
    cart = "users/replaced/carts/default"
    await fill(keeper, cart)
    before = await get(keeper, cart)
    price = cart_pb2.Money(currency_code="EUR", minor_units=1)
    items = [
        cart_pb2.Item(sku=f"new-{number}", labels=item.labels, options=item.options, unit_price=price)
        for number, item in enumerate(before.items)
    ]
    replaced = await call(keeper, "ReplaceItems", pb.ReplaceItemsRequest(name=cart, items=items, request_id="r"))
    assert list(replaced.removed_items) == list(before.items)
    assert MOST < replaced.ByteSize() < 2.2 * MOST
    cleared = await call(keeper, "ClearCart", pb.ClearCartRequest(name=cart, request_id="c"))
    assert len(cleared.removed_items) == len(before.items)
    assert cleared.ByteSize() < 1.1 * MOST


async def test_a_refused_item_changes_nothing(keeper: Replica) -> None:
    cart = "users/refused/carts/default"
    count = await fill(keeper, cart)
    before = await get(keeper, cart)
    batch = pb.BatchAddItemsRequest(
        parent=cart, requests=[pb.AddItemRequest(item=cart_pb2.Item(sku="tiny")), pb.AddItemRequest(item=fat_item(99))]
    )
    assert (await refuse(keeper, "BatchAddItems", batch)).info.metadata["quota"] == "bytes_per_cart"
    assert await get(keeper, cart) == before
    assert before.item_count == count


async def test_a_request_as_long_as_the_longest_cart_is_received_and_a_longer_one_is_not(keeper: Replica) -> None:
    def batch(count: int) -> pb.BatchAddItemsRequest:
        items = [cart_pb2.Item(sku=f"{number}", labels=FAT_LABELS) for number in range(count)]
        return pb.BatchAddItemsRequest(
            parent="users/long/carts/default", requests=[pb.AddItemRequest(item=item) for item in items]
        )

    length = batch(1).ByteSize()
    received = await refuse(keeper, "BatchAddItems", batch((MOST + 65_536) // length))
    assert received.info.metadata["quota"] == "bytes_per_cart"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(keeper, "BatchAddItems", batch((MOST + 65_536) // length + 1))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("order", ["name", "create_time desc"])
async def test_pages_of_carts_are_cut_by_bytes_and_show_each_cart_once(keeper: Replica, order: str) -> None:
    user = f"users/{order[:4]}"
    for number in range(60):
        made = pb.CreateCartRequest(parent=user, cart_id=f"c{number}", cart=cart_pb2.Cart(labels=FAT_LABELS))
        await call(keeper, "CreateCart", made)
    seen: list[str] = []
    token, lengths = "", []
    while token or not seen:
        request = pb.ListCartsRequest(parent=user, page_size=500, page_token=token, order_by=order)
        page = await call(keeper, "ListCarts", request)
        seen += [cart.name for cart in page.carts]
        lengths.append(page.ByteSize())
        token = page.next_page_token
    assert sorted(seen) == sorted(f"{user}/carts/c{number}" for number in range(60))
    assert len(lengths) == 2
    assert max(lengths) < pages.MAX_PAGE_BYTES + 1_000


def test_a_page_has_at_least_one_entry_and_at_most_the_wanted_number() -> None:
    long = cart_pb2.Cart(labels={"a": "x" * (pages.MAX_PAGE_BYTES + 1)})
    short = cart_pb2.Cart(name="short")

    def lengths(entries: list[Message], size: int) -> int:
        return len(pages.fitting(entries, size))

    assert lengths([], 5) == 0
    assert lengths([long, long], 5) == 1
    assert lengths([short, long], 5) == 1
    assert lengths([short] * 6, 5) == 5


class TestOfOneUser:
    """The limit of everything that is stored for one user."""

    MOST_OF_USER = 1_000_000

    @pytest.fixture
    async def replica(self, database_url: str) -> AsyncIterator[Replica]:
        settings = quiet_settings(database_url).with_changes(max_user_bytes=self.MOST_OF_USER)
        async with running_replica(settings, reconcile=False) as replica:
            yield replica

    async def test_what_is_stored_for_a_user_is_bounded_and_calls_that_store_nothing_more_go_on(
        self, replica: Replica
    ) -> None:
        cart = "users/alice/carts/default"
        await fill(replica, cart)

        def update(number: int) -> Any:
            labels = {"n": f"{number}"}
            return pb.UpdateCartRequest(cart=cart_pb2.Cart(name=cart, labels=labels), request_id=f"r{number}")

        replies = [await call(replica, "UpdateCart", update(number)) for number in range(3)]
        refused = await refuse(replica, "UpdateCart", update(3))
        assert (refused.code, refused.info.reason) == ("RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED")
        assert dict(refused.info.metadata) == {
            "subject": "users/alice",
            "quota": "bytes_per_user",
            "limit": str(self.MOST_OF_USER),
            "value": refused.info.metadata["value"],
        }
        (violation,) = refused.detail(error_details_pb2.QuotaFailure).violations
        assert violation.subject == "users/alice"
        # No effect.
        found = await get(replica, cart)
        assert found == replies[-1].cart
        # A repeated call, a call without a request_id that stores nothing more, and a removal.
        assert await call(replica, "UpdateCart", update(1)) == replies[1]
        quantity = cart_pb2.Item(name=found.items[0].name, quantity=7)
        await call(replica, "UpdateItem", pb.UpdateItemRequest(item=quantity))
        await call(replica, "RemoveItem", pb.RemoveItemRequest(name=found.items[0].name, request_id="removed"))
        cleared = await call(replica, "ClearCart", pb.ClearCartRequest(name=cart, request_id="cleared"))
        assert list(cleared.removed_items) == list(found.items[1:])
        await call(replica, "AddItem", pb.AddItemRequest(parent="users/bob/carts/default", item=fat_item(1)))
