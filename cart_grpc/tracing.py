"""The trace of the work that runs now, and how the rooms report to it. `telemetry` does the rest, with OpenTelemetry.

A *trace context* is text in the form of the header `traceparent` (W3C Trace Context, version 00). Its last digit is 1
if the trace is sampled, else 0.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, Final, Protocol, final

TRACE_CONTEXT: Final[ContextVar[str]] = ContextVar("TRACE_CONTEXT", default="")
"""The trace context of the call that this task answers or makes; "" without tracing."""


def find_sampled() -> str | None:
    """Return the current trace context, None if its trace is not sampled."""
    context = TRACE_CONTEXT.get()
    return context if context.endswith("1") else None


def trace_id_of(context: str) -> str:
    """Return the id of the trace in 32 hexadecimal digits, "" for an empty trace context."""
    return context[3:35]


class CallSpan(Protocol):
    """The span of a call that this service answers."""

    def end(self, code: str) -> None:
        """End it with the name of a gRPC status code."""
        ...


class AttemptSpan(Protocol):
    """The span of a call to the Reservation API. It ends with its block."""

    def note_answer(self, state: str) -> None:
        """Note an answer by the name of its state."""
        ...

    def note_failure(self, code: str) -> None:
        """Note why the call as a whole has no answer."""
        ...


class Tracer(Protocol):
    """Makes the spans of this process."""

    def begin_call(self, method: str, metadata: Iterable[tuple[str, Any]]) -> CallSpan | None:
        """Begin the span of a call and set TRACE_CONTEXT. Return None if the trace is not sampled.

        `method` is the full name, such as `cartgrpc.v1.CartService/AddItem`; `metadata` may continue a trace.
        """
        ...

    def attempt(self, causes: Iterable[str | None], *, is_batch: bool) -> AbstractContextManager[AttemptSpan]:
        """Return a block for one call to the Reservation API, with TRACE_CONTEXT for it.

        `causes` are the trace contexts of the claimed rows. Without any, there is no span, and TRACE_CONTEXT is "".
        """
        ...

    def note_write(self, cause: str, *, seconds: float, wait_seconds: float, batch_size: int) -> None:
        """Make the span of a write that ends now and took `seconds`, of which it waited `wait_seconds` for its batch.

        `cause` is the trace context of its call, and `batch_size` the number of commands in the batch.
        """
        ...


@final
class _NoAttempt:
    def __enter__(self) -> AttemptSpan:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def note_answer(self, state: str) -> None:
        pass

    def note_failure(self, code: str) -> None:
        pass


NO_ATTEMPT: Final = _NoAttempt()
"""The block of an attempt without a span."""
