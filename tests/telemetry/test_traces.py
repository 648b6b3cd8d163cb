"""Traces of a whole service: a collector, and a Reservation API, over real sockets."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_pb2
from cartgrpc.v1 import cart_service_pb2 as pb
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from cart_grpc import otel
from cart_grpc.settings import Settings
from cart_grpc.simulator.access import Access, Headers
from cart_grpc.simulator.server import SimulatorConfig, SimulatorServer, make_simulator
from tests.gate import Gate
from tests.service.conftest import Replica, running_replica, url_at
from tests.telemetry.collector import Collector, SpanSeen, running_collector

ADD_ITEM = "cartgrpc.v1.CartService/AddItem"
SERVER, CLIENT = 2, 3
_numbers = itertools.count(1)


@dataclass(frozen=True)
class RecordingAccess(Access):
    """Lets every caller in, and keeps the header `traceparent` of each call."""

    seen: list[str] = field(default_factory=list)

    def checker(self) -> Callable[[Headers], None]:
        def check(headers: Headers) -> None:
            self.seen.extend(str(value) for name, value in headers if name.lower() == "traceparent")

        return check


@dataclass(frozen=True)
class Traced:
    """A service that traces, what its collector got, and the headers that its Reservation API got."""

    replica: Replica
    collector: Collector
    settings: Settings
    traceparents: list[str]
    gate: Gate

    def parent(self, *, sampled: bool = True) -> "Parent":
        """A new trace of a caller."""
        number = next(_numbers)
        return Parent(f"{number:032x}", f"{number:016x}", sampled)

    async def add(self, parent: "Parent | None" = None, cart: str = "") -> cart_pb2.Item:
        """Call AddItem, for a new user unless there is a `cart`."""
        item = cart_pb2.Item(sku="beans", quantity=1)
        request = pb.AddItemRequest(parent=cart or f"users/traced-{next(_numbers)}/carts/default", item=item)
        metadata = parent.metadata if parent else ()
        response = await self.replica.stub.AddItem(request, metadata=metadata, timeout=10)
        return response.item

    async def server_span(self, parent: "Parent") -> SpanSeen:
        """The exported span of a call that continued `parent`."""
        return await self.collector.find(lambda span: span.trace == parent.trace and span.kind == SERVER)

    async def stored(self, item: cart_pb2.Item) -> list[str | None]:
        """The trace contexts in the rows of the item's reservation."""
        url = self.settings.database_url.get_secret_value().replace("sqlite:", "sqlite+aiosqlite:")
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            of_user = "SELECT trace_context FROM reservations WHERE user_id = :user"
            rows = await connection.execute(text(of_user), {"user": item.name.split("/")[1]})
        await engine.dispose()
        return [row[0] for row in rows]


@dataclass(frozen=True)
class Parent:
    """The span of a caller."""

    trace: str
    span: str
    sampled: bool

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("traceparent", f"00-{self.trace}-{self.span}-{int(self.sampled):02}"),)


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"OTEL_BSP_SCHEDULE_DELAY": "20", "OTEL_METRICS_EXPORTER": "none", **variables}.items():
            patch.setenv(name, value)
        # A process remembers its resource.
        otel.resource.cache_clear()
        yield
        otel.resource.cache_clear()


@asynccontextmanager
async def running_traced(
    folder: Path, transport: str = "grpc", *, by_http: bool = False, **variables: str
) -> AsyncIterator[Traced]:
    """A service whose spans go to a collector."""
    async with AsyncExitStack() as stack:
        collector = await stack.enter_async_context(running_collector())
        access, gate = RecordingAccess(), Gate()
        gate.open()
        simulator = make_simulator(SimulatorConfig(default_stock=10, latency_us=30_000_000), sleep=gate.sleep)
        server = SimulatorServer(simulator, access)
        ports = await server.start("127.0.0.1:0", "127.0.0.1:0")
        stack.push_async_callback(server.stop, 0)
        settings = Settings(
            listen="127.0.0.1:0",
            database_url=f"sqlite:///{folder}/cart.db",
            reservation_url=url_at(ports, transport),
            reservation_poll_interval=0.05,
            lame_duck=0.0,
            shutdown_grace=0.5,
        )
        otlp = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.grpc_url, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
        if by_http:
            otlp = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.http_url}/v1/traces"}
        with environment(**{**otlp, **variables}):
            replica = await stack.enter_async_context(running_replica(settings))
        yield Traced(replica, collector, settings, access.seen, gate)


