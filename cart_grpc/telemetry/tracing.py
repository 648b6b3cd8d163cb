"""Traces with OpenTelemetry's SDK: which calls are sampled, their spans, and the spans of calls that they cause."""

import asyncio
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, Sampler
from opentelemetry.semconv.attributes import error_attributes
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cart_grpc.telemetry.attempt_names import AttemptNames
from cart_grpc.tracing import NO_ATTEMPT, TRACE_CONTEXT, AttemptSpan

RPC_SYSTEM: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS: Final = "rpc.response.status_code"
# The statuses of a server span that are its own fault, by the semantic conventions. Others are the caller's.
SERVER_ERRORS: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
_EMPTY: Final = Context()
_HEADERS: Final = ("traceparent", "tracestate")
_propagator: Final = TraceContextTextMapPropagator()


class OtelTracer:
    """Implements Tracer.

    `sampler` decides about each call of this service. `recorder` records every span that it is asked for: those of
    sampled calls, and of the attempts that they cause. `names` describes the Reservation API.
    """

    def __init__(self, sampler: Sampler, recorder: Tracer, names: AttemptNames) -> None:
        self._sampler = sampler
        self._recorder = recorder
        self._names = names

    def begin_call(self, method: str, metadata: Iterable[tuple[str, Any]]) -> "OtelCallSpan | None":
        """See Tracer.begin_call."""
        parent, trace_id = _EMPTY, 0
        for key, _ in metadata:
            if key == "traceparent":
                parent = _extract(metadata)
                trace_id = get_current_span(parent).get_span_context().trace_id
                break
        trace_id = trace_id or random.getrandbits(128) or 1
        attributes = {RPC_SYSTEM: "grpc", RPC_METHOD: method}
        decision = self._sampler.should_sample(parent, trace_id, method, SpanKind.SERVER, attributes)
        if decision.decision is not Decision.RECORD_AND_SAMPLE:
            # Nothing is recorded, but the lines of the log have the trace's id.
            TRACE_CONTEXT.set(f"00-{trace_id:032x}-{random.getrandbits(64):016x}-00")
            return None
        attributes.update(decision.attributes)
        span = self._recorder.start_span(method, parent, SpanKind.SERVER, attributes)
        TRACE_CONTEXT.set(to_text(span.get_span_context()))
        return OtelCallSpan(span)

    def attempt(self, causes: Iterable[str | None], *, is_batch: bool) -> AbstractContextManager[AttemptSpan]:
        """See Tracer.attempt."""
        # The calls of one batch may have the same cause.
        contexts = [context for cause in dict.fromkeys(causes) if cause and (context := to_span_context(cause))]
        if contexts:
            return self._attempt(contexts, is_batch=is_batch)
        TRACE_CONTEXT.set("")
        return NO_ATTEMPT

    @contextmanager
    def _attempt(self, contexts: Sequence[SpanContext], *, is_batch: bool) -> Iterator[AttemptSpan]:
        name, attributes = self._names.of(is_batch=is_batch)
        # A trace of its own: its causes are calls of many callers, and are long over.
        links = [Link(context) for context in contexts]
        span = self._recorder.start_span(name, _EMPTY, SpanKind.CLIENT, attributes, links)
        TRACE_CONTEXT.set(to_text(span.get_span_context()))
        noted = OtelAttemptSpan(span, self._names)
        try:
            yield noted
        except (asyncio.CancelledError, GeneratorExit):
            noted.note_failure("CANCELLED")
            raise
        finally:
            span.end()
            TRACE_CONTEXT.set("")

    def note_write(self, cause: str, *, seconds: float, wait_seconds: float, batch_size: int) -> None:
        """See Tracer.note_write."""
        now = time.time_ns()
        attributes = {"cart.write.wait": wait_seconds, "cart.write.batch_size": batch_size}
        parent = _propagator.extract({"traceparent": cause}, _EMPTY)
        span = self._recorder.start_span(
            "write", parent, SpanKind.INTERNAL, attributes, start_time=now - int(seconds * 1e9)
        )
        span.end(now)


class OtelCallSpan:
    """Implements CallSpan."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def end(self, code: str) -> None:
        """See CallSpan.end."""
        self._span.set_attribute(RPC_STATUS, code)
        if code in SERVER_ERRORS:
            self._span.set_attribute(error_attributes.ERROR_TYPE, code)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class OtelAttemptSpan:
    """Implements AttemptSpan."""

    def __init__(self, span: Span, names: AttemptNames) -> None:
        self._span = span
        self._names = names

    def note_answer(self, state: str) -> None:
        """See AttemptSpan.note_answer."""
        self._span.set_attribute("cart.reservation.state", state)

    def note_failure(self, code: str) -> None:
        """See AttemptSpan.note_failure."""
        self._span.set_attributes({error_attributes.ERROR_TYPE: code, **self._names.of_failure(code)})
        self._span.set_status(Status(StatusCode.ERROR))


def to_text(context: SpanContext) -> str:
    """Return a span's context as a trace context."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"


def to_span_context(text: str) -> SpanContext | None:
    """Return the span's context in a trace context, None if it is malformed."""
    context = get_current_span(_propagator.extract({"traceparent": text}, _EMPTY)).get_span_context()
    return context if context.is_valid else None


def _extract(metadata: Iterable[tuple[str, Any]]) -> Context:
    """Return the context in a call's metadata. It is empty if the headers are malformed, or if one is there twice."""
    found: dict[str, list[str]] = {name: [] for name in _HEADERS}
    for key, value in metadata:
        if key in found and isinstance(value, str):
            found[key].append(value)
    return _propagator.extract(found, _EMPTY) if len(found["traceparent"]) == 1 else _EMPTY
