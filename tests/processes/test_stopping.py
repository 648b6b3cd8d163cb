"""A server that is asked to stop answers its calls and returns its claims. One that is killed loses nothing."""

import asyncio
import random
import signal
import time

import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2
from google.protobuf.duration_pb2 import Duration

from tests.invariants.history import CallOutcome
from tests.postgres import running_postgres
from tests.processes import truth
from tests.processes.harness import LISTENS, SIMULATES, Program, Programs, Replicas, Simulated, connected
from tests.processes.load import HOT_SKU, SKUS, Caller, Load
from tests.service.conftest import CART

State = cart_pb2.Reservation.State
GRACE = 8.0
SKU = "espresso-beans"


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT], ids=lambda by: by.name)
@pytest.mark.timeout(120)
async def test_a_server_asked_to_stop_answers_every_call_it_has_accepted(
    by: signal.Signals, backend: str, durable_url: str, programs: Programs
) -> None:
    simulated = await programs.simulate("--latency", "500ms")
    settings = await _settings(programs, durable_url, simulated)
    replicas = Replicas(programs, settings, count=1)
    load = Load(replicas, seed=random.random())
    try:
        await replicas.start_all()
        load.start()
        await _until_answered(load, 100)
        async with connected(await replicas.address(random.Random())) as client:
            await _add(load.reader)
            waiting = asyncio.create_task(_add(load.reader, max_wait=5))
            await client.eventually(lambda cart: cart.total_quantity == 2)
            assert not load.history.request_ids(CallOutcome.UNKNOWN)
            assert await replicas.stop(0, by, timeout=GRACE + 3) == 0
        # Stopping ended its max_wait early, but it was answered.
        assert (await waiting).quantity == 2
        found, _ = await truth.dump(durable_url)
        kept = {request_id for _, request_id in found.replies}
        assert not kept & load.history.request_ids(CallOutcome.UNKNOWN), "committed, but not answered"
        assert load.history.request_ids(CallOutcome.OK) <= kept, "answered, but not committed"
        await replicas.start(0)
        await _until_answered(load, len(load.history.request_ids(CallOutcome.OK)) + 50)
        await load.stop()
        await truth.settled(load, simulated, silence=0.5)
        assert await replicas.stop(0) == 0
        stock = dict.fromkeys((*SKUS, HOT_SKU, SKU), 1_000_000)
        await truth.check(load, simulated, programs.folder / "journal.jsonl", durable_url, stock)
    finally:
        await load.close()
    assert programs.complaints() == []


async def _settings(programs: Programs, database_url: str, simulated: Simulated) -> dict[str, str]:
    """Migrate the database and return a server's settings."""
    settings = {
        "listen": "127.0.0.1:0",
        "database_url": database_url,
        "reservation_url": simulated.url,
        "reservation_lease": "3600",
        "shutdown_grace": str(GRACE),
        "max_quantity_per_item": "1000000",
    }
    if database_url.startswith("postgresql"):
        assert await programs.start("migrate", **settings).ended(60) == 0
    return settings


async def _until_answered(load: Load, count: int) -> None:
    async with asyncio.timeout(30):
        while len(load.history.request_ids(CallOutcome.OK)) < count:
            load.check()
            await asyncio.sleep(0.01)


async def _add(caller: Caller, max_wait: int = 0) -> cart_pb2.Item:
    request = cart_service_pb2.AddItemRequest(
        parent=CART, item=cart_pb2.Item(sku=SKU), max_wait=Duration(seconds=max_wait)
    )
    return (await caller.call("AddItem", request, cart_service_pb2.AddItemResponse)).item


async def test_a_server_that_stops_returns_its_claims(backend: str, durable_url: str, programs: Programs) -> None:
    simulated = await programs.simulate("--latency", "1h")
    settings = await _settings(programs, durable_url, simulated)
    server = programs.start("serve", **settings)
    async with connected((await server.says(LISTENS))[1]) as client:
        await client.add()
        await simulated.until_called(1)
    server.send(signal.SIGTERM)
    assert await server.ended(GRACE) == 0
    await simulated.set_faults(latency=0.0)
    again = programs.start("serve", **settings)
    async with connected((await again.says(LISTENS))[1]) as client:
        # Without the return, the lease would have lasted for an hour.
        cart = await client.settled()
    assert cart.items[0].reservation.state == State.STATE_RESERVED
    assert programs.complaints() == []


async def test_a_server_stops_with_status_0_although_its_database_is_gone(programs: Programs) -> None:
    simulated = await programs.simulate("--latency", "1h")
    with running_postgres() as postgres:
        settings = await _settings(programs, postgres.create_database("gone"), simulated)
        server = programs.start("serve", **settings)
        async with connected((await server.says(LISTENS))[1]) as client:
            await client.add()
            await simulated.until_called(1)
            postgres.kill()
            server.send(signal.SIGTERM)
            assert await server.ended(30) == 0
    assert programs.complaints() == []


async def _dev(programs: Programs, *options: str) -> tuple[Program, str, Simulated]:
    """Start `cart-grpc dev`. Return it, its address and its simulator."""
    settings = {"listen": "127.0.0.1:0", "reservation_lease": "1"}
    program = programs.start("dev", "--simulator-listen", "127.0.0.1:0", *options, **settings)
    simulator = (await program.says(SIMULATES))[1]
    return program, (await program.says(LISTENS))[1], Simulated(program, simulator)


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM], ids=lambda by: by.name)
async def test_dev_starts_server_and_simulator_and_stops_without_complaints(
    by: signal.Signals, programs: Programs
) -> None:
    program, address, simulated = await _dev(programs, "--latency", "100ms")
    async with connected(address) as client:
        await client.add(quantity=2)
        assert (await client.settled()).items[0].reservation.state == State.STATE_RESERVED
        assert (await simulated.stock("espresso-beans")).held_quantity == 2
        await simulated.set_faults(latency=3600.0)
        await client.add("filters")
        await simulated.until_called(2)
    began = time.monotonic()
    program.send(by)
    assert await program.ended(20) == 0
    assert time.monotonic() - began < 10
    assert programs.complaints() == []


async def test_dev_completes_its_reservations_after_it_was_killed_and_restarted(programs: Programs) -> None:
    program, address, simulated = await _dev(programs, "--latency", "100ms")
    async with connected(address) as client:
        kept = await client.add(quantity=2)
        removed = await client.add("filters", quantity=3)
        await client.settled()
        before, _ = await simulated.effects()
        await simulated.set_faults(latency=3600.0)
        await client.add(quantity=1)
        await client.stub.RemoveItem(cart_service_pb2.RemoveItemRequest(name=removed.name))
        pending = await client.add("kettle", quantity=4)
        await simulated.until_called(5)
    program.kill()
    _, address, simulated = await _dev(programs, "--latency", "10ms")
    async with connected(address) as client:
        cart = await client.settled()
        quantities = {kept.reservation.reservation_id: 3, pending.reservation.reservation_id: 4}
        assert {item.reservation.reservation_id: item.reservation.reserved_quantity for item in cart.items} == (
            quantities
        )
        assert {item.reservation.state for item in cart.items} == {State.STATE_RESERVED}
        effects, _ = await simulated.effects()
    assert effects[: len(before)] == before, "the simulator has lost effects"
    last = {effect.reservation_id: effect.quantity_after for effect in effects}
    assert {name: held for name, held in last.items() if held} == quantities
    assert programs.complaints() == []