@pytest.fixture(scope="module")
async def traced(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Traced]:
    """One service for the whole module. By default, it samples calls whose caller does not say whether to."""
    async with running_traced(tmp_path_factory.mktemp("traced")) as running:
        yield running


async def test_the_span_of_a_call_continues_the_trace_of_its_caller(traced: Traced) -> None:
    parent = traced.parent()
    await traced.add(parent)
    span = await traced.server_span(parent)
    assert (span.service, span.name, span.parent) == ("cart-grpc", ADD_ITEM, parent.span)
    assert span.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": ADD_ITEM,
        "rpc.response.status_code": "OK",
    }
    assert not span.is_error
    write = await traced.collector.find(lambda span: span.trace == parent.trace and span.name == "write")
    assert write.parent == span.span
    assert write.attributes["cart.write.batch_size"] >= 1
    assert write.attributes["cart.write.wait"] >= 0


async def test_a_call_without_a_trace_begins_one(traced: Traced) -> None:
    await traced.replica.stub.GetCart(pb.GetCartRequest(name=(await traced.add()).name.partition("/items/")[0]))
    span = await traced.collector.find(lambda span: span.name == "cartgrpc.v1.CartService/GetCart")
    assert span.parent == ""


async def test_nothing_is_exported_and_stored_for_a_trace_that_its_caller_does_not_sample(traced: Traced) -> None:
    parent, later = traced.parent(sampled=False), traced.parent()
    item = await traced.add(parent)
    assert await traced.stored(item) == [None]
    await traced.add(later)
    # The spans of one process arrive in the order in which they end.
    await traced.server_span(later)
    assert not [span for span in traced.collector.spans if span.trace == parent.trace]


@pytest.mark.parametrize("transport", ["grpc", "http", "basic"])
async def test_a_call_to_the_reservation_api_links_to_the_call_that_caused_it(transport: str, tmp_path: Path) -> None:
    # The spans take the other way.
    async with running_traced(tmp_path, transport, by_http=True, OTEL_SERVICE_NAME="shop") as traced:
        parent = traced.parent()
        await traced.add(parent)
        cause = await traced.server_span(parent)
        attempt = await traced.collector.find(lambda span: cause.id in span.links)
    assert (attempt.service, attempt.kind) == ("shop", CLIENT)
    assert attempt.parent == ""
    assert attempt.trace != cause.trace
    assert attempt.attributes["server.address"] == "127.0.0.1"
    assert attempt.attributes["cart.reservation.state"] == "HELD"
    assert set(traced.traceparents) == {f"00-{attempt.trace}-{attempt.span}-01"}


async def test_a_batch_links_to_all_the_calls_that_caused_it_once(traced: Traced) -> None:
    parents = [traced.parent() for _ in range(4)]
    item = cart_pb2.Item(sku="tea", quantity=1)
    adds = [pb.AddItemRequest(parent=f"users/together-{n % 2}/carts/default", item=item) for n in range(4)]
    many = pb.BatchAddItemsRequest(parent=adds[0].parent)
    many.requests.extend(
        pb.AddItemRequest(parent=adds[0].parent, item=cart_pb2.Item(sku=f"tea-{n}", quantity=1)) for n in range(5)
    )
    traced.gate.close()
    await traced.replica.stub.BatchAddItems(many, metadata=parents[0].metadata, timeout=10)
    traced.gate.open()
    cause = await traced.server_span(parents[0])
    batch = await traced.collector.find(lambda span: cause.id in span.links)
    assert batch.name == "cartgrpc.reservation.v1.ReservationService/BatchApplyReservations"
    assert batch.links == (cause.id,)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        "nonsense",
        f"00-{0:032x}-{1:016x}-01",
        f"00-{1:032x}-{0:016x}-01",
        f"ff-{1:032x}-{1:016x}-01",
        f"00-{1:032x}-{1:016x}-01-more",
        f"00-{1:032X}-{1:015x}-01",
        f"00-{1:032x}-{1:016x}-zz",
        "0" * 5_000,
    ],
)
async def test_a_malformed_traceparent_is_ignored(traced: Traced, value: str) -> None:
    user = f"users/malformed-{next(_numbers)}/carts/default"
    request = pb.AddItemRequest(parent=user, item=cart_pb2.Item(sku="beans", quantity=1))
    metadata = (("traceparent", value), ("tracestate", "=,=" * 20))
    assert (await traced.replica.stub.AddItem(request, metadata=metadata, timeout=10)).item.quantity == 1


