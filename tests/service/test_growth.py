"""Weeks of customers who come and go: every table keeps what its retention keeps, and nothing else."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_pb2
from cartgrpc.v1 import cart_service_pb2 as pb
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from cart_grpc.app import clock
from cart_grpc.metrics import HOUSEKEEPING_DURATION
from cart_grpc.settings import Settings
from cart_grpc.simulator.simulator import Simulator
from cart_grpc.store import schema
from tests.service.conftest import Service

DAY = 86_400
WAIT = Duration(seconds=20)
SOLD_OUT = "sold-out"
TIMES = {
    table.name: [one.name for one in table.columns if one.name.endswith("_time") or one.name == "uncertain_until"]
    for table in schema.metadata.sorted_tables
    if table is not schema.clock
}


# The day after which each day ends with the same rows, and a later day. With the short retentions, a cart expires after
# two days and is kept for two more. With the usual ones, a checkout is kept for 90 days.
SHORT, USUAL = (5, 7), (99, 105)


@pytest.fixture(params=[SHORT, pytest.param(USUAL, marks=[pytest.mark.night, pytest.mark.timeout(1800)])], ids=str)
def days(request: pytest.FixtureRequest) -> tuple[int, int]:
    """The day from which on the number of rows must stay, and the last day."""
    steady, last = request.param
    return steady, last


@pytest.fixture
def settings(settings: Settings, days: tuple[int, int]) -> Settings:
    """Short or usual retentions."""
    settings = settings.with_changes(housekeeping_interval=0.02)
    if days == USUAL:
        return settings
    return settings.with_changes(
        cart_ttl=2.0 * DAY,
        reply_retention=1.5 * DAY,
        reservation_retention=1.5 * DAY,
        cart_retention=2.0 * DAY,
        checkout_retention=3.0 * DAY,
    )


@pytest.fixture
async def engine(service: Service) -> AsyncIterator[AsyncEngine]:
    """Another way into the service's database."""
    url = service.settings.database_url.get_secret_value()
    scheme = "sqlite+aiosqlite" if service.settings.is_embedded else "postgresql+asyncpg"
    engine = create_async_engine(f"{scheme}{url[url.index(':') :]}")
    yield engine
    await engine.dispose()


@pytest.fixture
def simulator(simulator: Simulator) -> Simulator:
    for sku in ("kettle", "filters", "scale", "cups"):
        simulator.set_stock(sku, 1_000)
    simulator.set_stock(SOLD_OUT, 0)
    return simulator


async def test_after_weeks_every_table_has_as_many_rows_as_days_before_and_without_customers_none(
    service: Service, engine: AsyncEngine, days: tuple[int, int]
) -> None:
    steady: Mapping[str, int] = {}
    for day in range(days[1]):
        await customers_come(service, day)
        await pass_days(engine, 1)
        # A cart that expires on another day is kept for another day.
        rows = await settled_rows(engine)
        if day == days[0]:
            steady = rows
    assert min(steady[name] for name in ("carts", "items", "replies", "reservations", "checkouts", "users")) > 0
    await until_rows_are(engine, steady)
    # The carts that are left expire, and then their retention is over, too.
    await pass_days(engine, 100)
    async with asyncio.timeout(30):
        while await ask(engine, "SELECT count(*) FROM carts WHERE state = 1"):
            await asyncio.sleep(0.02)
    await until_idle(engine)
    await pass_days(engine, 100)
    await until_rows_are(engine, {**dict.fromkeys(steady, 0), "commit_markers": steady["commit_markers"]})


async def customers_come(service: Service, day: int) -> None:
    """Customers of one day, all new, but one who comes every day."""
    name = f"users/day-{day}-"
    await asyncio.gather(
        comes_back(service, "users/regular/carts/default"),
        leaves(service, f"{name}leaving/carts/default"),
        buys(service, f"{name}buying/carts/default"),
        gives_up(service, f"{name}undecided/carts/default"),
        logs_in_and_deletes(service, f"{name}guest/carts/default", f"{name}login/carts/default"),
        is_refused(service, f"{name}late/carts/default", f"{name}lost/carts/default"),
    )


async def comes_back(service: Service, cart: str) -> None:
    item = await service.add("kettle", cart=cart)
    await service.stub.RemoveItem(pb.RemoveItemRequest(name=item.name))


