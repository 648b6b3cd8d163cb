"""A server that is asked to stop answers its calls and returns its claims. One that is killed loses nothing."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.invariants.history import CallOutcome
from tests.postgres import running_postgres
from tests.processes import truth
from tests.processes.caller import Caller
from tests.processes.harness import LISTENS, SIMULATES, Program, Programs, Replicas, Simulated, connected
from tests.processes.load import HOT_SKU, SKUS, Load
from tests.rpc.refusal import to_refusal
from tests.service.conftest import CART, Replica

State = cart_pb2.Reservation.State
GRACE = 8.0
SKU = "espresso-beans"


@pytest.mark.timeout(120)
async def test_a_server_asked_to_stop_answers_every_call_it_has_accepted(
    backend: str, durable_url: str, programs: Programs
) -> None:
    # Both signals take the same way.
    by = {"sqlite": signal.SIGINT, "postgresql": signal.SIGTERM}[backend]
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
        "max_units_per_user": "1000000000",
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


async def _serve(programs: Programs, **settings: str) -> tuple[Program, str]:
    """Start a server on SQLite without a Reservation API. Return it and its address."""
    settings = {"listen": "127.0.0.1:0", "reservation_url": "grpc://127.0.0.1:1", **settings}
    program = programs.start("serve", **settings)
    return program, (await program.says(LISTENS))[1]


async def _is_serving(client: Replica) -> bool:
    stub: Any = health_pb2_grpc.HealthStub(client.channel)
    request = health_pb2.HealthCheckRequest(service="cartgrpc.v1.CartService")
    answer = await stub.Check(request, timeout=10)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_no_call_of_32_callers_in_a_loop_is_lost_or_cancelled_when_their_server_stops(programs: Programs) -> None:
    server, address = await _serve(programs, lame_duck="1")
    ended: Counter[str] = Counter()
    async with connected(address) as client, connected(address) as other:

        async def call_again_and_again(number: int) -> None:
            while not ended["SHUTTING_DOWN"]:
                try:
                    await client.add(cart=f"users/u{number}/carts/default")
                except grpc.aio.AioRpcError as error:
                    ended[to_refusal(error).info.reason] += 1
                else:
                    ended["OK"] += 1

        callers = [asyncio.create_task(call_again_and_again(number)) for number in range(32)]
        while ended["OK"] < 100:
            await asyncio.sleep(0.01)
        server.send(signal.SIGTERM)
        while await _is_serving(other):
            await asyncio.sleep(0.01)
        # Not ready any more, but new calls are served, also on a new connection.
        served = ended["OK"]
        async with connected(address) as late:
            await late.add(cart="users/late/carts/default")
        while ended["OK"] < served + 50:
            await asyncio.sleep(0.01)
        await asyncio.gather(*callers)
    assert await server.ended(GRACE) == 0
    assert ended.keys() == {"OK", "SHUTTING_DOWN"}
    assert programs.complaints() == []


async def test_a_second_signal_ends_a_server_at_once(programs: Programs) -> None:
    server, address = await _serve(programs, lame_duck="3600", shutdown_grace="1s")
    assert "CART_SHUTDOWN_GRACE is shorter than CART_CALL_TIMEOUT: a stop can cut calls off" in server.errors
    async with connected(address) as client:
        server.send(signal.SIGTERM)
        while await _is_serving(client):
            await asyncio.sleep(0.01)
        assert server.is_running
        server.send(signal.SIGTERM)
        assert await server.ended(GRACE) == -signal.SIGTERM


def test_ctrl_c_on_a_terminal_says_what_it_started_and_how_to_end_it(programs: Programs) -> None:
    ours, theirs = os.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "cart_grpc", "serve"],
        cwd=programs.folder,
        env={"PATH": os.defpath, "CART_LISTEN": "127.0.0.1:0", "CART_LOG_LEVEL": "WARNING", "CART_LAME_DUCK": "3"},
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        assert program.stdout
        assert program.stdout.readline().startswith(b"cart-grpc listens on ")
        program.send_signal(signal.SIGINT)
        said = os.read(ours, 1000)
        program.send_signal(signal.SIGINT)
        assert program.wait(20) == -signal.SIGINT
    finally:
        program.kill()
        program.communicate()
        os.close(ours)
    assert said.decode() == (
        "cart-grpc: stopping: new calls are served for 3 s; then running calls have 10 s to finish; "
        "Ctrl-C again ends it at once\r\n"
    )


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
    programs.preloaded = False  # as a user starts it, and with all that Python does at the end
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
