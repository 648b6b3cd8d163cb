"""The pipeline: the layers that every call passes through, in order, for each kind of method."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import grpc

from cart_grpc.rpc.access import Access
from cart_grpc.rpc.admission import Admission, OpenStreams
from cart_grpc.rpc.deadlines import Deadlines
from cart_grpc.rpc.door import Door
from cart_grpc.rpc.layers import (
    Endpoint,
    Step,
    admit,
    admit_stream,
    deadline,
    encode,
    errors,
    receive_many,
    receive_one,
    refuse_if_closed,
    reject_if_full,
    write_each,
)
from cart_grpc.rpc.messages import serialize
from cart_grpc.rpc.methods import Method
from cart_grpc.rpc.receiving import Receiver
from cart_grpc.rpc.unread import Unread

# grpc.RpcMethodHandler. Any, because its stubs type each behaviour, such as unary_unary, as optional.
RpcMethod: TypeAlias = Any
Layer: TypeAlias = Callable[[Endpoint, Any], Step]

# The outermost layer is first.
UNARY: Final[tuple[Layer, ...]] = (errors, refuse_if_closed, reject_if_full, deadline, admit, encode)
STREAM: Final[tuple[Layer, ...]] = (errors, refuse_if_closed, receive_one, admit_stream, write_each)
BOTH_STREAM: Final[tuple[Layer, ...]] = (errors, refuse_if_closed, admit_stream, receive_many, write_each)


class MethodMismatch(Exception):
    """A method has no row in the methods table, or its row is wrong."""


class Pipeline:
    """Gets a servicer's methods from generated code, as a server does, and adds them to `server` with their layers.

    The layers are composed once, when a method is added. A grpc interceptor would run again for each call.

    `methods` has the rows of each service. `deadlines` end the calls, each after its time-out plus its max_wait at the
    latest. With `door`, calls are refused while it is closed. With `admission`, a unary call needs a
    slot. Without `admission`, each method gets a queue of its own inside gRPC, so that its calls are answered while
    thousands of other calls wait there.
    """

    def __init__(  # noqa: PLR0913 - the parts of a server
        self,
        server: grpc.aio.Server,
        methods: Mapping[str, Sequence[Method]],
        *,
        deadlines: Deadlines,
        receiver: Receiver,
        streams: OpenStreams,
        admission: Admission | None = None,
        door: Door | None = None,
        access: Access | None = None,
    ) -> None:
        self._server = server
        self._unread = Unread()
        self._methods = methods
        self._deadlines = deadlines
        self._receiver = receiver
        self._streams = streams
        self._admission = admission
        self._door = door
        self._access = access

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Do nothing. Generated code calls this too, but only `add_registered_method_handlers` gets names."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, RpcMethod]) -> None:
        """Add the methods of a service. Raises MethodMismatch."""
        rows = {row.name: row for row in self._methods.get(service, ())}
        if service.startswith("grpc."):
            # Services of gRPC itself get more methods with its versions: serve those that both it and the table have.
            handlers = {name: method for name, method in handlers.items() if name in rows}
            rows = {name: row for name, row in rows.items() if name in handlers}
        added = {name: self._compose(f"/{service}/{name}", rows.get(name), method) for name, method in handlers.items()}
        if missing := rows.keys() - added.keys():
            raise MethodMismatch(f"/{service} has no method {', '.join(sorted(missing))}, but methods.py has a row")
        if self._admission:
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, added),))
        else:
            self._server.add_registered_method_handlers(service, added)

    def _compose(self, path: str, row: Method | None, method: RpcMethod) -> RpcMethod:
        if row is None:
            raise MethodMismatch(f"{path} has no row in methods.py")
        if (row.takes_stream, row.streams) != (method.request_streaming, method.response_streaming):
            raise MethodMismatch(f"the row of {path} in methods.py is wrong: check streams and takes_stream")
        endpoint = Endpoint(
            path,
            row,
            method.request_deserializer,
            self._unread,
            self._deadlines,
            self._receiver,
            self._streams,
            self._admission,
            self._door,
        )
        if not row.streams:
            step = _wrap(UNARY, endpoint, method.unary_unary)
            return grpc.stream_unary_rpc_method_handler(step, None, None)
        if not row.takes_stream:
            step = _wrap(STREAM, endpoint, method.unary_stream)
        else:
            step = _wrap(BOTH_STREAM, endpoint, method.stream_stream)
        return grpc.stream_stream_rpc_method_handler(step, None, serialize)


def _wrap(layers: Sequence[Layer], endpoint: Endpoint, servicer: Any) -> Step:
    step: Step = servicer
    for layer in reversed(layers):
        step = layer(endpoint, step)
    return step
