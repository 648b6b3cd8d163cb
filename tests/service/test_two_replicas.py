"""Two replicas agree through one PostgreSQL database and need nothing else."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2

from cart_grpc.protocol.reservation import Observed
from cart_grpc.settings import Settings
from cart_grpc.simulator.simulator import Simulator
from tests.service.conftest import CART, Replica, running_replica
from tests.service.test_races import SKU, add_bytes


@pytest.fixture
def backend() -> str:
    """PostgreSQL: SQLite allows only one process."""
    return "postgresql"


@pytest.fixture
async def replicas(settings: Settings, simulator: Simulator) -> AsyncIterator[tuple[Replica, Replica]]:
    simulator.set_stock(SKU, 100)
    async with running_replica(settings) as first, running_replica(settings) as second:
        yield first, second


async def test_concurrent_adds_through_two_replicas_sum_exactly_and_are_reserved_once(
    replicas: tuple[Replica, Replica], simulator: Simulator
) -> None:
    items = await asyncio.gather(*(replica.add() for replica in replicas for _ in range(25)))
    assert sorted(item.quantity for item in items) == list(range(1, 51))
    for replica in replicas:
        cart = await replica.settled()
        assert cart.items[0].reservation.reserved_quantity == 50
    assert simulator.levels(SKU).held == 50


async def test_a_repeated_read_through_one_replica_shows_the_others_changes_at_once(
    replicas: tuple[Replica, Replica],
) -> None:
    first, second = replicas
    for quantity in range(1, 6):
        await second.add()
        assert (await first.get()).items[0].quantity == quantity
        settled = await first.settled()
        assert await first.get() == settled


async def test_one_request_id_through_both_replicas_has_one_effect_and_equal_replies(
    replicas: tuple[Replica, Replica],
) -> None:
    replies = await asyncio.gather(*(add_bytes(replica, "r1") for replica in replicas for _ in range(25)))
    assert len(set(replies)) == 1
    assert (await replicas[0].get()).total_quantity == 1


async def test_adds_and_removals_through_both_replicas_end_with_stock_that_matches_the_carts(
    replicas: tuple[Replica, Replica], simulator: Simulator
) -> None:
    async def shop(replica: Replica, cart: str) -> None:
        for number in range(6):
            item = await replica.add(f"sku-{number}", cart=cart)
            if number % 2:
                await replica.stub.RemoveItem(cart_service_pb2.RemoveItemRequest(name=item.name))
                if number == 5:
                    await replica.add(f"sku-{number}", quantity=2, cart=cart)

    carts = [f"users/user-{number}/carts/default" for number in range(4)]
    # Four shoppers with carts of their own: their locks must not block each other.
    await asyncio.gather(*(shop(replicas[index % 2], cart) for index, cart in enumerate(carts)))
    wanted: Counter[str] = Counter()
    for cart in carts:
        settled = await replicas[0].settled(cart)
        assert sorted((item.sku, item.quantity) for item in settled.items) == [
            ("sku-0", 1),
            ("sku-2", 1),
            ("sku-4", 1),
            ("sku-5", 2),
        ]
        assert {item.reservation.state for item in settled.items} == {cart_pb2.Reservation.STATE_RESERVED}
        wanted.update({item.sku: item.quantity for item in settled.items})
    await simulator.settle(10)
    assert {f"sku-{number}": simulator.levels(f"sku-{number}").held for number in range(6)} == {
        f"sku-{number}": wanted[f"sku-{number}"] for number in range(6)
    }


async def test_a_reservation_is_decided_once_although_both_replicas_reconcile(
    replicas: tuple[Replica, Replica], simulator: Simulator
) -> None:
    items = await asyncio.gather(*(replicas[n % 2].add(f"sku-{n}") for n in range(20)))
    await replicas[1].settled(CART)
    effects = simulator.effects()
    assert len(effects) == len(items)
    assert all(simulator.get(item.reservation.reservation_id).state is Observed.HELD for item in items)
