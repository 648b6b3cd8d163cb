"""Holds are renewed while the cart lives, carts that are left alone expire, and what is over is purged."""

import asyncio
from typing import Protocol

import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from cart_grpc import cli
from cart_grpc.app import clock
from cart_grpc.settings import Settings
from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.simulator import Simulator
from tests.service.conftest import CART, Service, running_replica

State = cart_pb2.Reservation.State
DAY = 24 * 3600 * 1_000_000


class Run(Protocol):
    """Runs one statement in the service's database and returns how many rows it touched."""

    async def __call__(self, sql: str, **values: int) -> int: ...


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Sweeper that loses no time."""
    return settings.with_changes(housekeeping_interval=0.05)


@pytest.fixture
def run(service: Service) -> Run:
    """Runs one statement in the service's database, to move what it holds in time; raises each cart's revision."""
    url = service.settings.database_url

    async def statement(sql: str, **values: int) -> int:
        scheme = "sqlite+aiosqlite" if url.startswith("sqlite") else "postgresql+asyncpg"
        engine = create_async_engine(f"{scheme}{url[url.index(':') :]}")
        async with engine.begin() as connection:
            count = (await connection.execute(text(sql), values)).rowcount
            # Or what was read before would be given again for a while.
            await connection.execute(text("UPDATE carts SET revision = revision + 1"))
        await engine.dispose()
        return count

    return statement


async def test_a_hold_is_renewed_before_it_runs_out_and_nobody_sees_it_happen(service: Service, run: Run) -> None:
    await service.add(quantity=2)
    before = await service.settled()
    assert await run("UPDATE reservations SET due_time = 1") == 1
    seen = [before]

    def renewed(cart: cart_pb2.Cart) -> bool:
        seen.append(cart)
        return cart.items[0].reservation.expire_time.ToMicroseconds() > first.ToMicroseconds()

    first = before.items[0].reservation.expire_time
    after = await service.eventually(renewed)
    assert (after.revision, after.etag) == (before.revision + 1, before.etag)
    assert not any(cart.reconciling or cart.items[0].reconciling for cart in seen)
    assert {cart.items[0].reservation.state for cart in seen} == {State.STATE_RESERVED}
    assert service.simulator.levels("espresso-beans").held == 2


async def test_a_renewal_is_due_within_the_second_half_of_the_hold(service: Service, run: Run) -> None:
    await service.add()
    expires = (await service.settled()).items[0].reservation.expire_time.ToMicroseconds()
    early, late = expires - int(0.51 * 900_000_000), expires - int(0.25 * 900_000_000)
    sql = "UPDATE reservations SET last_error = '' WHERE due_time BETWEEN :early AND :late"
    assert await run(sql, early=early, late=late) == 1


async def test_a_hold_that_ran_out_is_shown_as_expired_and_held_again(service: Service, run: Run) -> None:
    await service.add()
    before = await service.settled()
    service.simulator.faults = Faults(down=True)
    await run("UPDATE reservations SET expire_time = 1, due_time = 1")
    lapsed = await service.eventually(lambda cart: cart.items[0].reservation.state == State.STATE_EXPIRED)
    assert lapsed.items[0].reservation.reserved_quantity == 0
    service.simulator.faults = Faults(latency=30_000_000)
    held = await service.eventually(lambda cart: cart.items[0].reservation.state == State.STATE_RESERVED)
    assert held.revision > before.revision
    assert held.etag == before.etag


async def test_a_cart_that_is_left_alone_expires_and_its_stock_is_released(service: Service, run: Run) -> None:
    await service.add(quantity=3)
    before = await service.settled()
    assert before.ttl.ToMicroseconds() == 7 * DAY
    sql = "UPDATE carts SET update_time = update_time - :gone, expire_time = expire_time - :gone"
    await run(sql, gone=8 * DAY)
    expired = await service.eventually(lambda cart: cart.state == cart_pb2.Cart.STATE_EXPIRED)
    assert (expired.item_count, list(expired.items)) == (0, [])
    await service.settled()
    assert service.simulator.levels("espresso-beans").held == 0
    await service.add()
    fresh = await service.get()
    assert fresh.state == cart_pb2.Cart.STATE_ACTIVE
    assert fresh.uid != before.uid
    assert fresh.revision > expired.revision


async def test_finished_reservations_and_old_replies_are_purged_and_what_is_shown_is_kept(
    service: Service, run: Run
) -> None:
    removed = await service.add("filters", request_id="first")
    kept = await service.add("kettle")
    await service.settled()
    await service.stub.RemoveItem(cart_service_pb2.RemoveItemRequest(name=removed.name))
    await service.settled()
    long_ago = clock() - 9 * DAY
    await run("UPDATE reservations SET finish_time = :then WHERE sku = 'filters'", then=long_ago)
    await run("UPDATE replies SET create_time = :then", then=long_ago)
    async with asyncio.timeout(20):
        while await run("UPDATE reservations SET last_error = '' WHERE sku = 'filters'"):
            await asyncio.sleep(0.01)
        while await run("UPDATE replies SET create_time = create_time"):
            await asyncio.sleep(0.01)
    assert await run("UPDATE reservations SET last_error = '' WHERE sku = 'kettle'") == 1
    assert (await service.get()).items[0].uid == kept.uid
    # The reply is forgotten with its retention, so the same id is a new call.
    again = await service.add("filters", request_id="first")
    assert again.uid != removed.uid


async def test_a_cart_with_a_ttl_of_its_own_lives_from_its_latest_change(service: Service) -> None:
    request = cart_service_pb2.CreateCartRequest(parent="users/alice", cart_id="default")
    request.cart.ttl.FromSeconds(3600)
    await service.stub.CreateCart(request)
    await service.add()
    cart = await service.get(CART)
    assert cart.expire_time.ToMicroseconds() == cart.update_time.ToMicroseconds() + 3_600_000_000


async def test_what_is_unfinished_in_a_restored_database_is_raised_above_all_that_was_said(
    settings: Settings, simulator: Simulator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CART_DATABASE_URL", settings.database_url)
    command = ["reservations", "after-restore"]
    async with running_replica(settings) as replica:
        held, removed = await replica.add("kettle"), await replica.add("filters")
        await replica.settled()
        await replica.stub.RemoveItem(cart_service_pb2.RemoveItemRequest(name=removed.name))
        await replica.settled()
        assert await asyncio.to_thread(cli.main, command) == 2
        assert "in use" in capsys.readouterr().err
    assert simulator.get(held.reservation.reservation_id).intent.revision < 2**32
    assert await asyncio.to_thread(cli.main, command) == 0
    assert capsys.readouterr().out == "1 unfinished reservations will be said anew to the Reservation API\n"
    simulator.faults, usual = Faults(down=True), simulator.faults
    async with running_replica(settings) as replica:
        # What is held may have been changed after the backup: until the API has answered anew, nothing is certain.
        assert (await replica.get()).items[0].reservation.state == State.STATE_PENDING
        simulator.faults = usual
        cart = await replica.settled()
        assert cart.items[0].reservation.state == State.STATE_RESERVED
    assert simulator.get(held.reservation.reservation_id).intent.revision > 2**32
