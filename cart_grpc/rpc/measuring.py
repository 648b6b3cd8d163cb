"""The layer that measures calls: how long each took, and how it ended."""

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

import grpc

from cart_grpc.metrics import CALL_DURATION, CALLS_REFUSED, STREAMS
from cart_grpc.rpc.endpoint import Context, Endpoint, Step

Observe = Callable[[float], None]
# Any: the stubs of grpc.aio say StatusCode, but it is a number.
_CODES: Final[dict[Any, str]] = {code.value[0]: code.name for code in grpc.StatusCode}


def measure(endpoint: Endpoint, next_step: Step) -> Step:
    """Observe the duration and the code of each call. A call that its caller gave up counts as CANCELLED."""
    if not endpoint.guards.observers.measures:
        return next_step
    durations = _Durations(endpoint.method_name)
    observe_ok = durations.of("OK")

    async def step(request: Any, context: Context) -> Any:
        began = perf_counter()
        try:
            reply = await next_step(request, context)
        except grpc.aio.AbortError:
            durations.of(_CODES.get(context.code(), "UNKNOWN"))(perf_counter() - began)
            raise
        except asyncio.CancelledError:
            durations.of("CANCELLED")(perf_counter() - began)
            raise
        observe_ok(perf_counter() - began)
        return reply

    return _count_streams(endpoint, step) if endpoint.method.streams else step


def count_refusal(endpoint: Endpoint, reason: str) -> None:
    """Count a call that ends with a status of this reason."""
    CALLS_REFUSED.labels(endpoint.method_name, reason).inc()


def _count_streams(endpoint: Endpoint, next_step: Step) -> Step:
    open_streams = STREAMS.labels(endpoint.method_name)

    async def step(request: Any, context: Context) -> Any:
        with open_streams.track_inprogress():
            return await next_step(request, context)

    return step


class _Durations:
    """The durations of one method, by code. A label is looked up once: each time would cost as much as the rest."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._children: dict[str, Observe] = {}

    def of(self, code: str) -> Observe:
        """Return the function that observes a duration in seconds."""
        observe = self._children.get(code)
        if observe is None:
            observe = self._children[code] = CALL_DURATION.labels("grpc", self._method, code).observe
        return observe
