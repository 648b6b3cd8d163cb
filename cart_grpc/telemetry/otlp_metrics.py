"""OTLP from the same instruments: the registry's metrics as OpenTelemetry's data, exported once in a while.

Names are those of OpenTelemetry's semantic conventions if there is one, else Prometheus' without their unit.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Sample

from cart_grpc.logs import events
from cart_grpc.metrics import CONVENTIONS
from cart_grpc.otel import OtelError, resource
from cart_grpc.startup import StartupError
from cart_grpc.telemetry.sdk import LoggedExports, make_exporter

Labels = tuple[tuple[str, str], ...]
_SCOPE: Final = InstrumentationScope("cart_grpc")
_CUMULATIVE: Final = AggregationTemporality.CUMULATIVE
_CONVENTIONS: Final = {name.replace(".", "_"): name for name in CONVENTIONS}
_UNITS: Final = {"_seconds": "s", "_bytes": "By"}
_DEFAULT_INTERVAL_MILLIS: Final = 60_000
# A stop waits this long for the last export.
_LAST_EXPORT_SECONDS: Final = 1.0


@contextmanager
def exporting(registry: CollectorRegistry) -> Iterator[None]:
    """Export the metrics of `registry` until the block ends, in a thread of its own. Raises StartupError."""
    try:
        interval = _find_interval()
        export = _Export(registry, make_exporter("metrics"))
    except OtelError as error:
        raise StartupError(str(error)) from None
    except Exception as error:
        raise StartupError(f"OTEL_*: metrics cannot be exported: {type(error).__name__}: {error}") from error
    stopped = threading.Event()
    # A daemon: a collector that hangs does not keep the process from ending.
    thread = threading.Thread(target=export.run, args=(stopped, interval), name="otlp-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(_LAST_EXPORT_SECONDS)


class _Export:
    """Exports the metrics of a registry, and logs an outage."""

    def __init__(self, registry: CollectorRegistry, exporter: MetricExporter) -> None:
        self._registry = registry
        self._exporter = exporter
        self._began = time.time_ns()
        self._exports = LoggedExports(
            events.METRICS_LOST, events.METRICS_EXPORTED, "metrics are not exported", "metrics are exported again"
        )

    def run(self, stopped: threading.Event, interval: float) -> None:
        """Export every `interval` seconds until `stopped` is set, and once more then."""
        is_last = False
        while not is_last:
            is_last = stopped.wait(interval)
            self._exports.run(self._export)
        self._exporter.shutdown()

    def _export(self) -> MetricExportResult:
        return self._exporter.export(to_metrics_data(self._registry, self._began, time.time_ns()))


def to_metrics_data(registry: CollectorRegistry, began: int, now: int) -> MetricsData:
    """Return the registry's metrics, counted since `began`. Times are nanoseconds since the Unix epoch."""
    metrics = [metric for family in registry.collect() if (metric := _to_metric(family, began, now))]
    scope = ScopeMetrics(_SCOPE, metrics, "")
    return MetricsData([ResourceMetrics(resource(), [scope], "")])


def _to_metric(family: Family, began: int, now: int) -> Metric | None:
    unit = next((unit for unit in _UNITS if family.name.endswith(unit)), "")
    name = family.name.removesuffix(unit)
    data: Sum | Gauge | Histogram
    match family.type:
        case "counter":
            samples = [each for each in family.samples if each.name.endswith("_total")]
            data = Sum(_to_points(samples, began, now), _CUMULATIVE, is_monotonic=True)
        case "gauge" if name in _CONVENTIONS:
            # In the conventions, these are counters that go up and down.
            data = Sum(_to_points(family.samples, began, now), _CUMULATIVE, is_monotonic=False)
        case "gauge":
            data = Gauge(_to_points(family.samples, began, now))
        case "histogram":
            data = Histogram(_to_histogram_points(family.samples, began, now), _CUMULATIVE)
        case _:
            return None
    return Metric(_CONVENTIONS.get(name, name), family.documentation, _UNITS.get(unit, ""), data)


def _to_points(samples: Sequence[Sample], began: int, now: int) -> list[NumberDataPoint]:
    return [NumberDataPoint(_to_attributes(each.labels), began, now, each.value) for each in samples]


def _to_histogram_points(samples: Sequence[Sample], began: int, now: int) -> list[HistogramDataPoint]:
    buckets: dict[Labels, dict[float, float]] = {}
    sums: dict[Labels, float] = {}
    for sample in samples:
        labels = tuple(sorted((name, value) for name, value in sample.labels.items() if name != "le"))
        if sample.name.endswith("_bucket"):
            buckets.setdefault(labels, {})[float(sample.labels["le"])] = sample.value
        elif sample.name.endswith("_sum"):
            sums[labels] = sample.value
    return [_to_histogram_point(dict(labels), found, sums[labels], began, now) for labels, found in buckets.items()]


def _to_histogram_point(
    labels: Mapping[str, str], cumulative: Mapping[float, float], total: float, began: int, now: int
) -> HistogramDataPoint:
    """A bucket of Prometheus includes the counts of all smaller buckets. A bucket of OTLP does not."""
    bounds = sorted(cumulative)
    counts = [int(cumulative[bound]) for bound in bounds]
    own = [count - before for count, before in zip(counts, (0, *counts), strict=False)]
    return HistogramDataPoint(_to_attributes(labels), began, now, counts[-1], total, own, bounds[:-1], min=0.0, max=0.0)


def _to_attributes(labels: Mapping[str, str]) -> dict[str, str]:
    return {_CONVENTIONS.get(name, name): value for name, value in labels.items()}


def _find_interval() -> float:
    """Return the seconds between two exports. Raises ValueError."""
    variable = "OTEL_METRIC_EXPORT_INTERVAL"
    text = os.environ.get(variable, "").strip() or str(_DEFAULT_INTERVAL_MILLIS)
    if not text.isascii() or not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{variable}: must be a number of milliseconds greater than 0")
    return int(text) / 1000