async def leaves(service: Service, cart: str) -> None:
    item = await service.add("kettle", cart=cart, request_id="first")
    changed = cart_pb2.Item(name=item.name, quantity=2)
    await service.stub.UpdateItem(pb.UpdateItemRequest(item=changed, request_id="second"))
    removed = await service.add("filters", cart=cart)
    await service.stub.RemoveItem(pb.RemoveItemRequest(name=removed.name, request_id="third"))


async def buys(service: Service, cart: str) -> None:
    checkout = await gives_up(service, cart)
    request = pb.CompleteCheckoutRequest(name=checkout, order_reference=cart, max_wait=WAIT, request_id="sale")
    await service.stub.CompleteCheckout(request, timeout=30)


async def gives_up(service: Service, cart: str) -> str:
    """Begin a checkout, and return its name."""
    await service.add("scale", cart=cart)
    await service.settled(cart)
    begun = await service.stub.BeginCheckout(pb.BeginCheckoutRequest(name=cart, max_wait=WAIT), timeout=30)
    return begun.checkout.name


async def logs_in_and_deletes(service: Service, guest: str, cart: str) -> None:
    await service.add("cups", cart=guest)
    await service.add("cups", cart=cart)
    await service.stub.MergeCarts(pb.MergeCartsRequest(name=cart, source=guest, request_id="login"), timeout=10)
    await service.stub.DeleteCart(pb.DeleteCartRequest(name=cart), timeout=10)


async def is_refused(service: Service, cart: str, missing: str) -> None:
    await service.add(SOLD_OUT, cart=cart)
    await service.settled(cart)
    with pytest.raises(grpc.aio.AioRpcError):
        await service.stub.BeginCheckout(pb.BeginCheckoutRequest(name=cart, request_id="refused"), timeout=10)
    with pytest.raises(grpc.aio.AioRpcError):
        await service.stub.ClearCart(pb.ClearCartRequest(name=missing, request_id="refused"), timeout=10)


async def pass_days(engine: AsyncEngine, days: int) -> None:
    """Move every time in the database into the past, which is the same as to wait."""
    while True:
        # In one transaction: a cart that expires in between must not give its reservations a time that is moved then.
        try:
            async with engine.begin() as connection:
                await move_times(connection, days)
        except DBAPIError as error:
            # The service locks the same rows in another order. PostgreSQL then ends one of the two transactions.
            if "deadlock detected" not in str(error):
                raise
        else:
            return


async def move_times(connection: AsyncConnection, days: int) -> None:
    for table, columns in TIMES.items():
        moved = ", ".join(f"{name} = {name} - {days * DAY * 1_000_000}" for name in columns)
        if moved:
            await connection.execute(text(f"UPDATE {table} SET {moved}"))  # noqa: S608 - our own names


async def until_idle(engine: AsyncEngine) -> None:
    """Wait until no reservation waits for an answer, and no window has ended."""
    busy = (
        "SELECT (SELECT count(*) FROM reservations WHERE due_time < :now OR lease_expire_time IS NOT NULL) + "
        "(SELECT count(*) FROM checkouts WHERE state = 1 AND expire_time < :now)"
    )
    async with asyncio.timeout(30):
        while await ask(engine, busy, now=clock()):
            await asyncio.sleep(0.02)


async def until_rows_are(engine: AsyncEngine, expected: Mapping[str, int]) -> None:
    found: Mapping[str, int] = {}
    with suppress(TimeoutError):
        async with asyncio.timeout(30):
            while (found := await count_rows(engine)) != expected:
                await asyncio.sleep(0.02)
    assert found == expected


async def settled_rows(engine: AsyncEngine) -> Mapping[str, int]:
    """Return the number of rows of each table once whole rounds of the sweeper find nothing to do."""
    async with asyncio.timeout(60):
        while True:
            before = await count_rows(engine)
            await pass_rounds(2)
            await until_idle(engine)
            found = await count_rows(engine)
            if found == before:
                return found


async def pass_rounds(count: int) -> None:
    """Wait until the sweeper has begun and ended so many rounds."""
    # One may be under way.
    end = ended_rounds() + count + 1
    while ended_rounds() < end:
        await asyncio.sleep(0.01)


def ended_rounds() -> float:
    [family] = HOUSEKEEPING_DURATION.collect()
    return next(sample.value for sample in family.samples if sample.name.endswith("_count"))


async def count_rows(engine: AsyncEngine) -> dict[str, int]:
    return {name: await ask(engine, f"SELECT count(*) FROM {name}") for name in TIMES}  # noqa: S608 - our own names


async def ask(engine: AsyncEngine, query: str, **values: Any) -> int:
    async with engine.connect() as connection:
        return int((await connection.execute(text(query), values)).scalar_one())
