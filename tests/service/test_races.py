"""Callers, replicas and answers that get in each other's way."""

import asyncio

import grpc
import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from cart_grpc.settings import Settings
from tests.service.conftest import CART, Replica, Service, running_replica

SKU = "espresso-beans"


async def add_bytes(replica: Replica, request_id: str, quantity: int = 1) -> bytes:
    """AddItem, the answer exactly as it came over the wire."""
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


async def test_fifty_concurrent_adds_of_one_item_sum_exactly(service: Service) -> None:
    items = await asyncio.gather(*(service.add() for _ in range(50)))
    assert sorted(item.quantity for item in items) == list(range(1, 51))
    cart = await service.get()
    assert (cart.item_count, cart.total_quantity, cart.items[0].quantity) == (1, 50, 50)
    assert len({item.uid for item in items}) == 1


async def test_fifty_concurrent_adds_end_with_one_reservation_of_their_sum(service: Service) -> None:
    service.simulator.set_stock(SKU, 100)
    await asyncio.gather(*(service.add() for _ in range(50)))
    cart = await service.settled()
    assert cart.items[0].reservation.reserved_quantity == 50
    assert service.simulator.levels(SKU).held == 50


async def test_the_same_request_id_fifty_times_at_once_is_one_effect_and_fifty_equal_answers(
    service: Service,
) -> None:
    replies = await asyncio.gather(*(add_bytes(service, "r1") for _ in range(50)))
    assert len(set(replies)) == 1
    assert (await service.get()).total_quantity == 1


async def test_a_replay_after_a_restart_gives_the_same_bytes(settings: Settings) -> None:
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


async def test_of_two_read_modify_writes_at_once_one_wins_and_the_other_is_aborted(service: Service) -> None:
    await service.add()
    etag = (await service.get()).etag
    attempts = await asyncio.gather(*(service.add(etag=etag) for _ in range(2)), return_exceptions=True)
    refusals = [attempt for attempt in attempts if isinstance(attempt, grpc.aio.AioRpcError)]
    assert [refusal.code() for refusal in refusals] == [grpc.StatusCode.ABORTED]
    assert (await service.get()).total_quantity == 2


async def test_the_reconciler_never_makes_an_etag_fail(service: Service) -> None:
    service.gate.close()
    await service.add()
    etag = (await service.get()).etag
    service.gate.open()
    cart = await service.settled()
    assert cart.etag == etag
    assert (await service.add(etag=etag)).quantity == 2


async def test_an_answer_for_an_old_quantity_that_arrives_late_changes_nothing(service: Service) -> None:
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


async def test_the_carts_revision_strictly_rises_with_each_visible_change(service: Service) -> None:
    seen: dict[int, bytes] = {}
    done = asyncio.Event()

    async def watch() -> None:
        last = 0
        while not done.is_set():
            cart = await service.get()
            assert cart.revision >= last
            last = cart.revision
            for item in cart.items:
                # Not part of what a revision stands for: they tell of the work, not of its result; nor does a hold that
                # lasts longer than before, as renewals make it.
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


async def test_a_caller_that_gives_up_loses_nothing_and_breaks_nobody_elses_answer(service: Service) -> None:
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
    # Whether it was done or not, the same request_id settles it: one effect for each.
    for request_id in [f"gone-{n}" for n in range(15)] + [f"late-{n}" for n in range(1, 16)]:
        await add_bytes(service, request_id)
    cart = await service.get()
    assert cart.total_quantity == 60
