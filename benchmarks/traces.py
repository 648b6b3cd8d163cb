"""The cost of traces: server CPU of AddItem without them, at a sampling of 1 %, and of all calls.

`callers decide`: every call has a `traceparent`, and 1 % of them ask to be sampled. The collector is not in the
server's process, and the reconciler is paused.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

from benchmarks.access import USERS, Client, compare_adds
from benchmarks.plan import Plan
from benchmarks.programs import Json, Testbed

Metadata = tuple[tuple[str, str], ...]
OFF: Final = "off"
# The same as OFF. Its difference is the noise: two processes never cost quite the same.
CONTROL: Final = "off, callers decide"
SAMPLED: Final[dict[str, str]] = {"1 %": "0.01", "1 %, callers decide": "0.01", "100 %": "1"}


class _Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request: pb.ExportTraceServiceRequest, context: Any) -> pb.ExportTraceServiceResponse:  # noqa: N802 - the RPC's name
        return pb.ExportTraceServiceResponse()


def traces(testbed: Testbed, database: str, plan: Plan) -> Json:
    """Measure AddItem with each way of sampling."""
    collector = grpc.server(ThreadPoolExecutor(4))
    add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(_Collector(), collector)
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    clients = {OFF: _client(testbed, database, {}), CONTROL: _client(testbed, database, {}, with_parents=True)}
    for name, share in SAMPLED.items():
        settings: dict[str, Any] = {
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": share,
        }
        clients[name] = _client(testbed, database, settings, with_parents="callers" in name)
    try:
        return compare_adds(clients, plan)
    finally:
        for client in clients.values():
            client.product.program.stop()
        collector.stop(None)


def _client(testbed: Testbed, database: str, settings: dict[str, Any], *, with_parents: bool = False) -> Client:
    product = testbed.serve(testbed.database(database), **settings)
    metadata = tuple(_parent(user) for user in range(USERS)) if with_parents else ((),) * USERS
    return Client(product, product.address, None, metadata)


def _parent(user: int) -> Metadata:
    return (("traceparent", f"00-{user + 1:032x}-{user + 1:016x}-{int(user % 100 == 0):02}"),)
