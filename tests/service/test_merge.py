"""A guest logs in: MergeCarts end to end, with calls under way, with scarce stock, and many times at once."""

import asyncio
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_pb2
from cartgrpc.v1 import cart_service_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from cart_grpc.settings import Settings
from cart_grpc.simulator.simulator import Simulator
from tests.service.conftest import CART, Replica, Service, running_replica

GUEST = "users/guest-7/carts/default"
SKU = "espresso-beans"
RESERVED = cart_pb2.Reservation.STATE_RESERVED
Adjustment = pb.MergeAdjustment


async def merge(replica: Replica, name: str = CART, source: str = GUEST, **more: Any) -> pb.MergeCartsResponse:
    return await replica.stub.MergeCarts(pb.MergeCartsRequest(name=name, source=source, **more), timeout=30)


async def add_all(replica: Replica, skus: list[str], cart: str) -> None:
    requests = [pb.AddItemRequest(item=cart_pb2.Item(sku=sku)) for sku in skus]
    await replica.stub.BatchAddItems(pb.BatchAddItemsRequest(parent=cart, requests=requests), timeout=30)


def reservation_ids(cart: cart_pb2.Cart) -> dict[str, str]:
    return {item.sku: item.reservation.reservation_id for item in cart.items}


async def test_concurrent_logins_of_one_guest_keep_all_65_items_and_their_reservations(service: Service) -> None:
    await add_all(service, [f"sku-{number}" for number in range(65)], GUEST)
    before = reservation_ids(await service.settled(GUEST))
    replies = await asyncio.gather(*(merge(service) for _ in range(20)))
    assert {(reply.cart.item_count, len(reply.adjustments)) for reply in replies} == {(65, 0)}
    cart = await service.settled()
    assert reservation_ids(cart) == before
    assert {item.reservation.state for item in cart.items} == {RESERVED}
    guest = await service.get(GUEST)
    assert (guest.state, guest.merged_into, guest.item_count) == (cart_pb2.Cart.STATE_MERGED, CART, 0)
    # Nothing was asked for again.
    assert len(service.simulator.effects()) == 65


async def test_equal_items_are_summed_and_end_with_one_reservation(service: Service) -> None:
    await asyncio.gather(service.add(quantity=3), service.add(quantity=2, cart=GUEST))
    await asyncio.gather(service.settled(), service.settled(GUEST))
    reply = await merge(service, max_wait=Duration(seconds=20))
    (item,) = reply.cart.items
    assert (item.quantity, item.reservation.state, item.reservation.reserved_quantity) == (5, RESERVED, 5)
    assert not reply.cart.reconciling
    assert not reply.adjustments
    assert service.simulator.levels(SKU).held == 5


async def test_stock_that_only_the_two_carts_hold_is_enough_for_their_sum(service: Service) -> None:
    service.simulator.set_stock(SKU, 5)
    await asyncio.gather(service.add(quantity=3), service.add(quantity=2, cart=GUEST))
    await asyncio.gather(service.settled(), service.settled(GUEST))
    reply = await merge(service, max_wait=Duration(seconds=20))
    (item,) = reply.cart.items
    assert (item.reservation.state, item.reservation.reserved_quantity) == (RESERVED, 5)
    assert service.simulator.levels(SKU).held == 5


async def test_conflicting_lines_never_make_a_login_fail_and_each_difference_is_listed(service: Service) -> None:
    async def add(cart: str, sku: str, quantity: int, code: str) -> None:
        item = cart_pb2.Item(sku=sku, quantity=quantity)
        item.unit_price.CopyFrom(cart_pb2.Money(currency_code=code, minor_units=100 * quantity))
        await service.stub.AddItem(pb.AddItemRequest(parent=cart, item=item), timeout=10)

    for _ in range(9):
        await add(CART, SKU, 100, "EUR")
    await add(GUEST, SKU, 100, "USD")
    await add(GUEST, SKU, 100, "USD")
    await add(GUEST, "filters", 1, "USD")
    reply = await merge(service)
    assert {item.sku: item.quantity for item in reply.cart.items} == {SKU: 1000, "filters": 1}
    assert [(each.type, each.source_item.sku, each.quantity, each.quota) for each in reply.adjustments] == [
        (Adjustment.TYPE_QUANTITY_CLAMPED, SKU, 1000, "quantity_per_item"),
        (Adjustment.TYPE_PRICE_DROPPED, SKU, 1000, ""),
        (Adjustment.TYPE_PRICE_DROPPED, "filters", 1, ""),
    ]
    first, _, last = reply.adjustments
    assert first.source_item.unit_price == cart_pb2.Money(currency_code="USD", minor_units=10_000)
    # A stored reply would keep the guest's id after the guest was erased.
    assert first.source_item.name == ""
    assert last.lost_unit_price == cart_pb2.Money(currency_code="USD", minor_units=100)
    assert last.item == next(item.name for item in reply.cart.items if item.sku == "filters")


