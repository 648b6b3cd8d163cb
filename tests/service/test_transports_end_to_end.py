"""The main path over both transports, through everything that goes wrong between us and the Reservation API."""

import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from cart_grpc.protocol.reservation import Observed
from cart_grpc.simulator.faults import Faults
from tests.service.conftest import Service

SKU = "espresso-beans"
State = cart_pb2.Reservation.State
# Half an hour that the gate decides on.
LATENCY = 1_800_000_000
HEALTHY = Faults(latency=LATENCY)


@pytest.fixture(params=[("sqlite", "grpc"), ("postgresql", "http")], ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A database and a transport: neither knows of the other, so two pairs say as much as four."""
    database, transport = request.param
    return database, transport


@pytest.fixture
def backend(pair: tuple[str, str]) -> str:
    return pair[0]


@pytest.fixture
def transport(pair: tuple[str, str]) -> str:
    return pair[1]


async def tried(service: Service, times: int = 3) -> None:
    """Return once the Reservation API has been called so often."""
    await service.eventually(lambda _: service.simulator.call_count >= times)


async def assert_reserved_exactly(service: Service, quantity: int) -> None:
    """The item is reserved, and of what was ever decided exactly that is held."""
    cart = await service.eventually(
        lambda cart: not cart.reconciling and cart.items[0].reservation.state == State.STATE_RESERVED
    )
    reservation = cart.items[0].reservation
    assert reservation.reserved_quantity == cart.items[0].quantity == quantity
    # What is still on its way, doubled messages among it, changes nothing any more.
    assert await service.simulator.settle(10)
    assert service.simulator.levels(SKU).held == quantity
    assert service.simulator.get(reservation.reservation_id).granted == quantity
    assert (await service.get()).items[0].reservation.state == State.STATE_RESERVED


async def test_an_item_is_reserved_grows_shrinks_and_is_released(service: Service) -> None:
    item = await service.add(quantity=2)
    assert item.reservation.state == State.STATE_PENDING
    await assert_reserved_exactly(service, 2)
    await service.add(quantity=3)
    await assert_reserved_exactly(service, 5)
    request = cart_service_pb2.UpdateItemRequest(
        item=cart_pb2.Item(name=item.name, quantity=1), update_mask=FieldMask(paths=["quantity"])
    )
    await service.stub.UpdateItem(request)
    await assert_reserved_exactly(service, 1)
    await service.stub.RemoveItem(cart_service_pb2.RemoveItemRequest(name=item.name))
    await service.settled()
    assert service.simulator.levels(SKU).held == 0
    assert service.simulator.get(item.reservation.reservation_id).state is Observed.RELEASED


async def test_an_add_answers_while_the_reservation_hangs(service: Service) -> None:
    service.gate.close()
    await service.add(quantity=2)
    await service.gate.until_waiting(1)
    assert (await service.add(quantity=2)).reservation.state == State.STATE_PENDING
    service.gate.open()
    await assert_reserved_exactly(service, 4)


async def test_an_item_added_again_while_its_first_hold_hangs_is_reserved_once(service: Service) -> None:
    service.gate.close()
    item = await service.add(quantity=7)
    await service.gate.until_waiting(1)
    await service.stub.RemoveItem(cart_service_pb2.RemoveItemRequest(name=item.name))
    again = await service.add(quantity=7)
    assert again.reservation.reservation_id != item.reservation.reservation_id
    service.gate.open()
    # Of ten there are not enough for both: the second waits for the first to be released.
    await assert_reserved_exactly(service, 7)


async def test_an_api_that_is_down_is_waited_for(service: Service) -> None:
    service.simulator.faults = Faults(down=True)
    await service.add(quantity=2)
    await tried(service)
    assert (await service.get()).items[0].reservation.state == State.STATE_PENDING
    service.simulator.faults = HEALTHY
    await assert_reserved_exactly(service, 2)


@pytest.mark.parametrize(
    "faults",
    [
        Faults(lost_before_effect=1.0),
        Faults(lost_after_effect=1.0),
        Faults(garbage=1.0),
        Faults(garbage=1.0, duplicated=1.0),
        Faults(throttled=1.0),
    ],
    ids=["lost before effect", "lost after effect", "garbage", "doubled garbage", "throttled"],
)
async def test_what_gets_no_answer_that_can_be_believed_is_tried_until_it_does(
    service: Service, faults: Faults
) -> None:
    service.simulator.faults = faults
    await service.add(quantity=2)
    await tried(service, 1 if faults.throttled else 3)
    assert (await service.get()).items[0].reservation.state == State.STATE_PENDING
    await service.add(quantity=1)
    service.simulator.faults = HEALTHY
    await assert_reserved_exactly(service, 3)


async def test_messages_that_arrive_again_later_change_nothing(service: Service) -> None:
    service.simulator.faults = Faults(duplicated=1.0, duplicate_delay=LATENCY)
    service.gate.close()
    item = await service.add(quantity=1)
    for _ in range(2):
        await service.add(quantity=1)
    await service.gate.until_waiting(1)
    service.gate.open()
    await assert_reserved_exactly(service, 3)
    await service.stub.RemoveItem(cart_service_pb2.RemoveItemRequest(name=item.name))
    await service.settled()
    assert await service.simulator.settle(10)
    assert service.simulator.levels(SKU).held == 0


async def test_a_refusal_is_sealed_before_it_is_shown_and_a_retry_reserves_once(service: Service) -> None:
    service.simulator.faults = Faults(refused=1.0)
    item = await service.add(quantity=2)
    await tried(service)
    # The seal is refused as well: nothing may be shown as rejected yet.
    assert (await service.get()).items[0].reservation.state == State.STATE_PENDING
    service.simulator.faults = HEALTHY
    cart = await service.settled()
    rejected = cart.items[0].reservation
    assert (rejected.state, rejected.reason) == (State.STATE_REJECTED, "SIMULATED_REFUSAL")
    assert service.simulator.levels(SKU).held == 0
    await service.stub.RetryReservation(cart_service_pb2.RetryReservationRequest(name=item.name))
    await assert_reserved_exactly(service, 2)


async def test_a_refused_change_keeps_what_was_reserved(service: Service) -> None:
    await service.add(quantity=2)
    await assert_reserved_exactly(service, 2)
    service.simulator.faults = Faults(refused=1.0)
    await service.add(quantity=3)
    await tried(service, 2)
    service.simulator.faults = HEALTHY
    cart = await service.settled()
    assert cart.items[0].reservation.state == State.STATE_REJECTED
    held = service.simulator.levels(SKU).held
    assert cart.items[0].reservation.reserved_quantity == held


async def test_with_every_fault_at_once_the_end_is_still_exact(service: Service) -> None:
    service.simulator.faults = Faults(
        lost_before_effect=0.3, lost_after_effect=0.3, duplicated=0.3, garbage=0.2, duplicate_delay=LATENCY
    )
    for _ in range(6):
        await service.add(quantity=1)
        await tried(service, service.simulator.call_count + 1)
    service.simulator.faults = HEALTHY
    await assert_reserved_exactly(service, 6)
