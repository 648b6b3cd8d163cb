"""Metrics by OTLP: a real receiver over HTTP and over gRPC gets what the port for Prometheus shows."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cart_grpc.settings import Settings
from cart_grpc.startup import StartupError
from cart_grpc.telemetry.publishing import measures, publishing
from tests.telemetry.collector import receiving
from tests.telemetry.scrapes import scrape, series


@dataclass
class Receiver:
    """The metrics that arrived last, by name, and the attributes of their resource."""

    url: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    resource: dict[str, str] = field(default_factory=dict)

    def take(self, request: pb.ExportMetricsServiceRequest) -> None:
        for of_resource in request.resource_metrics:
            self.resource = {each.key: each.value.string_value for each in of_resource.resource.attributes}
            for scope in of_resource.scope_metrics:
                self.metrics = {metric.name: metric for metric in scope.metrics}

    async def until_received(self) -> None:
        async with asyncio.timeout(20):
            while not self.metrics:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def over_http() -> AsyncIterator[Receiver]:
    receiver = Receiver()

    def take(body: bytes) -> None:
        receiver.take(pb.ExportMetricsServiceRequest.FromString(body))

    async with receiving("/v1/metrics", take) as url:
        receiver.url = url
        yield receiver


class _Service(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the RPC's name
        self._receiver.take(request)
        return pb.ExportMetricsServiceResponse()


@asynccontextmanager
async def over_grpc() -> AsyncIterator[Receiver]:
    receiver, server = Receiver(), grpc.aio.server()
    add: Any = metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server
    add(_Service(receiver), server)
    receiver.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield receiver
    await server.stop(None)


@contextmanager
def instruments() -> Iterator[CollectorRegistry]:
    """A registry with one instrument of each kind, each with values."""
    registry = CollectorRegistry()
    Counter("cart_alarms_total", "Alarms.", registry=registry).inc(3)
    Gauge("cart_calls", "Calls.", ["state"], registry=registry).labels("running").set(7)
    connections = Gauge("db_client_connection_max", "Most.", ["db_client_connection_pool_name"], registry=registry)
    connections.labels("write").set(1)
    labels = ["rpc_system_name", "rpc_method"]
    durations = Histogram(
        "rpc_server_call_duration_seconds", "Duration.", labels, registry=registry, buckets=(0.1, 1.0)
    )
    for seconds in (0.05, 0.05, 0.5, 3.0):
        durations.labels("grpc", "cartgrpc.v1.CartService/AddItem").observe(seconds)
    yield registry


def environment(monkeypatch: pytest.MonkeyPatch, url: str, protocol: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")


@pytest.mark.parametrize(
    ("receiver_over", "protocol"), [(over_http, "http/protobuf"), (over_grpc, "grpc")], ids=["http", "grpc"]
)
async def test_the_same_instruments_arrive_under_the_names_of_the_conventions(
    receiver_over: Any, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiver_over() as receiver:
        environment(monkeypatch, receiver.url, protocol)
        settings = Settings(metrics_listen="127.0.0.1:0")
        with instruments() as registry, publishing(settings, registry) as port:
            await receiver.until_received()
            shown = await scrape(port)
    assert receiver.resource["service.name"] == "cart-grpc"
    (alarms,) = receiver.metrics["cart_alarms"].sum.data_points
    assert receiver.metrics["cart_alarms"].sum.is_monotonic
    assert alarms.as_double == shown[series("cart_alarms_total")] == 3
    (calls,) = receiver.metrics["cart_calls"].gauge.data_points
    assert (calls.as_double, calls.attributes[0].value.string_value) == (7, "running")
    (connections,) = receiver.metrics["db.client.connection.max"].sum.data_points
    assert not receiver.metrics["db.client.connection.max"].sum.is_monotonic
    assert connections.attributes[0].key == "db.client.connection.pool.name"
    durations = receiver.metrics["rpc.server.call.duration"]
    assert durations.unit == "s"
    (point,) = durations.histogram.data_points
    assert list(point.bucket_counts) == [2, 1, 1]
    assert list(point.explicit_bounds) == [0.1, 1.0]
    assert (point.count, point.sum) == (4, 3.6)
    assert {each.key for each in point.attributes} == {"rpc.system.name", "rpc.method"}


async def test_a_collector_that_is_away_is_one_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment(monkeypatch, "http://127.0.0.1:1", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    caplog.set_level(logging.WARNING)
    with instruments() as registry, publishing(Settings(), registry) as port:
        assert port == 0
        async with asyncio.timeout(20):
            while not caplog.records:
                await asyncio.sleep(0.01)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["metrics are not exported"]


def test_nobody_measures_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not measures(Settings())
    assert measures(Settings(metrics_listen="127.0.0.1:0"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert measures(Settings())
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    assert not measures(Settings())


@pytest.mark.parametrize("interval", ["soon", "0", "-5"])
def test_a_wrong_interval_is_refused_in_one_line(interval: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, "http://127.0.0.1:1", "http/protobuf")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", interval)
    with pytest.raises(StartupError, match="OTEL_METRIC_EXPORT_INTERVAL: must be"), publishing(Settings()):
        pass
