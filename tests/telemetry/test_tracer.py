"""The tracer: which headers it accepts, which calls it samples, and the statuses of its spans."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased

from cart_grpc.telemetry.attempt_names import AttemptNames
from cart_grpc.telemetry.tracing import SERVER_ERRORS, OtelTracer, to_span_context
from cart_grpc.tracing import TRACE_CONTEXT, find_sampled, trace_id_of

METHOD = "cartgrpc.v1.CartService/AddItem"
TRACE, SPAN = f"{7:032x}", f"{8:016x}"
SAMPLED = f"00-{TRACE}-{SPAN}-01"
IN_FORM = st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{0,9})?", fullmatch=True)
ANY_TEXT = st.text(max_size=60) | IN_FORM
STATE = st.from_regex(r"([a-z]=[!-~]{0,9},?){0,3}", fullmatch=True)
NAMES = AttemptNames.at("grpc://api.example:443")


@dataclass(frozen=True)
class Recorded:
    tracer: OtelTracer
    exporter: InMemorySpanExporter

    @property
    def span(self) -> ReadableSpan:
        (span,) = self.exporter.get_finished_spans()
        return span


def record(sampler: Sampler) -> Recorded:
    exporter, provider = InMemorySpanExporter(), TracerProvider(ALWAYS_ON, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Recorded(OtelTracer(sampler, provider.get_tracer("test"), NAMES), exporter)


# Shared, because a provider takes longer to make than hundreds of spans.
ANY_HEADER = record(ParentBased(ALWAYS_ON)).tracer


@pytest.fixture
def recorded() -> Recorded:
    """A tracer that samples what its callers sample, and every new trace."""
    return record(ParentBased(ALWAYS_ON))


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    token = TRACE_CONTEXT.set("")
    yield
    TRACE_CONTEXT.reset(token)


@settings(max_examples=50)
@given(
    parents=st.lists(ANY_TEXT | st.binary(max_size=20), max_size=3),
    states=st.lists(ANY_TEXT | STATE | st.binary(max_size=20), max_size=3),
)
def test_no_header_makes_a_call_fail(parents: list[str | bytes], states: list[str | bytes]) -> None:
    metadata = [("traceparent", each) for each in parents] + [("tracestate", each) for each in states]
    span = ANY_HEADER.begin_call(METHOD, metadata)
    context = TRACE_CONTEXT.get()
    assert to_span_context(context)
    assert (find_sampled() == context) is (span is not None)
    if span:
        span.end("OK")


@settings(max_examples=50)
@given(ANY_TEXT)
def test_no_text_in_a_row_makes_an_attempt_fail(text: str) -> None:
    with ANY_HEADER.attempt([text], is_batch=False) as span:
        span.note_answer("HELD")


def test_a_trace_is_continued(recorded: Recorded) -> None:
    span = recorded.tracer.begin_call(METHOD, [("traceparent", SAMPLED), ("tracestate", "a=1")])
    assert span
    assert trace_id_of(TRACE_CONTEXT.get()) == TRACE
    assert find_sampled() == TRACE_CONTEXT.get() != SAMPLED
    span.end("OK")
    assert recorded.span.context.trace_state["a"] == "1"


@pytest.mark.parametrize(
    "values",
    [
        [SAMPLED, SAMPLED.replace("7", "9")],
        [f"00-{TRACE}-{SPAN}-01-more"],
        [f"ff-{TRACE}-{SPAN}-01"],
        [f"00-{0:032x}-{SPAN}-01"],
    ],
)
def test_headers_that_break_the_rules_begin_a_new_trace(recorded: Recorded, values: list[str]) -> None:
    assert recorded.tracer.begin_call(METHOD, [("traceparent", each) for each in values])
    assert trace_id_of(TRACE_CONTEXT.get()) != TRACE


def test_a_call_that_is_not_sampled_has_no_span_and_a_trace_id_for_the_log(recorded: Recorded) -> None:
    assert recorded.tracer.begin_call(METHOD, [("traceparent", SAMPLED[:-1] + "0")]) is None
    assert trace_id_of(TRACE_CONTEXT.get()) == TRACE
    assert find_sampled() is None


def test_the_sampler_decides_about_new_traces() -> None:
    tracer = record(ParentBased(TraceIdRatioBased(0.2))).tracer
    sampled = sum(tracer.begin_call(METHOD, ()) is not None for _ in range(2_000))
    # Less than one run in a million is further off.
    assert 310 < sampled < 500


@pytest.mark.parametrize("code", ["OK", "NOT_FOUND", "CANCELLED", "RESOURCE_EXHAUSTED", *sorted(SERVER_ERRORS)])
def test_the_status_of_a_span_is_an_error_if_the_server_is_at_fault(recorded: Recorded, code: str) -> None:
    span = recorded.tracer.begin_call(METHOD, ())
    assert span
    span.end(code)
    attributes = recorded.span.attributes or {}
    assert attributes["rpc.response.status_code"] == code
    assert attributes.get("error.type") == (code if code in SERVER_ERRORS else None)
    assert recorded.span.status.is_ok is (code not in SERVER_ERRORS)


def test_an_attempt_links_to_each_cause_once_and_ends_with_its_block(recorded: Recorded) -> None:
    other = SAMPLED.replace("8-01", "9-01")
    with recorded.tracer.attempt([SAMPLED, None, other, SAMPLED, "nonsense"], is_batch=True) as span:
        assert TRACE_CONTEXT.get().endswith("-01")
        span.note_failure("UNAVAILABLE")
    assert TRACE_CONTEXT.get() == ""
    assert [link.context.span_id for link in recorded.span.links] == [8, 9]
    assert recorded.span.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "cartgrpc.reservation.v1.ReservationService/BatchApplyReservations",
        "server.address": "api.example",
        "server.port": 443,
        "error.type": "UNAVAILABLE",
        "rpc.response.status_code": "UNAVAILABLE",
    }
    assert not recorded.span.status.is_ok


def test_an_attempt_without_a_cause_has_no_span_and_sends_no_header(recorded: Recorded) -> None:
    TRACE_CONTEXT.set(SAMPLED)
    with recorded.tracer.attempt([None, None], is_batch=True) as span:
        span.note_answer("HELD")
        assert TRACE_CONTEXT.get() == ""
    assert not recorded.exporter.get_finished_spans()


@pytest.mark.parametrize(
    ("url", "name", "port"),
    [
        ("https://api.example/shop", "PUT /shop/v1/reservations/{reservation_id}", 443),
        ("http://api.example:8080", "PUT /v1/reservations/{reservation_id}", 8080),
        ("basic+http://api.example/b", "basic", 80),
    ],
)
def test_the_names_fit_the_transport(url: str, name: str, port: int) -> None:
    names = AttemptNames.at(url)
    found, attributes = names.of(is_batch=False)
    assert (found, attributes["server.port"]) == (name, port)
    assert names.of_failure("HTTP_503") == {"http.response.status_code": 503}
    assert names.of_failure("DEADLINE_EXCEEDED") == {}
