"""The whole service on the basic contract: a repeated POST reserves twice, and a POST may take effect late."""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise

import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from cart_grpc.metrics import ALARMS, DUPLICATES
from cart_grpc.settings import Settings
from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.rules import StoredReservation
from cart_grpc.simulator.simulator import Simulator
from cart_grpc.simulator.stock import Stock
from tests.counting import counting
from tests.gate import Gate
from tests.service.conftest import CART, Service, running_replica

SKU = "espresso-beans"
TIMEOUT = GRACE = 0.4
# Each call waits while the gate is closed.
SLOW = Faults(latency_us=1)
State = cart_pb2.Reservation.State


class Basic(Simulator):
    """A simulator with faults for POSTs only. `posts` has the arrival times of the POSTs by id."""

    post_faults = Faults()

    def __init__(self, gate: Gate) -> None:
        super().__init__(
            Stock(default_total=10),
            faults=Faults(),
            numbers=random.Random(1),
            clock=lambda: time.time_ns() // 1000,
            sleep=gate.sleep,
        )
        self.posts: defaultdict[str, list[float]] = defaultdict(list)

    async def reserve(self, read: Callable[[], tuple[str, str, int]]) -> StoredReservation | None:
        self.posts[read()[0]].append(time.monotonic())
        healthy, self.faults = self.faults, self.post_faults
        posting = asyncio.ensure_future(super().reserve(read))
        # The fault is chosen when the task starts.
        await asyncio.sleep(0)
        self.faults = healthy
        return await posting

    @property
    def held(self) -> int:
        """The number of units held."""
        return self.levels(SKU).held

    @property
    def post_count(self) -> int:
        """The number of POSTs that arrived."""
        return sum(map(len, self.posts.values()))


@pytest.fixture
def transport() -> str:
    return "basic"


@pytest.fixture
async def simulator(gate: Gate) -> Basic:
    return Basic(gate)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.with_changes(reservation_timeout=TIMEOUT, reservation_grace=GRACE)


async def item_in(service: Service, state: "State.ValueType") -> cart_pb2.Item:
    """Wait until the only item's reservation is in `state`, and return the item."""
    return (await service.eventually(lambda cart: cart.items[0].reservation.state == state)).items[0]


async def assert_reserved_exactly(service: Service, simulator: Basic, quantity: int) -> None:
    """The item is reserved, and exactly that is held, also after every delayed message has arrived."""
    item = await item_in(service, State.STATE_RESERVED)
    assert item.reservation.reserved_quantity == item.quantity == quantity
    assert not item.reservation.HasField("expire_time")
    await service.eventually(lambda _: simulator.pending_count == 0 and simulator.held == quantity)
    await item_in(service, State.STATE_RESERVED)


async def until_alarm(service: Service, log: pytest.LogCaptureFixture) -> None:
    """Wait until the log has an alarm for one reservation too many."""
    await service.eventually(lambda _: "ALARM" in log.text and "1 surplus reservations" in log.text)


async def remove(service: Service, item: cart_pb2.Item) -> None:
    await service.stub.RemoveItem(cart_service_pb2.RemoveItemRequest(name=item.name))


async def test_an_item_is_reserved_grows_shrinks_and_is_released(service: Service, simulator: Basic) -> None:
    item = await service.add(quantity=2)
    await assert_reserved_exactly(service, simulator, 2)
    # Ten units are not enough for the old and the new quantity at the same time.
    await service.add(quantity=6)
    await assert_reserved_exactly(service, simulator, 8)
    request = cart_service_pb2.UpdateItemRequest(
        item=cart_pb2.Item(name=item.name, quantity=1), update_mask=FieldMask(paths=["quantity"])
    )
    await service.stub.UpdateItem(request)
    await assert_reserved_exactly(service, simulator, 1)
    await remove(service, item)
    await service.settled()
    assert simulator.held == 0


async def test_a_lost_post_is_uncertain_until_a_lookup_finds_nothing_and_is_then_repeated(
    service: Service, simulator: Basic
) -> None:
    simulator.post_faults = Faults(lost_before_effect=1)
    await service.add(quantity=2)
    item = await item_in(service, State.STATE_UNCERTAIN)
    assert (item.reservation.reserved_quantity, item.reconciling) == (0, True)
    assert item.reservation.HasField("next_attempt_time")
    simulator.post_faults = Faults()
    await assert_reserved_exactly(service, simulator, 2)
    [posts] = simulator.posts.values()
    assert all(later - earlier > GRACE for earlier, later in pairwise(posts))


async def test_a_post_with_a_lost_answer_is_found_and_adopted(service: Service, simulator: Basic) -> None:
    simulator.post_faults = Faults(lost_after_effect=1)
    await service.add(quantity=2)
    await item_in(service, State.STATE_UNCERTAIN)
    await assert_reserved_exactly(service, simulator, 2)
    assert simulator.post_count == 1


