"""A collector of traces: it takes OTLP over gRPC and over HTTP, on sockets, and keeps the spans."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from aiohttp import web
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

WAIT_SECONDS = 20.0


@dataclass(frozen=True)
class SpanSeen:
    """A span as it was exported. `trace`, `span` and `parent` are in hexadecimal; `links` are (trace, span)."""

    service: str
    name: str
    kind: int
    trace: str
    span: str
    parent: str
    attributes: dict[str, Any]
    links: tuple[tuple[str, str], ...]
    is_error: bool

    @property
    def id(self) -> tuple[str, str]:
        return self.trace, self.span


@dataclass
class Collector:
    """The spans that arrived. `grpc_url` and `http_url` are its endpoints."""

    spans: list[SpanSeen] = field(default_factory=list)
    grpc_url: str = ""
    http_url: str = ""

    def named(self, name: str) -> list[SpanSeen]:
        return [each for each in self.spans if each.name == name]

    async def find(self, matches: Callable[[SpanSeen], bool]) -> SpanSeen:
        """Return the first span that matches. Fails after WAIT_SECONDS."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                for span in self.spans:
                    if matches(span):
                        return span
                await asyncio.sleep(0.01)

    def take(self, request: pb.ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            of_resource = {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [_to_seen(of_resource["service.name"], span) for span in scope.spans]


def _to_seen(service: str, span: Any) -> SpanSeen:
    values = {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}
    links = tuple((each.trace_id.hex(), each.span_id.hex()) for each in span.links)
    ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
    return SpanSeen(
        service, span.name, span.kind, *ids, values, links, span.status.code == span.status.STATUS_CODE_ERROR
    )


class _Service(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    async def Export(self, request: pb.ExportTraceServiceRequest, context: Any) -> pb.ExportTraceServiceResponse:  # noqa: N802 - the RPC's name
        self._collector.take(request)
        return pb.ExportTraceServiceResponse()


@asynccontextmanager
async def running_collector() -> AsyncIterator[Collector]:
    """Run a collector."""
    collector = Collector()

    def take(body: bytes) -> None:
        collector.take(pb.ExportTraceServiceRequest.FromString(body))

    server = grpc.aio.server()
    add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(_Service(collector), server)
    collector.grpc_url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with receiving("/v1/traces", take) as url:
            collector.http_url = url
            yield collector
    finally:
        await server.stop(None)


@asynccontextmanager
async def receiving(path: str, take: Callable[[bytes], None]) -> AsyncIterator[str]:
    """Run an HTTP server that hands the body of each export to `take`. Yields its URL, without `path`."""

    async def export(request: web.Request) -> web.Response:
        take(await request.read())
        return web.Response(content_type="application/x-protobuf")

    application = web.Application()
    application.router.add_post(path, export)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
