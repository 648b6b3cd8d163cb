"""The counters of this process as a message of `cartgrpc.v1`, for operators. They are those of the metrics."""

from collections import Counter
from collections.abc import Mapping, Sequence

import prometheus_client
from cartgrpc.v1 import cart_admin_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from cart_grpc.admin import ReconcilerStatus
from cart_grpc.metrics import ATTEMPTS, CALL_DURATION
from cart_grpc.rpc.methods import CART_SERVICE

Response = pb.GetProcessStatsResponse


def process_stats_message(reconciler: ReconcilerStatus | None) -> pb.GetProcessStatsResponse:
    """Return what this process has counted since it started, and its lanes."""
    read_time = Timestamp()
    read_time.GetCurrentTime()
    calls = _read_counts(CALL_DURATION, "_count", ("rpc_method", "rpc_response_status_code"))
    attempts = _read_counts(ATTEMPTS, "_total", ("lane", "outcome"))
    prefix = f"{CART_SERVICE}/"
    return Response(
        read_time=read_time,
        calls=[
            Response.EndedCalls(method=method.removeprefix(prefix), code=code, count=count)
            for (method, code), count in calls.items()
            if method.startswith(prefix)
        ],
        attempts=[
            Response.EndedAttempts(lane=lane, outcome=outcome, count=count)
            for (lane, outcome), count in attempts.items()
        ],
        lanes=[
            Response.Lane(lane=one.lane, in_flight_count=one.in_flight, capacity=one.capacity)
            for one in (reconciler.lanes if reconciler else ())
        ],
    )


def _read_counts(
    instrument: prometheus_client.Counter | prometheus_client.Histogram, suffix: str, labels: Sequence[str]
) -> Mapping[tuple[str, ...], int]:
    """Return the count for each combination of the labels' values."""
    counts: Counter[tuple[str, ...]] = Counter()
    for family in instrument.collect():
        for sample in family.samples:
            if sample.name.endswith(suffix):
                counts[tuple(sample.labels[name] for name in labels)] += int(sample.value)
    return counts
