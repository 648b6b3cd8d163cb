"""Every metric moves when the service does the work that it measures, on both databases. Scraped over HTTP."""

import asyncio
import importlib
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_admin_service_pb2 as admin_pb
from cartgrpc.v1 import cart_admin_service_pb2_grpc, cart_pb2, cart_service_pb2_grpc
from cartgrpc.v1 import cart_service_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from cart_grpc import app
from cart_grpc.background import sampling
from cart_grpc.rpc import watching
from cart_grpc.rpc.methods import CART_SERVICE
from cart_grpc.settings import Settings
from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.simulator import Simulator
from tests.gate import Gate
from tests.service.conftest import CART, Replica, gate, settings, simulator, simulator_url, transport
from tests.telemetry.scrapes import Scrape, instruments, names_of, scrape, series, until

__all__ = ["gate", "settings", "simulator", "simulator_url", "transport"]

# Instruments that a caller and an operator cannot move, and the tests that move them.
ELSEWHERE = {
    "QUEUED_COMMANDS": "tests.store.test_gauges:test_commands_that_wait_are_counted_by_queue",
    "CONNECTIONS_PENDING": "tests.store.test_gauges:test_transactions_that_wait_for_the_connection_are_counted",
    "DATABASE_RETRIES": "tests.store.test_ambiguous_commit:test_a_lost_commit_reply_is_resolved_by_the_commit_marker",
    "AMBIGUOUS_COMMITS": "tests.store.test_ambiguous_commit:test_a_lost_commit_reply_is_resolved_by_the_commit_marker",
    "CLOCK_STEPS": "tests.store.test_gauges:test_a_step_of_the_database_clock_is_counted",
    "DUPLICATES": "tests.service.test_basic:test_a_post_that_arrives_twice_is_found_and_undone",
    "ALARMS": "tests.service.test_basic:test_a_post_that_arrives_twice_is_found_and_undone",
    "CERTIFICATE_EXPIRY": "tests.access.test_server_tls:test_the_metric_has_the_first_certificate_of_a_file_to_expire",
}


@dataclass
class Measured:
    """A service with a metrics port, and the most and the least that each series has had."""

    replica: Replica
    admin: Any
    port: int
    simulator: Simulator
    gate: Gate
    before: Scrape
    most: dict[Any, float] = field(default_factory=dict)

    async def until(self, holds: Callable[[Scrape], bool]) -> Scrape:
        """Scrape until `holds` is true."""

        def look(seen: Scrape) -> bool:
            for name, value in seen.items():
                self.most[name] = max(value, self.most.get(name, value))
            return holds(seen)

        return await until(self.port, look)

    async def until_positive(self, *wanted: tuple[str, dict[str, str]]) -> None:
        """Scrape until each of these series is positive."""
        names = [series(name, **labels) for name, labels in wanted]
        await self.until(lambda seen: all(seen.get(name, 0) > 0 for name in names))

    def moved(self) -> set[str]:
        """The names of the samples that grew, and those of gauges that were positive."""
        is_gauge = {name for each in instruments().values() if len(names_of(each)) == 1 for name in names_of(each)}
        return {
            name
            for (name, labels), value in self.most.items()
            if value > (0 if name in is_gauge and not name.endswith("_total") else self.before.get((name, labels), 0))
        }


@pytest.fixture(autouse=True)
def quick_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "SAMPLE_SECONDS", 0.02)
    monkeypatch.setattr(sampling, "DATABASE_SAMPLE_SECONDS", 0.05)
    monkeypatch.setattr(sampling, "MAX_SHARE", 1.0)
    monkeypatch.setattr(watching, "HEARTBEAT_SECONDS", 0.05)


@asynccontextmanager
async def measured(settings: Settings, simulator: Simulator, gate: Gate) -> AsyncIterator[Measured]:
    async with AsyncExitStack() as stack:
        ports = await stack.enter_async_context(app.running(settings, serve=True, reconcile=True))
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
            for port in (ports.port, ports.admin_port)
        ]
        stub = cart_service_pb2_grpc.CartServiceStub(channels[0])
        admin: Any = cart_admin_service_pb2_grpc.CartAdminServiceStub(channels[1])
        before = await scrape(ports.metrics_port)
        replica = Replica(stub, channels[0], ports.port)
        yield Measured(replica, admin, ports.metrics_port, simulator, gate, before)


@pytest.fixture
async def service(settings: Settings, simulator: Simulator, gate: Gate) -> AsyncIterator[Measured]:
    changed = settings.with_changes(
        metrics_listen="127.0.0.1:0",
        admin_listen="127.0.0.1:0",
        reservation_breaker_threshold=1,
        housekeeping_interval=0.1,
    )
    async with measured(changed, simulator, gate) as service:
        yield service
    gate.open()


async def test_every_metric_moves(service: Measured) -> None:
    await _hold_a_call_and_a_stream(service)
    await _pause(service)
    await _sell(service)
    await _break_the_api(service)
    await service.until(lambda _: _unmoved(service) == [])


