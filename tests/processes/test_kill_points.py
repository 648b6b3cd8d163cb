"""A server is killed at each point of each transaction and call. The next server loses nothing and repeats nothing."""

import random
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2
from sqlalchemy import ColumnElement, Update, select, update
from sqlalchemy.ext.asyncio import create_async_engine

from cart_grpc.carts.model import CheckoutState
from cart_grpc.store import schema
from cart_grpc.store.shards import schema_names
from tests.databases import shards_of
from tests.processes import truth
from tests.processes.harness import Program, Programs, Replicas, Simulated, connected
from tests.processes.killable import POINTS, arm
from tests.processes.load import HOT_SKU, SKUS, Load
from tests.processes.shopper import GOODS, Shopper
from tests.service.conftest import Replica

STOCK = dict.fromkeys((*SKUS, HOT_SKU, *GOODS), 1_000_000)
# Slow calls last long enough for their claims' leases to be extended.
FAULTS = ("--latency", "20ms", "--slow", "0.2", "--slow-latency", "500ms", "--lost-after-effect", "0.05")
EXPIRED = cart_pb2.Cart.State.STATE_EXPIRED
WINDOW_ENDED = cart_pb2.Checkout.State.STATE_EXPIRED


@dataclass(frozen=True)
class Service:
    """One server that kills itself at a given point, and the load on it."""

    programs: Programs
    replicas: Replicas
    simulated: Simulated
    load: Load
    database_url: str
    # One cart for each expiry: an expired cart that is used again shows no trace of its expiry.
    idle_carts: list[str] = field(default_factory=list)
    # The checkouts that are left to the end of their windows.
    late_checkouts: dict[str, Shopper] = field(default_factory=dict)

    async def die_at(self, point: str) -> None:
        """Let the server reach `point` under load and die there. Start the next one."""
        (server,) = self.replicas.servers
        assert server is not None
        if point.startswith("expiry"):
            await self._add_to_idle_cart()
        if point.startswith("evaluation"):
            await self._begin_late_checkout()
        arm(self.programs.folder, point)
        if point.startswith("return"):
            await self._stop_in_mid_call(server)
        if point.startswith("expiry"):
            await self._let_idle_cart_expire()
        if point.startswith("evaluation"):
            await self._let_windows_end(schema.checkouts.c.user_id.startswith("late"))
        assert await server.ended(60) == -signal.SIGKILL
        # The thread of the log may still write a line meanwhile.
        assert f"killed at {point}" in server.errors.splitlines()
        if point.startswith("commit"):
            # The sale is decided: the end of its window must not undo it.
            await self._let_windows_end(schema.checkouts.c.state == CheckoutState.COMPLETING)
        self.replicas.kill(0)
        await self.replicas.start(0)
        self.load.check()

    async def _stop_in_mid_call(self, server: Program) -> None:
        """Stop the server while a call hangs for longer than the shutdown grace."""
        await self.simulated.set_faults(latency=1)
        await self.simulated.until_called((await self.simulated.effects())[1] + 1)
        server.send(signal.SIGTERM)
        await self.simulated.set_faults(latency=0.02, slow=0.2, slow_latency=0.5)

    async def _add_to_idle_cart(self) -> None:
        self.idle_carts.append(f"users/idle/carts/{len(self.idle_carts)}")
        item = cart_pb2.Item(sku=SKUS[0], quantity=1)
        request = cart_service_pb2.AddItemRequest(parent=self.idle_carts[-1], item=item)
        await self.load.reader.call("AddItem", request, cart_service_pb2.AddItemResponse)

    async def _let_idle_cart_expire(self) -> None:
        await self._execute(
            update(schema.carts).where(schema.carts.c.user_id == "idle").values(ttl_us=1, expire_time=1)
        )

    async def _begin_late_checkout(self) -> None:
        """Begin a checkout that nobody completes."""
        late = self.load.add_shopper(f"late{len(self.late_checkouts)}")
        await late.add(late.cart)
        self.late_checkouts[await late.begin()] = late

    async def _let_windows_end(self, which: ColumnElement[bool]) -> None:
        await self._execute(update(schema.checkouts).where(which).values(expire_time=1))

    async def _execute(self, statement: Update) -> None:
        # Another program: the server has the file for itself.
        engine = create_async_engine(self.database_url.replace("sqlite:", "sqlite+aiosqlite:"))
        try:
            async with engine.begin() as connection:
                count = shards_of(self.database_url)
                for name in schema_names(count) if count > 1 else [None]:
                    await connection.execution_options(schema_translate_map={None: name})
                    # As every batch does. Without it, a batch that changes several of the rows could deadlock.
                    await connection.execute(select(schema.users).with_for_update())
                    await connection.execute(statement)
        finally:
            await engine.dispose()

    def _connect(self) -> AbstractAsyncContextManager[Replica]:
        (address,) = self.replicas.addresses
        assert address is not None
        return connected(address)

    async def check_late_checkouts(self) -> None:
        """The windows have ended, and the carts have their items again."""
        for name, shopper in self.late_checkouts.items():
            assert (await shopper.read(name)).state == WINDOW_ENDED
            await shopper.add(shopper.cart)

    async def check_idle_carts(self) -> None:
        async with self._connect() as client:
            for cart in self.idle_carts:
                await client.eventually(lambda seen: seen.state == EXPIRED and not seen.reconciling, cart)

    async def check(self) -> None:
        """Stop the server and compare callers, database and simulator. The load has stopped."""
        await truth.replay(self.load, most=10)
        await truth.settled(self.load, self.simulated, silence=0.1)
        assert await self.replicas.stop(0) == 0
        journal = self.programs.folder / "journal.jsonl"
        await truth.check(self.load, self.simulated, journal, self.database_url, STOCK)


