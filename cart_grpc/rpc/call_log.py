"""The log of calls: one line for each call that is refused, fails or is slow; none for others, unless all are wanted.

A refusal because of the caller or its request is INFO, one because of this service or its database is WARNING. A bug is
ERROR: the layer `errors` logs it. A line has the method, the code and the reason, and who called for which user, but no
other value of the request: it may be a secret.
"""

import asyncio
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from cart_grpc.carts import refusals
from cart_grpc.carts.refusals import CallRefused
from cart_grpc.logs import events
from cart_grpc.logs.log import IDS, Log
from cart_grpc.rpc import status
from cart_grpc.rpc.access import CALLER
from cart_grpc.rpc.endpoint import Context, Endpoint, Step
from cart_grpc.tracing import TRACE_CONTEXT, trace_id_of

log = Log(__name__)
# The parts of a refusal's metadata that the code chooses. All others repeat values of the request.
_SHOWN: Final = ("field", "violation", "fault", "scope", "quota", "holder", "limit", "state")
# Refusals because of a caller, although they are like those because of an overload or a stop.
_OF_CALLERS: Final = (refusals.TooManyCalls, refusals.TooManyStreams, refusals.ShuttingDown)
_PORT: Final = re.compile(r":\d+$")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# A label's key, which a caller chooses, in the path of a field. An index of a list is shown.
_KEY: Final = re.compile(r"\[(?!\d+\](\.|$)).*", re.DOTALL)


class Call:
    """One call, for its line. `request` is None until it is received, and after the end of the call.

    `waited_seconds` is the time in max_wait, which does not make a call slow.
    """

    __slots__ = ("_began", "_context", "_endpoint", "_is_opened", "_slow", "_task", "request", "waited_seconds")

    def __init__(self, endpoint: Endpoint, context: Context, slow_seconds: float) -> None:
        self.request: Any = None
        self.waited_seconds = 0.0
        self._endpoint = endpoint
        self._context = context
        self._slow = slow_seconds
        self._is_opened = False
        self._task = asyncio.current_task()
        self._began = time.monotonic()

    def find_ids(self) -> Mapping[str, str]:
        """See Ids.find_ids."""
        if self._task is not asyncio.current_task():
            return {}
        ids = _find_trace(self._context)
        if request_id := getattr(self.request, "request_id", ""):
            ids["request_id"] = request_id
        return ids

    def note_opened(self) -> None:
        """Note that the stream has written a message. Its first one may be slow, the others may come at any time."""
        if not self._is_opened:
            self._is_opened = True
            self._log_if_slow("OK")

    def end(self, code: str, *, all_calls: bool) -> None:
        """Log the call if it was slow, or if all calls are wanted. `code`: OK, or CANCELLED by its caller."""
        is_slow = not self._is_opened and self._log_if_slow(code)
        if all_calls and not is_slow:
            log(events.CALL_ENDED, "%s", self._endpoint.path, **self._fields(code))
        self.request = None

    def end_refused(self, refusal: CallRefused) -> None:
        """Log the refusal. A stream that ends because the process stops is an ordinary one."""
        is_ordinary = self._endpoint.method.streams and isinstance(refusal, refusals.ShuttingDown)
        is_ours = isinstance(refusal, refusals.Unavailable) and not isinstance(refusal, _OF_CALLERS)
        event = events.CALL_FAILED if is_ours else events.CALL_REFUSED
        if not is_ordinary and log.admits(event, refusal.reason, self._endpoint.path):
            shown: dict[str, Any] = {key: refusal.metadata[key] for key in _SHOWN if key in refusal.metadata}
            if "field" in shown:
                shown["field"] = _KEY.sub("[...]", shown["field"])
            shown = {**self._fields(status.code_of(refusal)), "reason": refusal.reason, **shown}
            log.write(event, "%s", self._endpoint.path, **shown)
        self.request = None

    def _log_if_slow(self, code: str) -> bool:
        is_slow = time.monotonic() - self._began - self.waited_seconds >= self._slow
        if is_slow and log.admits(events.CALL_SLOW, method=self._endpoint.path):
            log.write(events.CALL_SLOW, "%s", self._endpoint.path, **self._fields(code))
        return is_slow

    def _fields(self, code: str) -> dict[str, Any]:
        fields: dict[str, Any] = {"method": self._endpoint.path, "code": code}
        fields["duration_ms"] = round((time.monotonic() - self._began) * 1000, 1)
        if self.waited_seconds:
            fields["waited_ms"] = round(self.waited_seconds * 1000, 1)
        fields |= _who(self._context)
        if self.request is not None and not self._endpoint.method.takes_stream:
            fields["user"] = self._endpoint.method.user_of(self.request)
        return fields


# The call of the current task, if its line is wanted.
CALL: Final[ContextVar[Call | None]] = ContextVar("call", default=None)


def log_call(endpoint: Endpoint, next_step: Step) -> Step:
    """Log the call if it is refused, fails or is slow. Raises what the next step raises."""
    config = endpoint.guards.observers.call_log
    if config is None:
        return next_step
    slow_seconds, all_calls = config.slow_seconds, config.all_calls

    async def step(request: Any, context: Context) -> Any:
        call = Call(endpoint, context, slow_seconds)
        CALL.set(call)
        IDS.set(call)
        try:
            reply = await next_step(request, context)
        except CallRefused as refusal:
            call.end_refused(refusal)
            raise
        except asyncio.CancelledError:
            call.end("CANCELLED", all_calls=all_calls)
            raise
        call.end("OK", all_calls=all_calls)
        return reply

    return step


def note_request(request: Any) -> None:
    """Note the request of the current call, if its line is wanted."""
    if call := CALL.get():
        call.request = request


@contextmanager
def in_max_wait() -> Iterator[None]:
    """Do not count the time of the block as duration of the current call, when it is compared with CART_SLOW_CALL."""
    call, began = CALL.get(), time.monotonic()
    try:
        yield
    finally:
        if call:
            call.waited_seconds += time.monotonic() - began


def log_error(context: Context, path: str, error_id: str, error: BaseException) -> None:
    """Log a bug with its traceback, under the id that the caller gets."""
    if log.admits(events.INTERNAL_ERROR, method=path):
        who: dict[str, Any] = {"error_id": error_id, "method": path, **_who(context)}
        log.write(events.INTERNAL_ERROR, "error %s in %s", error_id, path, exc_info=error, **who)


def _find_trace(context: Context) -> dict[str, str]:
    """Return the ids of the current trace and span; without tracing, the id of the trace in a valid `traceparent`."""
    if current := TRACE_CONTEXT.get():
        return {"trace_id": trace_id_of(current), "span_id": current[36:52]}
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent" and (found := _TRACEPARENT.fullmatch(str(value))):
            return {"trace_id": found[1]}
    return {}


def _who(context: Context) -> dict[str, str]:
    """Return the address of the peer, and the caller that was authenticated."""
    caller = CALLER.get()
    named = caller.service or (f"users/{caller.user_id}" if caller.user_id else "")
    # Without the port: it is another one for each connection.
    return {"peer": _PORT.sub("", context.peer()), "caller": named}