async def test_a_refusal_is_the_status_of_a_span_and_not_an_error(traced: Traced) -> None:
    parent = traced.parent()
    request = pb.GetCartRequest(name="users/nobody/carts/default")
    with pytest.raises(grpc.aio.AioRpcError):
        await traced.replica.stub.GetCart(request, metadata=parent.metadata, timeout=10)
    span = await traced.server_span(parent)
    assert span.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert not span.is_error
    assert "error.type" not in span.attributes


async def test_a_stream_has_a_span_until_its_caller_cancels_it(traced: Traced) -> None:
    parent = traced.parent()
    item = await traced.add()
    request = pb.WatchCartRequest(name=item.name.partition("/items/")[0])
    watch = traced.replica.stub.WatchCart(request, metadata=parent.metadata)
    await watch.read()
    watch.cancel()
    span = await traced.server_span(parent)
    assert span.name == "cartgrpc.v1.CartService/WatchCart"
    assert span.attributes["rpc.response.status_code"] == "CANCELLED"


async def test_health_checks_are_not_traced(traced: Traced) -> None:
    parent, later = traced.parent(), traced.parent()
    stub: Any = health_pb2_grpc.HealthStub(traced.replica.channel)
    await stub.Check(health_pb2.HealthCheckRequest(), metadata=parent.metadata, timeout=10)
    await traced.add(later)
    await traced.server_span(later)
    assert not [span for span in traced.collector.spans if span.trace == parent.trace]


async def test_a_later_call_that_is_not_sampled_takes_its_place_in_the_row(traced: Traced) -> None:
    item = await traced.add(traced.parent())
    (stored,) = await traced.stored(item)
    assert stored
    cart = item.name.partition("/items/")[0]
    await traced.add(traced.parent(sampled=False), cart)
    assert await traced.stored(item) == [None]


async def test_without_the_variables_nothing_is_stored(tmp_path: Path) -> None:
    async with running_traced(tmp_path, OTEL_TRACES_EXPORTER="none") as traced:
        item = await traced.add(traced.parent())
        assert await traced.stored(item) == [None]
        await traced.replica.settled(item.name.partition("/items/")[0])
    assert not traced.traceparents
    assert not traced.collector.spans


async def test_a_stop_exports_the_last_spans(tmp_path: Path) -> None:
    async with running_traced(tmp_path, OTEL_BSP_SCHEDULE_DELAY="600000") as traced:
        parent = traced.parent()
        await traced.add(parent)
        assert not traced.collector.spans
        collector = traced.collector
        traced.gate.open()
    assert [span for span in collector.spans if span.trace == parent.trace and span.name == ADD_ITEM]


async def test_a_collector_that_hangs_delays_no_call_and_no_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connected, writers = asyncio.Event(), list[asyncio.StreamWriter]()

    def keep_silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        connected.set()

    silent = await asyncio.start_server(keep_silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    hanging: dict[str, Any] = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_TIMEOUT": "15"}
    # A call or a stop that waits for the export takes 15 s.
    async with asyncio.timeout(14):
        async with running_traced(tmp_path, **hanging) as traced:
            await traced.add(traced.parent())
            await connected.wait()
            await traced.add(traced.parent())
    silent.close()
    for writer in writers:
        writer.close()
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


async def test_a_collector_that_is_away_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    away: dict[str, Any] = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:hunter2@127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }
    async with running_traced(tmp_path, **away) as traced:
        async with asyncio.timeout(20):
            while "traces are lost" not in caplog.text:
                await traced.add(traced.parent())
    lines = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert len([each for each in lines if each.startswith("traces are lost")]) == 1
    assert not [each for each in lines if "hunter2" in each or "Transient" in each]