def _unmoved(service: Measured) -> list[str]:
    moved = service.moved()
    return sorted(
        name
        for name, instrument in instruments().items()
        if name not in ELSEWHERE and not names_of(instrument) <= moved
    )


@pytest.mark.parametrize("instrument", ELSEWHERE)
def test_the_other_metrics_have_a_test_of_their_own(instrument: str) -> None:
    module, _, name = ELSEWHERE[instrument].partition(":")
    assert instrument in inspect.getsource(getattr(importlib.import_module(module), name))


async def _hold_a_call_and_a_stream(service: Measured) -> None:
    """While the Reservation API takes its time, a stream is open, and a call waits."""
    service.gate.close()
    await service.replica.add()
    stream = service.replica.stub.WatchCart(pb.WatchCartRequest(name=CART))
    request = pb.AddItemRequest(parent=CART, item=cart_pb2.Item(sku="filters"), max_wait=Duration(seconds=10))
    waiting = asyncio.ensure_future(service.replica.stub.AddItem(request, timeout=15))
    await service.until_positive(
        ("cart_streams", {"rpc_method": f"{CART_SERVICE}/WatchCart"}),
        ("cart_stream_messages_total", {"kind": "heartbeat"}),
        ("cart_calls", {"state": "waiting"}),
        ("cart_reservation_claims_in_flight", {"lane": "hold"}),
        ("cart_reservations", {"state": "calling", "disposition": "hold"}),
    )
    service.gate.open()
    await waiting
    stream.cancel()
    await service.until(lambda seen: seen[series("cart_streams", rpc_method=f"{CART_SERVICE}/WatchCart")] == 0)
    cancelled = _calls("WatchCart", "CANCELLED")
    await service.until(lambda seen: seen.get(cancelled, 0) == service.before.get(cancelled, 0) + 1)


async def _pause(service: Measured) -> None:
    """While an operator pauses all calls, reservations are due."""
    await service.admin.PauseReservations(admin_pb.PauseReservationsRequest(reason="test"), timeout=10)
    await service.replica.add("cups")
    await service.until_positive(
        ("cart_reservations_paused", {}),
        ("cart_reservations_due", {"lane": "hold"}),
        ("cart_reservations_oldest_due_age_seconds", {"lane": "hold"}),
    )
    await service.admin.ResumeReservations(admin_pb.ResumeReservationsRequest(), timeout=10)
    await service.replica.settled()


async def _sell(service: Measured) -> None:
    """A checkout is open, and then it is completed. A refusal has a reason."""
    stub = service.replica.stub
    with suppress(grpc.aio.AioRpcError):
        await stub.GetCart(pb.GetCartRequest(name="users/nobody/carts/none"), timeout=10)
    wait = Duration(seconds=10)
    checkout = (await stub.BeginCheckout(pb.BeginCheckoutRequest(name=CART, max_wait=wait), timeout=15)).checkout
    await service.until_positive(
        ("cart_checkouts", {"state": "OPEN"}), ("cart_checkouts_oldest_age_seconds", {"state": "OPEN"})
    )
    request = pb.CompleteCheckoutRequest(name=checkout.name, order_reference="order-1", max_wait=wait)
    await stub.CompleteCheckout(request, timeout=15)
    ended = series("cart_checkouts_ended_total", state="COMPLETED")
    await service.until(lambda seen: seen[ended] == service.before[ended] + 1)
    # The sweeper does it.
    await service.replica.add(cart="users/leaving/carts/default")
    await service.admin.EraseUser(admin_pb.EraseUserRequest(name="users/leaving"), timeout=10)


async def _break_the_api(service: Measured) -> None:
    service.simulator.faults = Faults(lost_before_effect=1.0)
    await service.replica.add("grinders")
    await service.until_positive(("cart_reservation_breaker_open", {}))
    service.simulator.faults = Faults()


def _calls(method: str, code: str) -> Any:
    return series(
        "rpc_server_call_duration_seconds_count",
        rpc_system_name="grpc",
        rpc_method=f"{CART_SERVICE}/{method}",
        rpc_response_status_code=code,
    )


async def test_labels_have_few_values_however_many_users_and_skus_there_are(service: Measured) -> None:
    await _call_oddly(service, 0)
    await service.until(lambda seen: seen[series("cart_reservations_due", lane="hold")] == 0)
    before = (await scrape(service.port)).keys()
    for number in range(1, 8):
        await _call_oddly(service, number)
    assert (await scrape(service.port)).keys() == before


async def _call_oddly(service: Measured, number: int) -> None:
    """Call for another user, sku and cart; a method that there is not, and one whose request is garbage."""
    cart = f"users/user-{number}/carts/cart-{number}"
    await service.replica.add(f"sku-{number}", cart=cart)
    await service.replica.settled(cart)
    for path, data in (
        (f"/{CART_SERVICE}/Odd{number}", b""),
        (f"/odd.Service{number}/AddItem", b""),
        (f"/{CART_SERVICE}/GetCart", b"\xff" * (number + 1)),
    ):
        call: Any = service.replica.channel.unary_unary(path)
        with pytest.raises(grpc.aio.AioRpcError):
            await call(data, timeout=10)
