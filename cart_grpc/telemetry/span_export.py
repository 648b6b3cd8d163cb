"""The export of spans: an exporter that the OTEL_* variables choose, in a thread of its own.

A collector that is away delays no call and no stop. Spans that it does not take are lost.
"""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from cart_grpc import otel
from cart_grpc.logs import events
from cart_grpc.startup import StartupError
from cart_grpc.telemetry.attempt_names import AttemptNames
from cart_grpc.telemetry.sdk import LoggedExports, make_exporter
from cart_grpc.telemetry.tracing import OtelTracer

# How long a stop waits for the last spans.
FLUSH_SECONDS: Final = 2.0


@asynccontextmanager
async def exporting(reservation_url: str) -> AsyncIterator[OtelTracer]:
    """Return a tracer whose spans are exported until the block ends, and FLUSH_SECONDS longer at most.

    Raises StartupError if a variable has a value that the SDK does not take.
    """
    try:
        processor = BatchSpanProcessor(LoggedExporter(make_exporter("traces")))
        # The first provider is made for its sampler: the SDK reads OTEL_TRACES_SAMPLER.
        sampler = TracerProvider(shutdown_on_exit=False).sampler
        provider = TracerProvider(ALWAYS_ON, otel.resource(), shutdown_on_exit=False)
    except otel.OtelError as error:
        raise StartupError(str(error)) from None
    except Exception as error:
        raise StartupError(f"OTEL_*: traces cannot be exported: {type(error).__name__}: {error}") from error
    provider.add_span_processor(processor)
    # As at the start of the process: a full collection need not look at all that was imported here.
    gc.freeze()
    try:
        yield OtelTracer(
            sampler, provider.get_tracer("cart_grpc", version("cart-grpc")), AttemptNames.at(reservation_url)
        )
    finally:
        await _stop(processor)


async def _stop(processor: SpanProcessor) -> None:
    """Export the remaining spans, for FLUSH_SECONDS at most."""
    # The SDK waits for 30 s. A daemon does not keep the process from ending.
    stopping = threading.Thread(target=processor.shutdown, name="stop-traces", daemon=True)
    stopping.start()
    await asyncio.to_thread(stopping.join, FLUSH_SECONDS)


class LoggedExporter(SpanExporter):
    """Exports with `exporter`, and logs an outage."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._exports = LoggedExports(
            events.TRACES_LOST, events.TRACES_EXPORTED, "traces are lost", "traces are exported again"
        )

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See SpanExporter. It raises nothing."""
        succeeded = self._exports.run(lambda: self._exporter.export(spans))
        return SpanExportResult.SUCCESS if succeeded else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """See SpanExporter."""
        self._exporter.shutdown()
