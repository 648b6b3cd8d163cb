"""The main path over both transports, with every fault of the network and the Reservation API."""

import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from cart_grpc.protocol.reservation import Observed
from cart_grpc.simulator.faults import Faults
from tests.service.conftest import CART, Service

SKU = "espresso-beans"
State = cart_pb2.Reservation.State
# Half an hour, by a clock that the gate controls.
LATENCY = 1_800_000_000
HEALTHY = Faults(latency_us=LATENCY)


@pytest.fixture(params=[("sqlite", "grpc"), ("postgresql", "http")], ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A database and a transport. They do not depend on each other, so two pairs prove as much as four."""
    database, transport = request.param
    return database, transport


@pytest.fixture
def backend(pair: tuple[str, str]) -> str:
    return pair[0]


@pytest.fixture
def transport(pair: tuple[str, str]) -> str:
    return pair[1]


async def until_called(service: Service, times: int = 3) -> None:
    """Wait until the Reservation API has received `times` calls."""
    await service.eventually(lambda _: service.simulator.call_count >= times)


async def assert_reserved_exactly(service: Service, quantity: int) -> None:
    """The item is reserved, and exactly that is held, also after every delayed message has arrived."""
    cart = await service.eventually(
        lambda cart: not cart.reconciling and cart.items[0].reservation.state == State.STATE_RESERVED
    )
    reservation = cart.items[0].reservation
    assert reservation.reserved_quantity == cart.items[0].quantity == quantity
    # Delayed and duplicated messages that arrive now change nothing.
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


async def test_an_add_answers_during_a_hanging_call(service: Service) -> None:
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
    # Ten units are not enough for both: the second hold waits for the release of the first.
    await assert_reserved_exactly(service, 7)


async def test_an_item_is_reserved_after_the_api_comes_back(service: Service) -> None:
    service.simulator.faults = Faults(down=True)
    await service.add(quantity=2)
    await until_called(service)
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
    ids=["lost before effect", "lost after effect", "garbage", "duplicated garbage", "throttled"],
)
async def test_a_call_without_a_usable_answer_is_retried_until_it_has_one(service: Service, faults: Faults) -> None:
    service.simulator.faults = faults
    await service.add(quantity=2)
    await until_called(service, 1 if faults.throttled else 3)
    assert (await service.get()).items[0].reservation.state == State.STATE_PENDING
    await service.add(quantity=1)
    service.simulator.faults = HEALTHY
    await assert_reserved_exactly(service, 3)


async def test_duplicates_that_arrive_late_change_nothing(service: Service) -> None:
    service.simulator.faults = Faults(duplicated=1.0, duplicate_delay_us=LATENCY)
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
    await until_called(service)
    # The seal is refused, too: the item must not show as rejected yet.
    assert (await service.get()).items[0].reservation.state == State.STATE_PENDING
    service.simulator.faults = HEALTHY
    cart = await service.settled()
    rejected = cart.items[0].reservation
    assert (rejected.state, rejected.reason) == (State.STATE_REJECTED, "SIMULATED_REFUSAL")
    assert service.simulator.levels(SKU).held == 0
    await service.stub.RetryReservation(cart_service_pb2.RetryReservationRequest(name=item.name))
    await assert_reserved_exactly(service, 2)


async def test_a_refused_change_keeps_the_previous_hold(service: Service) -> None:
    await service.add(quantity=2)
    await assert_reserved_exactly(service, 2)
    service.simulator.faults = Faults(refused=1.0)
    await service.add(quantity=3)
    await until_called(service, 2)
    service.simulator.faults = HEALTHY
    cart = await service.settled()
    assert cart.items[0].reservation.state == State.STATE_REJECTED
    held = service.simulator.levels(SKU).held
    assert cart.items[0].reservation.reserved_quantity == held


async def test_the_final_quantity_is_exact_in_spite_of_all_faults_at_once(service: Service) -> None:
    service.simulator.faults = Faults(
        lost_before_effect=0.3, lost_after_effect=0.3, duplicated=0.3, garbage=0.2, duplicate_delay_us=LATENCY
    )
    for _ in range(6):
        calls = service.simulator.call_count
        await service.add(quantity=1)
        await until_called(service, calls + 1)
    service.simulator.faults = HEALTHY
    await assert_reserved_exactly(service, 6)


async def test_a_cart_is_sold_exactly_once_in_spite_of_lost_and_repeated_messages(service: Service) -> None:
    await service.add(quantity=2)
    await assert_reserved_exactly(service, 2)
    wait = Duration(seconds=10)
    begin = cart_service_pb2.BeginCheckoutRequest(name=CART, window=Duration(seconds=3600), max_wait=wait)
    checkout = (await service.stub.BeginCheckout(begin)).checkout
    assert checkout.ready
    service.simulator.faults = Faults(lost_after_effect=1.0, duplicated=1.0, duplicate_delay_us=1)
    complete = cart_service_pb2.CompleteCheckoutRequest(name=checkout.name, order_reference="order-1")
    await service.stub.CompleteCheckout(complete)
    calls = service.simulator.call_count
    await until_called(service, calls + 3)
    read = cart_service_pb2.GetCheckoutRequest(name=checkout.name)
    assert (await service.stub.GetCheckout(read)).checkout.state == cart_pb2.Checkout.STATE_COMPLETING
    service.simulator.faults = HEALTHY
    complete.max_wait.CopyFrom(wait)
    sold = (await service.stub.CompleteCheckout(complete)).checkout
    assert (sold.state, sold.items[0].reservation.state) == (
        cart_pb2.Checkout.STATE_COMPLETED, State.STATE_COMMITTED,
    )  # fmt: skip
    assert await service.simulator.settle(10)
    levels = service.simulator.levels(SKU)
    assert (levels.held, levels.committed) == (0, 2)