@pytest.fixture
async def service(backend: str, durable_url: str, programs: Programs) -> AsyncIterator[Service]:
    """The running service, without load."""
    stock = [argument for sku, quantity in STOCK.items() for argument in ("--stock", f"{sku}={quantity}")]
    simulated = await programs.simulate("--seed", "1", *stock, *FAULTS)
    settings = {
        "listen": "127.0.0.1:0",
        "database_url": durable_url,
        "reservation_url": simulated.url,
        "reservation_poll_interval": "0.05",
        "reservation_backoff_max": "0.1",
        "reservation_lease": "1",
        "housekeeping_interval": "0.2",
        "shutdown_grace": "0.1",
        "max_quantity_per_item": "1000000",
        "max_units_per_user": "1000000000",
    }
    if backend == "postgresql":
        assert await programs.start("migrate", **settings).ended(60) == 0
    programs.module = "tests.processes.killable"
    replicas = Replicas(programs, settings, count=1)
    await replicas.start_all()
    load = Load(replicas, 1, writers=2, adders=2, shoppers=2, pause=0.01)
    try:
        yield Service(programs, replicas, simulated, load, durable_url)
    finally:
        await load.close()
    assert programs.complaints() == []


# By day, each point on one of the two databases. At night, each point on both.
BY_DAY = {"sqlite": POINTS[::2], "postgresql": POINTS[1::2]}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("night", [False, pytest.param(True, marks=pytest.mark.night)], ids=["day", "night"])
async def test_a_server_killed_at_each_point_loses_nothing_and_repeats_nothing(
    service: Service, backend: str, *, night: bool
) -> None:
    service.load.start()
    for point in POINTS if night else BY_DAY[backend]:
        await service.die_at(point)
    await service.load.stop()
    await service.check_idle_carts()
    await service.check_late_checkouts()
    await service.check()


@pytest.mark.night
async def test_a_server_killed_at_a_thousand_points_loses_nothing_and_repeats_nothing(service: Service) -> None:
    numbers = random.Random(1)
    service.load.start()
    for point in numbers.choices(POINTS, k=1000):
        await service.die_at(point)
    await service.load.stop()
    await service.check()
