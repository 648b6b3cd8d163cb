"""Holds are renewed, idle carts expire, and finished rows are purged."""

import asyncio
from typing import Protocol

import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from cart_grpc.app import clock
from cart_grpc.cli import program as cli
from cart_grpc.settings import Settings
from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.simulator import Simulator
from tests.service.conftest import CART, Service, running_replica

State = cart_pb2.Reservation.State
DAY = 24 * 3600 * 1_000_000


class RunSql(Protocol):
    """Runs one statement in the service's database and returns the number of rows that it changed."""

    async def __call__(self, sql: str, **values: int) -> int: ...


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings with a short housekeeping interval."""
    return settings.with_changes(housekeeping_interval=0.05)


@pytest.fixture
def run_sql(service: Service) -> RunSql:
    """Runs one statement in the service's database, for example to move times, and raises each cart's revision."""
    url = service.settings.database_url.get_secret_value()

    async def statement(sql: str, **values: int) -> int:
        scheme = "sqlite+aiosqlite" if url.startswith("sqlite") else "postgresql+asyncpg"
        engine = create_async_engine(f"{scheme}{url[url.index(':') :]}")
        async with engine.begin() as connection:
            count = (await connection.execute(text(sql), values)).rowcount
            # Otherwise cached replies stay valid for up to a minute.
            await connection.execute(text("UPDATE carts SET revision = revision + 1"))
        await engine.dispose()
        return count

    return statement


async def test_a_hold_is_renewed_before_its_end_and_stays_reserved_meanwhile(service: Service, run_sql: RunSql) -> None:
    await service.add(quantity=2)
    before = await service.settled()
    assert await run_sql("UPDATE reservations SET due_time = 1") == 1
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


async def test_a_renewal_is_due_in_the_second_half_of_the_hold(service: Service, run_sql: RunSql) -> None:
    await service.add()
    expires = (await service.settled()).items[0].reservation.expire_time.ToMicroseconds()
    early, late = expires - int(0.51 * 900_000_000), expires - int(0.25 * 900_000_000)
    sql = "UPDATE reservations SET last_error = '' WHERE due_time BETWEEN :early AND :late"
    assert await run_sql(sql, early=early, late=late) == 1


async def test_an_expired_hold_shows_as_expired_and_is_reserved_again(service: Service, run_sql: RunSql) -> None:
    await service.add()
    before = await service.settled()
    service.simulator.faults = Faults(down=True)
    await run_sql("UPDATE reservations SET expire_time = 1, due_time = 1")
    lapsed = await service.eventually(lambda cart: cart.items[0].reservation.state == State.STATE_EXPIRED)
    assert lapsed.items[0].reservation.reserved_quantity == 0
    service.simulator.faults = Faults(latency_us=30_000_000)
    held = await service.eventually(lambda cart: cart.items[0].reservation.state == State.STATE_RESERVED)
    assert held.revision > before.revision
    assert held.etag == before.etag


async def test_an_idle_cart_expires_and_its_stock_is_released(service: Service, run_sql: RunSql) -> None:
    await service.add(quantity=3)
    before = await service.settled()
    assert before.ttl.ToMicroseconds() == 7 * DAY
    sql = "UPDATE carts SET update_time = update_time - :gone, expire_time = expire_time - :gone"
    await run_sql(sql, gone=8 * DAY)
    expired = await service.eventually(lambda cart: cart.state == cart_pb2.Cart.STATE_EXPIRED)
    assert (expired.item_count, list(expired.items)) == (0, [])
    await service.settled()
    assert service.simulator.levels("espresso-beans").held == 0
    await service.add()
    fresh = await service.get()
    assert fresh.state == cart_pb2.Cart.STATE_ACTIVE
    assert fresh.uid != before.uid
    assert fresh.revision > expired.revision


async def test_finished_reservations_and_old_replies_are_purged_and_shown_reservations_are_kept(
    service: Service, run_sql: RunSql
) -> None:
    removed = await service.add("filters", request_id="first")
    kept = await service.add("kettle")
    await service.settled()
    await service.stub.RemoveItem(cart_service_pb2.RemoveItemRequest(name=removed.name))
    await service.settled()
    long_ago = clock() - 9 * DAY
    await run_sql("UPDATE reservations SET finish_time = :then WHERE sku = 'filters'", then=long_ago)
    await run_sql("UPDATE replies SET create_time = :then", then=long_ago)
    async with asyncio.timeout(20):
        while await run_sql("UPDATE reservations SET last_error = '' WHERE sku = 'filters'"):
            await asyncio.sleep(0.01)
        while await run_sql("UPDATE replies SET create_time = create_time"):
            await asyncio.sleep(0.01)
    assert await run_sql("UPDATE reservations SET last_error = '' WHERE sku = 'kettle'") == 1
    assert (await service.get()).items[0].uid == kept.uid
    # The reply is purged, so the same request_id is a new call.
    again = await service.add("filters", request_id="first")
    assert again.uid != removed.uid


async def test_a_carts_own_ttl_counts_from_its_latest_change(service: Service) -> None:
    request = cart_service_pb2.CreateCartRequest(parent="users/alice", cart_id="default")
    request.cart.ttl.FromSeconds(3600)
    await service.stub.CreateCart(request)
    await service.add()
    cart = await service.get(CART)
    assert cart.expire_time.ToMicroseconds() == cart.update_time.ToMicroseconds() + 3_600_000_000


async def test_after_restore_unfinished_reservations_get_a_revision_above_any_sent_before(
    settings: Settings, simulator: Simulator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CART_DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("CART_DATABASE_SHARDS", str(settings.database_shards))
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
    assert capsys.readouterr().out == "1 unfinished reservations will be sent again to the Reservation API\n"
    simulator.faults, usual = Faults(down=True), simulator.faults
    async with running_replica(settings) as replica:
        # The hold may have changed after the backup, so it is pending until the API has answered again.
        assert (await replica.get()).items[0].reservation.state == State.STATE_PENDING
        simulator.faults = usual
        cart = await replica.settled()
        assert cart.items[0].reservation.state == State.STATE_RESERVED
    assert simulator.get(held.reservation.reservation_id).intent.revision > 2**32
