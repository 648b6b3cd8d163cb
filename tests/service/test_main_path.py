"""The README's promises on both databases: an item is added at once, and its reservation follows."""

import asyncio

import grpc
import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2, cart_service_pb2_grpc
from google.protobuf.duration_pb2 import Duration

from cart_grpc import app
from cart_grpc.protocol.reservation import Observed
from cart_grpc.settings import Settings
from cart_grpc.simulator.faults import Faults
from tests.gate import Gate
from tests.service.conftest import CART, Service

State = cart_pb2.Reservation.State


async def test_adds_answer_at_once_while_a_reservation_takes_30_seconds(service: Service) -> None:
    service.gate.close()
    item = await service.add(quantity=2)
    assert item.reservation.state == State.STATE_PENDING
    await service.gate.until_waiting(1)
    assert (await service.get()).items[0].reservation.state == State.STATE_PENDING
    second = await service.add("filters", quantity=1)
    assert second.reservation.state == State.STATE_PENDING
    service.gate.open()
    cart = await service.settled()
    assert [line.reservation.state for line in cart.items] == [State.STATE_RESERVED] * 2
    assert cart.items[0].reservation.reserved_quantity == 2
    assert cart.items[0].reservation.HasField("expire_time")


async def test_adding_a_sku_again_grows_its_item_and_reservation(service: Service) -> None:
    first = await service.add(quantity=2)
    await service.settled()
    again = await service.add(quantity=2)
    assert (again.name, again.uid, again.quantity) == (first.name, first.uid, 4)
    cart = await service.settled()
    assert cart.item_count == 1
    assert cart.items[0].reservation.reserved_quantity == 4
    assert cart.items[0].reservation.reservation_id == first.reservation.reservation_id
    assert service.simulator.levels("espresso-beans").held == 4


async def test_items_with_different_options_are_different_items(service: Service) -> None:
    for ground in ("coarse", "fine", "coarse"):
        item = cart_pb2.Item(sku="espresso-beans", options={"ground": ground})
        await service.stub.AddItem(cart_service_pb2.AddItemRequest(parent=CART, item=item))
    cart = await service.settled()
    assert sorted((item.options["ground"], item.quantity) for item in cart.items) == [("coarse", 2), ("fine", 1)]


async def test_all_quantity_changes_during_a_hanging_call_become_one_more_call(service: Service) -> None:
    service.gate.close()
    await service.add()
    await service.gate.until_waiting(1)
    for _ in range(5):
        await service.add()
    service.gate.open()
    cart = await service.settled()
    assert cart.items[0].reservation.reserved_quantity == 6
    assert service.simulator.call_count == 2


async def test_an_item_removed_during_its_reservation_call_holds_no_stock_in_the_end(service: Service) -> None:
    service.gate.close()
    item = await service.add(quantity=3)
    await service.gate.until_waiting(1)
    removed = await service.stub.RemoveItem(cart_service_pb2.RemoveItemRequest(name=item.name))
    assert removed.reconciling
    # The release does not wait for the hanging hold.
    await service.gate.until_waiting(2)
    service.gate.open()
    await service.settled()
    await service.simulator.settle(10)
    assert service.simulator.levels("espresso-beans").held == 0
    assert service.simulator.get(item.reservation.reservation_id).state is Observed.RELEASED


async def test_items_stay_pending_while_the_reservation_api_is_down_and_are_reserved_after_it(
    service: Service,
) -> None:
    service.simulator.faults = Faults(latency_us=30_000_000, down=True)
    item = await service.add()
    assert item.reservation.state == State.STATE_PENDING
    tried = await service.eventually(lambda cart: "UNAVAILABLE" in cart.items[0].reservation.message)
    assert tried.items[0].reservation.state == State.STATE_PENDING
    service.simulator.faults = Faults(latency_us=30_000_000)
    cart = await service.settled()
    assert cart.items[0].reservation.state == State.STATE_RESERVED


async def test_an_item_out_of_stock_is_rejected_with_a_reason_and_can_be_retried(service: Service) -> None:
    item = await service.add(quantity=11)
    cart = await service.settled()
    rejected = cart.items[0].reservation
    assert (rejected.state, rejected.reason) == (State.STATE_REJECTED, "OUT_OF_STOCK")
    service.simulator.set_stock("espresso-beans", 20)
    request = cart_service_pb2.RetryReservationRequest(name=item.name, max_wait=Duration(seconds=10))
    retried = await service.stub.RetryReservation(request)
    assert retried.item.reservation.state == State.STATE_RESERVED


async def test_a_retry_of_a_reserved_item_changes_nothing(service: Service) -> None:
    item = await service.add()
    before = await service.settled()
    await service.stub.RetryReservation(cart_service_pb2.RetryReservationRequest(name=item.name))
    assert await service.get() == before


async def test_max_wait_answers_with_the_settled_reservation(service: Service) -> None:
    request = cart_service_pb2.AddItemRequest(
        parent=CART, item=cart_pb2.Item(sku="espresso-beans"), max_wait=Duration(seconds=10)
    )
    response = await service.stub.AddItem(request)
    assert response.item.reservation.state == State.STATE_RESERVED
    assert not response.item.reconciling


async def test_the_end_of_max_wait_is_no_error(service: Service) -> None:
    service.gate.close()
    request = cart_service_pb2.AddItemRequest(
        parent=CART, item=cart_pb2.Item(sku="espresso-beans"), max_wait=Duration(nanos=100_000_000)
    )
    response = await service.stub.AddItem(request)
    assert response.item.reservation.state == State.STATE_PENDING


async def test_a_user_cannot_see_another_users_carts(service: Service) -> None:
    await service.add()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await service.get("users/bob/carts/default")
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    listed = await service.stub.ListCarts(cart_service_pb2.ListCartsRequest(parent="users/bob"))
    assert not listed.carts


async def test_a_call_in_max_wait_is_answered_when_the_server_begins_to_stop(settings: Settings, gate: Gate) -> None:
    gate.close()
    async with app.running(settings.with_changes(shutdown_grace=10), serve=True, reconcile=True) as server:
        assert server is not None
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
        request = cart_service_pb2.AddItemRequest(
            parent=CART, item=cart_pb2.Item(sku="espresso-beans"), max_wait=Duration(seconds=50)
        )
        stub: cart_service_pb2_grpc.CartServiceAsyncStub = cart_service_pb2_grpc.CartServiceStub(channel)
        waiting = asyncio.ensure_future(stub.AddItem(request))
        await gate.until_waiting(1)
    # At the end of the grace period, the server would cancel a call that still waits.
    assert (await waiting).item.reservation.state == State.STATE_PENDING
    await channel.close()
    gate.open()
