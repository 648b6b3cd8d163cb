"""The previous release and this one on one database under load: up and down again, with kills, and nothing is lost."""

import asyncio
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2, cart_service_pb2_grpc

from cart_grpc.store.revisions import FIRST, LATEST
from tests.postgres import PostgresServer
from tests.processes import truth
from tests.processes.harness import LISTENS, Programs, Replicas, connected
from tests.processes.load import Load
from tests.processes.previous import running_previous_programs
from tests.processes.test_crash import DUPLICATE_DELAY, STOCK, settings_for, simulate

log = logging.getLogger(__name__)
NO_RECONCILER = "--no-reconciler"


@pytest.fixture
def previous(tmp_path: Path) -> Iterator[Programs]:
    """Starts programs of the previous release. Those that still run at the end of the test are killed."""
    with running_previous_programs(tmp_path) as programs:
        yield programs


class Rollout:
    """Two replicas under load, which are replaced one after the other."""

    def __init__(self, old: Programs, new: Programs, replicas: Replicas, load: Load) -> None:
        self.old, self.new = old, new
        self._replicas = replicas
        self._load = load

    async def replace(self, index: int, by: Programs, *options: str, kill: bool = False) -> None:
        """Stop or kill a replica, and start one of another release."""
        if kill:
            self._replicas.kill(index)
        else:
            assert await self._replicas.stop(index) == 0
        self._replicas.programs = by
        await self._replicas.start(index, *options)

    async def more(self, count: int) -> None:
        """Wait for `count` more attempts of the callers."""
        wanted = len(self._load.history.calls) + count
        async with asyncio.timeout(120):
            while len(self._load.history.calls) < wanted:
                self._load.check()
                await asyncio.sleep(0.05)


async def roll_up_and_down(rollout: Rollout, migrate: Programs, settings: dict[str, str], calls: int) -> None:
    """Replace both replicas by the new release, then by the old one, then the first by the new one."""
    await rollout.more(calls)
    program = migrate.start("migrate", **settings)
    assert await program.ended(60) == 0, program.errors
    assert f"was at schema {FIRST} and is now at {LATEST}" in program.output
    # One release writes and the other one reserves, in both directions.
    await rollout.replace(0, rollout.new, NO_RECONCILER)
    await rollout.more(calls)
    await rollout.replace(1, rollout.new, kill=True)
    await rollout.more(calls)
    await rollout.replace(0, rollout.old, NO_RECONCILER)
    await rollout.more(calls)
    await rollout.replace(1, rollout.old, kill=True)
    await rollout.more(calls)
    await rollout.replace(0, rollout.new)
    await rollout.more(calls)


@pytest.mark.timeout(300)
async def test_the_previous_release_and_this_one_serve_one_database_and_nothing_is_lost(
    durable_postgres: PostgresServer, programs: Programs, previous: Programs
) -> None:
    await upgrade(durable_postgres.create_database("upgraded"), programs, previous, calls=40, rounds=1)


@pytest.mark.night
async def test_the_previous_release_and_this_one_serve_one_database_all_night(
    durable_postgres: PostgresServer, programs: Programs, previous: Programs
) -> None:
    rounds = int(os.environ.get("UPGRADE_ROUNDS", "20"))
    await upgrade(durable_postgres.create_database("upgraded_often"), programs, previous, calls=300, rounds=rounds)


async def upgrade(database_url: str, new: Programs, old: Programs, *, calls: int, rounds: int) -> None:
    seed = os.environ.get("CRASH_SEED") or str(random.randrange(1 << 32))
    log.warning("CRASH_SEED=%s", seed)
    simulated = await simulate(new, seed)
    settings = settings_for(database_url, simulated)
    assert await old.start("migrate", **settings).ended(60) == 0
    replicas = Replicas(old, settings, count=2)
    load = Load(replicas, seed, writers=5, shoppers=2, pause=0.1)
    rollout = Rollout(old, new, replicas, load)
    try:
        await replicas.start_all()
        load.start()
        await roll_up_and_down(rollout, new, settings, calls)
        for _ in range(rounds - 1):
            for programs, index in ((new, 1), (old, 0), (old, 1), (new, 0)):
                await rollout.replace(index, programs, kill=load.reader.numbers.random() < 0.5)
                await rollout.more(calls)
        await load.stop()
        # The reader calls one release, then the other.
        for _ in range(2):
            await truth.replay(load)
            await load.reader.close()
        await truth.settled(load, simulated, silence=DUPLICATE_DELAY + 0.5)
        for index in range(len(replicas.servers)):
            assert await replicas.stop(index) == 0
        await truth.check(load, simulated, new.folder / "journal.jsonl", database_url, STOCK)
    finally:
        log.warning("%d calls, repeated %s, %d sales", len(load.history.calls), load.history.repeats(), load.sale_count)
        await load.close()
    assert new.complaints() + old.complaints() == []


@pytest.mark.timeout(120)
async def test_each_release_accepts_etags_page_tokens_and_reservations_of_the_other_one(
    postgres: PostgresServer, programs: Programs, previous: Programs
) -> None:
    simulated = await programs.simulate("--stock", "beans=100")
    settings = settings_for(postgres.create_database("names", template="template_cart"), simulated)
    servers = [previous.start("serve", **settings), programs.start("serve", NO_RECONCILER, **settings)]
    old_address, new_address = [(await server.says(LISTENS))[1] for server in servers]
    async with connected(old_address) as old, connected(new_address) as new:
        # The new one reserves nothing itself.
        await until_reserved(new.stub, "users/c/carts/x")
        for here, there, parent in ((old.stub, new.stub, "users/a"), (new.stub, old.stub, "users/b")):
            names = [f"{parent}/carts/{cart}" for cart in ("x", "y", "z")]
            for name in names:
                await here.AddItem(add_beans(name))
            read = cart_service_pb2.GetCartRequest(name=names[0])
            etag = (await here.GetCart(read)).cart.etag
            assert (await there.GetCart(read)).cart.etag == etag
            await there.ClearCart(cart_service_pb2.ClearCartRequest(name=names[0], etag=etag))
            found, token = list[str](), ""
            for stub in (here, there, here):
                request = cart_service_pb2.ListCartsRequest(parent=parent, page_size=1, page_token=token)
                page = await stub.ListCarts(request)
                found += [cart.name for cart in page.carts]
                token = page.next_page_token
            assert sorted(found) == names


async def until_reserved(stub: "cart_service_pb2_grpc.CartServiceAsyncStub", cart: str) -> None:
    """Add an item, and wait until it is reserved."""
    item = (await stub.AddItem(add_beans(cart))).item
    async with asyncio.timeout(30):
        while item.reservation.state != cart_pb2.Reservation.STATE_RESERVED:
            await asyncio.sleep(0.05)
            (item,) = (await stub.GetCart(cart_service_pb2.GetCartRequest(name=cart))).cart.items


def add_beans(cart: str) -> cart_service_pb2.AddItemRequest:
    return cart_service_pb2.AddItemRequest(parent=cart, item=cart_pb2.Item(sku="beans", quantity=1))