@pytest.mark.parametrize("is_in_both", [False, True])
async def test_a_merge_during_calls_that_hang_ends_with_what_the_cart_says(service: Service, is_in_both: bool) -> None:
    service.gate.close()
    await service.add(quantity=2, cart=GUEST)
    await service.add("filters", cart=GUEST)
    if is_in_both:
        await service.add(quantity=3)
    await service.gate.until_waiting(1)
    reply = await merge(service)
    assert all(item.reservation.state == cart_pb2.Reservation.STATE_PENDING for item in reply.cart.items)
    service.gate.open()
    cart = await service.settled()
    wanted = {SKU: 5 if is_in_both else 2, "filters": 1}
    assert {item.sku: item.reservation.reserved_quantity for item in cart.items} == wanted
    await service.simulator.settle(10)
    assert {sku: service.simulator.levels(sku).held for sku in wanted} == wanted


async def test_an_item_that_is_removed_while_its_holds_are_joined_leaves_nothing_held(service: Service) -> None:
    await asyncio.gather(service.add(quantity=3), service.add(quantity=2, cart=GUEST))
    await asyncio.gather(service.settled(), service.settled(GUEST))
    service.gate.close()
    (item,) = (await merge(service)).cart.items
    await service.stub.RemoveItem(pb.RemoveItemRequest(name=item.name), timeout=10)
    service.gate.open()
    assert not (await service.settled()).items
    await service.simulator.settle(10)
    assert service.simulator.levels(SKU).held == 0


async def test_a_repeated_request_id_gets_the_same_bytes_and_the_guests_name_can_be_used_again(
    service: Service,
) -> None:
    call = service.channel.unary_unary(
        "/cartgrpc.v1.CartService/MergeCarts",
        request_serializer=pb.MergeCartsRequest.SerializeToString,
        response_deserializer=bytes,
    )
    await service.add(quantity=2, cart=GUEST)
    request = pb.MergeCartsRequest(name=CART, source=GUEST, request_id="login-1")
    first = await call(request, timeout=10)
    await service.add(quantity=4, cart=GUEST)
    assert await call(request, timeout=10) == first
    assert [item.quantity for item in (await service.get(GUEST)).items] == [4]
    again = await merge(service, request_id="login-2")
    assert [item.quantity for item in again.cart.items] == [6]


class TestTwoReplicas:
    @pytest.fixture
    def backend(self) -> str:
        """PostgreSQL: SQLite allows only one process."""
        return "postgresql"

    async def test_merges_in_opposite_directions_through_two_replicas_lose_nothing(
        self, settings: Settings, simulator: Simulator
    ) -> None:
        pairs = [(f"users/left-{number}/carts/a", f"users/right-{number}/carts/b") for number in range(10)]
        async with running_replica(settings) as first, running_replica(settings) as second:
            for left, right in pairs:
                await asyncio.gather(first.add("left", cart=left), second.add("right", cart=right))
            calls = [merge(first, left, right) for left, right in pairs]
            calls += [merge(second, right, left) for left, right in reversed(pairs)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert not [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
            for pair in pairs:
                carts = [await first.settled(name) for name in pair]
                # The second merge brings everything back to the cart that the first one had ended.
                [open_cart] = [cart for cart in carts if cart.state == cart_pb2.Cart.STATE_ACTIVE]
                assert sorted(item.sku for item in open_cart.items) == ["left", "right"]
                assert {item.reservation.state for item in open_cart.items} == {RESERVED}
        assert len(simulator.effects()) == 20
