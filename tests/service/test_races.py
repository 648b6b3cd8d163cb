"""Races between callers, restarts and late answers."""

import asyncio

import grpc
import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from cart_grpc.settings import Settings
from tests.service.conftest import CART, Replica, Service, running_replica

SKU = "espresso-beans"


async def add_bytes(replica: Replica, request_id: str, quantity: int = 1) -> bytes:
    """Call AddItem; return the reply's bytes."""
    call = replica.channel.unary_unary(
        "/cartgrpc.v1.CartService/AddItem",
        request_serializer=cart_service_pb2.AddItemRequest.SerializeToString,
        response_deserializer=bytes,
    )
    item = cart_pb2.Item(sku=SKU, quantity=quantity)
    reply: bytes = await call(
        cart_service_pb2.AddItemRequest(parent=CART, item=item, request_id=request_id), timeout=20
    )
    return reply


def revision_of(reply: bytes) -> int:
    return cart_service_pb2.AddItemResponse.FromString(reply).revision


async def test_fifty_concurrent_adds_sum_exactly(service: Service) -> None:
    items = await asyncio.gather(*(service.add() for _ in range(50)))
    assert sorted(item.quantity for item in items) == list(range(1, 51))
    cart = await service.get()
    assert (cart.item_count, cart.total_quantity, cart.items[0].quantity) == (1, 50, 50)
    assert len({item.uid for item in items}) == 1


async def test_fifty_concurrent_adds_lead_to_one_reservation_of_their_sum(service: Service) -> None:
    service.simulator.set_stock(SKU, 100)
    await asyncio.gather(*(service.add() for _ in range(50)))
    cart = await service.settled()
    assert cart.items[0].reservation.reserved_quantity == 50
    assert service.simulator.levels(SKU).held == 50


async def test_fifty_concurrent_calls_with_one_request_id_have_one_effect_and_equal_replies(
    service: Service,
) -> None:
    replies = await asyncio.gather(*(add_bytes(service, "r1") for _ in range(50)))
    assert len(set(replies)) == 1
    assert (await service.get()).total_quantity == 1


async def test_a_repeated_call_after_a_restart_gets_the_same_bytes(settings: Settings) -> None:
    async with running_replica(settings) as replica:
        first = await add_bytes(replica, "r1")
        await replica.settled()
        await replica.add()
    async with running_replica(settings) as replica:
        assert await add_bytes(replica, "r1") == first
        assert (await replica.get()).total_quantity == 2


async def test_a_request_id_with_another_body_is_refused(service: Service) -> None:
    await add_bytes(service, "r1")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await add_bytes(service, "r1", quantity=2)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await service.get()).total_quantity == 1


async def test_one_of_two_concurrent_writes_with_one_etag_is_aborted(service: Service) -> None:
    await service.add()
    etag = (await service.get()).etag
    attempts = await asyncio.gather(*(service.add(etag=etag) for _ in range(2)), return_exceptions=True)
    refusals = [attempt for attempt in attempts if isinstance(attempt, grpc.aio.AioRpcError)]
    assert [refusal.code() for refusal in refusals] == [grpc.StatusCode.ABORTED]
    assert (await service.get()).total_quantity == 2


async def test_the_reconciler_does_not_change_the_etag(service: Service) -> None:
    service.gate.close()
    await service.add()
    etag = (await service.get()).etag
    service.gate.open()
    cart = await service.settled()
    assert cart.etag == etag
    assert (await service.add(etag=etag)).quantity == 2


async def test_a_late_answer_for_an_old_quantity_changes_nothing(service: Service) -> None:
    service.gate.close()
    item = await service.add(quantity=5)
    await service.gate.until_waiting(1)
    mask = FieldMask(paths=["quantity"])
    request = cart_service_pb2.UpdateItemRequest(item=cart_pb2.Item(name=item.name, quantity=2), update_mask=mask)
    await service.stub.UpdateItem(request)
    service.gate.open()
    cart = await service.settled()
    assert cart.items[0].reservation.reserved_quantity == cart.items[0].quantity == 2
    assert service.simulator.levels(SKU).held == 2


async def test_each_visible_change_raises_the_carts_revision(service: Service) -> None:
    seen: dict[int, bytes] = {}
    done = asyncio.Event()

    async def watch() -> None:
        last = 0
        while not done.is_set():
            cart = await service.get()
            assert cart.revision >= last
            last = cart.revision
            for item in cart.items:
                # These fields change without a new revision: the work's progress, and a renewal's later expire_time.
                for field in ("attempt_count", "next_attempt_time", "message", "expire_time"):
                    item.reservation.ClearField(field)
            shown = cart.SerializeToString(deterministic=True)
            assert seen.setdefault(cart.revision, shown) == shown

    await service.add()
    watching = [asyncio.create_task(watch()) for _ in range(2)]
    for number in range(10):
        await service.add(f"sku-{number % 3}")
    await service.stub.ClearCart(cart_service_pb2.ClearCartRequest(name=CART))
    await service.settled()
    done.set()
    await asyncio.gather(*watching)
    assert len(seen) > 1


async def test_calls_that_are_cancelled_or_time_out_do_not_disturb_others_and_can_be_repeated(service: Service) -> None:
    async def give_up(number: int) -> None:
        request = cart_service_pb2.AddItemRequest(
            parent=CART, item=cart_pb2.Item(sku=SKU, quantity=1), request_id=f"gone-{number}"
        )
        call = service.stub.AddItem(request, timeout=20)
        for _ in range(number):
            await asyncio.sleep(0)
        call.cancel()

    async def run_out_of_time(number: int) -> None:
        request = cart_service_pb2.AddItemRequest(
            parent=CART, item=cart_pb2.Item(sku=SKU, quantity=1), request_id=f"late-{number}"
        )
        try:
            await service.stub.AddItem(request, timeout=0.001 * number)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # noqa: PT017

    stayed = [asyncio.create_task(service.add(request_id=f"stayed-{number}")) for number in range(30)]
    await asyncio.gather(*map(give_up, range(15)), *map(run_out_of_time, range(1, 16)))
    quantities = [item.quantity for item in await asyncio.gather(*stayed)]
    assert len(set(quantities)) == 30
    # Each cancelled call may or may not have had its effect. Repeated with its request_id, it has exactly one.
    for request_id in [f"gone-{n}" for n in range(15)] + [f"late-{n}" for n in range(1, 16)]:
        await add_bytes(service, request_id)
    cart = await service.get()
    assert cart.total_quantity == 60