@pytest.mark.parametrize("faults", [Faults(garbage=1), Faults(throttled=1)], ids=["garbage", "throttled"])
async def test_an_unusable_answer_is_uncertain(service: Service, simulator: Basic, faults: Faults) -> None:
    simulator.post_faults = faults
    await service.add(quantity=2)
    await item_in(service, State.STATE_UNCERTAIN)
    simulator.post_faults = Faults()
    await assert_reserved_exactly(service, simulator, 2)


async def test_a_post_that_takes_effect_within_the_grace_period_is_adopted(
    service: Service, simulator: Basic, gate: Gate
) -> None:
    gate.close()
    simulator.post_faults = SLOW
    await service.add(quantity=2)
    await gate.until_waiting(1)
    # When the call has timed out. A look at the item's state could come after the grace, on a busy machine.
    asyncio.get_running_loop().call_later(TIMEOUT + GRACE / 2, gate.open)
    await assert_reserved_exactly(service, simulator, 2)
    assert simulator.post_count == 1


async def test_a_post_that_takes_effect_after_the_grace_period_is_found_and_undone(
    service: Service, simulator: Basic, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    gate.close()
    simulator.post_faults = SLOW
    await service.add(quantity=2)
    await gate.until_waiting(1)
    simulator.post_faults = Faults()
    await item_in(service, State.STATE_RESERVED)
    assert simulator.held == 2
    gate.open()
    await service.eventually(lambda _: simulator.held == 4)
    await assert_reserved_exactly(service, simulator, 2)
    await until_alarm(service, caplog)


async def test_a_post_that_arrives_twice_is_found_and_undone(
    service: Service, simulator: Basic, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    gate.close()
    simulator.post_faults = Faults(duplicated=1, duplicate_delay_us=1)
    await service.add(quantity=2)
    await item_in(service, State.STATE_RESERVED)
    with counting(DUPLICATES), counting(ALARMS):
        gate.open()
        await service.eventually(lambda _: simulator.held == 4)
        await assert_reserved_exactly(service, simulator, 2)
        await until_alarm(service, caplog)


async def test_an_item_stays_pending_while_the_api_refuses_connections_and_is_then_reserved_once(
    service: Service, simulator: Basic
) -> None:
    simulator.faults = Faults(down=True)
    await service.add(quantity=2)
    await service.eventually(lambda _: simulator.call_count >= 3)
    assert (await service.get()).items[0].reservation.state == State.STATE_PENDING
    simulator.faults = Faults()
    await assert_reserved_exactly(service, simulator, 2)
    assert simulator.post_count == 1


async def test_an_item_removed_during_its_post_is_released_after_it(
    service: Service, simulator: Basic, gate: Gate
) -> None:
    gate.close()
    simulator.post_faults = SLOW
    item = await service.add(quantity=2)
    await gate.until_waiting(1)
    await remove(service, item)
    cart = await service.get()
    assert (len(cart.items), cart.reconciling) == (0, True)
    gate.open()
    await service.eventually(lambda _: simulator.held == 2 or simulator.pending_count == 0)
    await service.settled()
    assert simulator.held == 0


async def test_an_answered_call_needs_no_grace_period(settings: Settings, simulator: Basic, gate: Gate) -> None:
    patient = settings.with_changes(reservation_timeout=60.0, reservation_grace=60.0)
    async with running_replica(patient) as replica:
        await replica.add(quantity=1)
        await replica.settled()
        item = await replica.add(quantity=1)
        await replica.settled()
        gate.close()
        simulator.post_faults = SLOW
        await replica.add(quantity=1)
        await gate.until_waiting(1)
        await replica.stub.RemoveItem(cart_service_pb2.RemoveItemRequest(name=item.name))
        gate.open()
        await replica.settled()
    assert (simulator.held, simulator.post_count) == (0, 3)


async def test_a_removed_item_is_looked_up_again_after_its_release(
    service: Service, simulator: Basic, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    gate.close()
    simulator.post_faults = SLOW
    item = await service.add(quantity=2)
    await gate.until_waiting(1)
    await remove(service, item)
    await service.settled()
    assert simulator.held == 0
    gate.open()
    await service.eventually(lambda _: simulator.pending_count == 0)
    await service.eventually(lambda _: simulator.held == 0)
    await until_alarm(service, caplog)


async def test_an_item_added_again_waits_for_the_first_ones_release(
    service: Service, simulator: Basic, gate: Gate
) -> None:
    gate.close()
    simulator.post_faults = SLOW
    item = await service.add(quantity=7)
    await gate.until_waiting(1)
    await remove(service, item)
    await service.add(quantity=7)
    gate.open()
    await assert_reserved_exactly(service, simulator, 7)


@pytest.mark.parametrize("faults", [Faults(refused=1), Faults(out_of_stock=1)], ids=["refused", "out of stock"])
async def test_a_refused_item_holds_nothing_and_can_be_retried(
    service: Service, simulator: Basic, faults: Faults
) -> None:
    simulator.post_faults = faults
    item = await service.add(quantity=2)
    rejected = await item_in(service, State.STATE_REJECTED)
    assert rejected.reservation.reason in ("SIMULATED_REFUSAL", "OUT_OF_STOCK")
    assert simulator.held == 0
    simulator.post_faults = Faults()
    await service.stub.RetryReservation(cart_service_pb2.RetryReservationRequest(name=item.name))
    await assert_reserved_exactly(service, simulator, 2)


async def test_a_refused_change_restores_the_previous_reservation(service: Service, simulator: Basic) -> None:
    await service.add(quantity=2)
    await assert_reserved_exactly(service, simulator, 2)
    await service.add(quantity=9)
    rejected = await item_in(service, State.STATE_REJECTED)
    assert (rejected.reservation.reason, rejected.reservation.reserved_quantity) == ("OUT_OF_STOCK", 2)
    assert simulator.held == 2


async def test_a_post_interrupted_by_a_restart_is_awaited_and_adopted(
    settings: Settings, simulator: Basic, gate: Gate
) -> None:
    gate.close()
    simulator.post_faults = SLOW
    slow = settings.with_changes(reservation_timeout=2.0, shutdown_grace=0.1)
    async with running_replica(slow) as first:
        await first.add(quantity=2)
        await gate.until_waiting(1)
    async with running_replica(slow) as second:
        item = (await second.eventually(lambda cart: cart.items[0].reservation.state == State.STATE_UNCERTAIN)).items[0]
        assert item.reservation.attempt_count <= 1
        gate.open()
        await second.eventually(lambda cart: cart.items[0].reservation.state == State.STATE_RESERVED)
    assert (simulator.held, simulator.post_count) == (2, 1)


async def test_the_final_quantity_is_exact_in_spite_of_all_faults_at_once(service: Service, simulator: Basic) -> None:
    simulator.faults = Faults(lost_before_effect=0.2, lost_after_effect=0.2, garbage=0.1)
    simulator.post_faults = Faults(lost_before_effect=0.3, lost_after_effect=0.3, garbage=0.2, duplicated=0.3)
    for _ in range(4):
        await service.add(quantity=1)
        before = simulator.call_count
        await service.eventually(lambda _: simulator.call_count > before)  # noqa: B023 - called at once
    simulator.faults = simulator.post_faults = Faults()
    await assert_reserved_exactly(service, simulator, 4)


class TestTwoReplicas:
    """On PostgreSQL; SQLite allows only one process."""

    @pytest.fixture
    def backend(self) -> str:
        return "postgresql"

    async def test_two_replicas_never_have_two_attempts_open(self, service: Service, simulator: Basic) -> None:
        simulator.post_faults = Faults(lost_before_effect=0.5, lost_after_effect=0.3)
        async with running_replica(service.settings.with_changes(reservation_lease=1.0)) as other:
            replicas = (service, other)
            carts = [f"{CART}-{number}" for number in range(8)]
            await asyncio.gather(
                *(replicas[number % 2].add(quantity=1, cart=cart) for number, cart in enumerate(carts))
            )
            for cart in carts:
                await other.eventually(lambda seen: seen.items[0].reservation.state == State.STATE_RESERVED, cart)
        assert simulator.held == 8
        assert simulator.post_count > 8
        assert len(simulator.posts) == 8
        for posts in simulator.posts.values():
            assert all(later - earlier > GRACE for earlier, later in pairwise(posts))


async def test_a_cart_is_sold_without_another_call_and_its_reservation_is_never_released(service: Service) -> None:
    await service.add(SKU, 2)
    await item_in(service, State.STATE_RESERVED)
    wait = Duration(seconds=10)
    begin = cart_service_pb2.BeginCheckoutRequest(name=CART, max_wait=wait)
    checkout = (await service.stub.BeginCheckout(begin)).checkout
    assert checkout.ready
    complete = cart_service_pb2.CompleteCheckoutRequest(name=checkout.name, order_reference="o", max_wait=wait)
    sold = (await service.stub.CompleteCheckout(complete)).checkout
    assert (sold.state, sold.items[0].reservation.state) == (
        cart_pb2.Checkout.STATE_COMPLETED, State.STATE_COMMITTED,
    )  # fmt: skip
    # The next cart's reservation of the same sku does not touch it.
    item = await service.add(SKU, 1)
    await service.stub.RemoveItem(cart_service_pb2.RemoveItemRequest(name=item.name))
    await service.settled()
    assert service.simulator.levels(SKU).held == 2
