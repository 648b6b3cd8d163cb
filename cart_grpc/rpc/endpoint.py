"""One method on one server: what its layers need to know."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import grpc

from cart_grpc.rpc.access import Access
from cart_grpc.rpc.admission import Admission, OpenStreams
from cart_grpc.rpc.deadlines import Deadlines
from cart_grpc.rpc.door import Door
from cart_grpc.rpc.methods import Method
from cart_grpc.rpc.permissions import PUBLIC
from cart_grpc.rpc.receiving import MalformedRequest, Receiver
from cart_grpc.rpc.unread import Unread
from cart_grpc.tracing import Tracer

# Strings: grpc's classes are generic in their stubs only.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Step: TypeAlias = Callable[[Any, Context], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class CallLog:
    """Which calls get a line: those that are refused, fail, or take `slow_seconds`; with `all_calls`, every one."""

    slow_seconds: float
    all_calls: bool = False


@dataclass(frozen=True, slots=True)
class Observers:
    """How calls are observed.

    Without `tracer`, no call has a span. `measures`: their durations are measured. Without `call_log`, no call has a
    line in the log.
    """

    tracer: Tracer | None = None
    measures: bool = False
    call_log: CallLog | None = None


NOT_OBSERVED: Final = Observers()


@dataclass(frozen=True, slots=True)
class Guards:
    """The parts that the layers of one server share.

    Without `admission`, every unary call may run at once. Without `door`, calls are answered until gRPC stops. Without
    `access`, anyone may make any call.
    """

    deadlines: Deadlines
    receiver: Receiver
    streams: OpenStreams
    admission: Admission | None = None
    door: Door | None = None
    access: Access | None = None
    observers: Observers = NOT_OBSERVED


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method on one server, for its layers. `scope` is the one that its callers need, or PUBLIC."""

    path: str
    method: Method
    scope: str
    deserialize: Callable[[bytes], Any]
    unread: Unread
    guards: Guards

    @property
    def access(self) -> Access | None:
        """How the callers of this method prove who they are; None if they need not."""
        return None if self.scope == PUBLIC else self.guards.access

    @property
    def method_name(self) -> str:
        """The method as OpenTelemetry names it (`rpc.method`), such as `cartgrpc.v1.CartService/AddItem`."""
        return self.path[1:]

    def decode(self, data: Any) -> Any:
        """Return the request message in the bytes. Raises MalformedRequest, also for grpc.aio.EOF."""
        try:
            return self.deserialize(data)
        except Exception:  # noqa: BLE001 - the parser's exceptions have no other class in common
            raise MalformedRequest(data) from None
