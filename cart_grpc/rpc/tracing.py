"""The outermost layer: the span of a call, which continues the trace of its caller."""

import asyncio
from typing import Any, Final

import grpc

from cart_grpc.logs import events
from cart_grpc.rpc.endpoint import Context, Endpoint, Step
from cart_grpc.store.failure_log import FailureLog
from cart_grpc.tracing import CallSpan

_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


def trace(endpoint: Endpoint, next_step: Step) -> Step:
    """Make a span of each call whose trace is sampled. Health checks and reflection have none."""
    tracer, method = endpoint.guards.observers.tracer, endpoint.method_name
    if tracer is None or method.startswith("grpc."):
        return next_step

    failures = FailureLog(
        events.TRACE_ERROR, events.TRACE_RECOVERED, "calls cannot be traced", "calls can be traced again"
    )

    async def step(request: Any, context: Context) -> Any:
        try:
            span = tracer.begin_call(method, context.invocation_metadata() or ())
        except Exception as error:  # noqa: BLE001 - a bug in a trace must not fail a call, and `errors` is further in
            failures.note_failure(error)
            span = None
        if span is None:
            return await next_step(request, context)
        return await _run(span, next_step, request, context)

    return step


async def _run(span: CallSpan, next_step: Step, request: Any, context: Context) -> Any:
    code = "UNKNOWN"
    try:
        reply = await next_step(request, context)
    except grpc.aio.AbortError:
        code = _code_of(context)
        raise
    except asyncio.CancelledError:
        code = "CANCELLED"
        raise
    else:
        code = _code_of(context)
        return reply
    finally:
        span.end(code)


def _code_of(context: Context) -> str:
    """Return the name of the call's status code. grpc.aio has it as a number, 0 if nothing has set it."""
    code: Any = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else _NAMES.get(code or 0, "UNKNOWN")
