"""The simulator's gRPC and HTTP endpoints: controls, reads, and errors."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from cartgrpc.reservation.v1 import reservation_pb2, reservation_pb2_grpc
from cartgrpc.simulator.v1 import simulator_pb2, simulator_pb2_grpc
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cart_grpc.protocol.reservation import Decision, Observed
from cart_grpc.reservation_api import wire
from cart_grpc.reservation_api.api import NoAnswerError, PermanentFailure, ReservationApi
from cart_grpc.reservation_api.transports import connect
from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.server import (
    BoundPorts,
    SimulatorConfig,
    SimulatorServer,
    make_simulator,
    serve_simulator,
)
from cart_grpc.simulator.simulator import Simulator
from tests.intents import Clock, hold

SKU = "espresso-beans"


class Stubs:
    """The generated clients of the simulator."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.reservation = reservation_pb2_grpc.ReservationServiceStub(channel)
        self.control = simulator_pb2_grpc.SimulatorServiceStub(channel)


@pytest.fixture
async def ports(simulator: Simulator) -> AsyncIterator[BoundPorts]:
    """The ports of the running simulator."""
    server = SimulatorServer(simulator)
    yield await server.start("127.0.0.1:0", "127.0.0.1:0")
    await server.stop(0)


@pytest.fixture
async def stubs(ports: BoundPorts) -> AsyncIterator[Stubs]:
    """Clients of the running simulator."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
        yield Stubs(channel)


async def test_stock_can_be_set_and_stock_and_effects_can_be_read(
    stubs: Stubs, simulator: Simulator, clock: Clock
) -> None:
    await stubs.control.SetStock(simulator_pb2.SetStockRequest(sku=SKU, quantity=3), timeout=5)
    await simulator.apply(lambda: hold(2))
    levels = await stubs.control.GetStock(simulator_pb2.GetStockRequest(sku=SKU), timeout=5)
    assert levels == simulator_pb2.GetStockResponse(available_quantity=1, held_quantity=2)
    page = await stubs.control.ListEffects(simulator_pb2.ListEffectsRequest(), timeout=5)
    assert page.call_count == 1
    [effect] = page.effects
    assert (effect.sequence, effect.quantity_after) == (1, 2)
    assert effect.time.ToMicroseconds() == clock.now
    page = await stubs.control.ListEffects(simulator_pb2.ListEffectsRequest(after_sequence=1), timeout=5)
    assert not page.effects


async def test_faults_can_be_set_and_read(stubs: Stubs, simulator: Simulator) -> None:
    faults = simulator_pb2.Faults(slow=0.25, down=True, no_batches=True)
    faults.latency.FromMilliseconds(1500)
    await stubs.control.SetFaults(simulator_pb2.SetFaultsRequest(faults=faults), timeout=5)
    assert simulator.faults == Faults(latency_us=1_500_000, slow=0.25, slow_latency_us=0, down=True, no_batches=True)
    response = await stubs.control.GetFaults(simulator_pb2.GetFaultsRequest(), timeout=5)
    # Durations of 0 are answered, too.
    faults.MergeFrom(simulator_pb2.Faults(slow_latency=Duration(), duplicate_delay=Duration()))
    assert response.faults == faults
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stubs.control.SetFaults(simulator_pb2.SetFaultsRequest(faults=simulator_pb2.Faults(slow=2)), timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_reservations_can_be_read_singly_and_in_a_batch(stubs: Stubs, simulator: Simulator) -> None:
    first, unknown = hold(2), hold(1).reservation_id
    await simulator.apply(lambda: first)
    found = await stubs.reservation.GetReservation(
        reservation_pb2.GetReservationRequest(reservation_id=first.reservation_id), timeout=5
    )
    assert found.reservation.state == reservation_pb2.Reservation.STATE_HELD
    looked_up = await stubs.reservation.LookupReservations(
        reservation_pb2.LookupReservationsRequest(reservation_ids=[first.reservation_id, unknown]), timeout=5
    )
    assert (list(looked_up.found), list(looked_up.missing)) == ([found.reservation], [unknown])
    for request, code in [(unknown, grpc.StatusCode.NOT_FOUND), ("x", grpc.StatusCode.INVALID_ARGUMENT)]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stubs.reservation.GetReservation(
                reservation_pb2.GetReservationRequest(reservation_id=request), timeout=5
            )
        assert caught.value.code() is code


BAD_REQUESTS = {
    "a UUIDv4": {"reservation_id": str(uuid.UUID(int=5, version=4))},
    "upper case": {"reservation_id": "019A0B1C-2D3E-7F40-8A1B-2C3D4E5F6071"},
    "revision 0": {"revision": 0},
    "no sku": {"sku": ""},
    "no quantity": {"quantity": 0},
    "a negative quantity": {"quantity": -2},
    "no ttl": {"ttl_us": 0},
    "a revision above 2^53": {"revision": 2**53 + 1},
    "a ttl below a second": {"ttl_us": 999_999},
    "a ttl above 25 hours": {"ttl_us": 90_000_000_001},
}


@pytest.mark.parametrize("change", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
async def test_a_bad_request_is_refused_without_effect(
    simulator: Simulator, api: ReservationApi, change: dict[str, Any]
) -> None:
    answer = await api.apply(replace(hold(2), **change), timeout=5)
    assert isinstance(answer, PermanentFailure)
    assert answer.reason == "INVALID_FIELD"
    assert simulator.effects() == []


@pytest.mark.parametrize("change", [{"revision": 2**53}, {"ttl_us": 1_000_000}, {"ttl_us": 90_000_000_000}], ids=str)
async def test_the_bounds_of_a_field_are_inclusive(api: ReservationApi, change: dict[str, Any]) -> None:
    answer = await api.apply(replace(hold(2), **change), timeout=5)
    assert isinstance(answer, Decision)
    assert answer.state is Observed.HELD


async def test_a_message_without_an_id_is_refused(stubs: Stubs) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stubs.reservation.ApplyReservation(reservation_pb2.ApplyReservationRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "method", ["reservation.v1.ReservationService/ApplyReservation", "simulator.v1.SimulatorService/SetFaults"]
)
async def test_a_malformed_grpc_request_is_invalid_and_the_error_contains_no_exception_text(
    stubs: Stubs, method: str
) -> None:
    call: Any = stubs.channel.unary_unary(f"/cartgrpc.{method}")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\xff\xff\xff", timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Error" not in str(caught.value.details())


async def test_the_error_for_a_bug_contains_no_exception_text(
    simulator: Simulator, stubs: Stubs, ports: BoundPorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(simulator, "get", broken)
    reservation_id = hold().reservation_id
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stubs.reservation.GetReservation(
            reservation_pb2.GetReservationRequest(reservation_id=reservation_id), timeout=5
        )
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value.details())
    url = f"http://127.0.0.1:{ports.http}/v1/reservations/{reservation_id}"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 500
        assert "secret" not in await response.text()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"reservation": {"quantity": "x"}}', b'{"reservation": 3}', b"1"])
async def test_a_malformed_http_body_is_refused(ports: BoundPorts, body: bytes) -> None:
    url = f"http://127.0.0.1:{ports.http}/v1/reservations/{hold().reservation_id}"
    async with aiohttp.ClientSession() as session, session.put(url, data=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["reason"] == "MALFORMED"


async def test_an_error_about_a_wrong_type_names_the_field(ports: BoundPorts) -> None:
    url = f"http://127.0.0.1:{ports.http}/v1/reservations/{hold().reservation_id}"
    body = b'{"reservation": {"quantity": "many"}}'
    async with aiohttp.ClientSession() as session, session.put(url, data=body) as response:
        assert "quantity" in (await response.json())["error"]["message"]


async def test_the_path_and_the_body_must_name_the_same_reservation(ports: BoundPorts) -> None:
    intent = hold()
    body = json_format.MessageToDict(reservation_pb2.ApplyReservationRequest(reservation=wire.to_message(intent)))
    base = f"http://127.0.0.1:{ports.http}/v1/reservations/"
    async with aiohttp.ClientSession() as session:
        for reservation_id, status in [(hold().reservation_id, 400), (intent.reservation_id, 200)]:
            async with session.put(base + reservation_id, json=body) as response:
                assert response.status == status


async def test_both_services_report_their_health(stubs: Stubs) -> None:
    health: Any = health_pb2_grpc.HealthStub(stubs.channel)
    for service in ("", "cartgrpc.reservation.v1.ReservationService", "cartgrpc.simulator.v1.SimulatorService"):
        response = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        assert response.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_second_server_cannot_share_the_port(ports: BoundPorts) -> None:
    for addresses in [(f"127.0.0.1:{ports.grpc}", None), (None, f"127.0.0.1:{ports.http}")]:
        with pytest.raises(OSError, match=r".+"):
            await SimulatorServer(make_simulator(SimulatorConfig())).start(*addresses)


@pytest.mark.parametrize("address", ["", "50052", "host:", ":50052", "host:port", "host:70000"])
async def test_the_error_for_a_malformed_address_shows_the_correct_form(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        await SimulatorServer(make_simulator(SimulatorConfig())).start(address, None)


async def test_a_simulator_with_a_journal_remembers_after_a_restart(tmp_path: Path) -> None:
    config = SimulatorConfig("127.0.0.1:0", "127.0.0.1:0", stock={SKU: 2}, journal=tmp_path / "journal")
    first = hold(2)
    for _ in range(2):
        stopped, started = asyncio.Event(), asyncio.get_running_loop().create_future()
        served = asyncio.ensure_future(serve_simulator(config, stopped, started=started.set_result))
        ports: BoundPorts = await started
        api = connect(f"http://127.0.0.1:{ports.http}")
        answer = await api.apply(first, timeout=5)
        assert isinstance(answer, Decision)
        assert answer.state is Observed.HELD
        stopped.set()
        await served
        with pytest.raises(NoAnswerError):
            await api.apply(first, timeout=5)
        await api.close()
    assert len((tmp_path / "journal").read_bytes().splitlines()) == 1
