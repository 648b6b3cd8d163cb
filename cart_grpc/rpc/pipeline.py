"""The pipeline: the layers that every call passes through, in order, for each kind of method."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import grpc

from cart_grpc.rpc.call_log import log_call
from cart_grpc.rpc.endpoint import Endpoint, Guards, Step
from cart_grpc.rpc.layers import (
    admit,
    admit_stream,
    authenticate,
    authorize,
    deadline,
    encode,
    end_at_expiry,
    errors,
    receive_many,
    receive_one,
    refuse_if_closed,
    reject_if_full,
    write_each,
)
from cart_grpc.rpc.measuring import measure
from cart_grpc.rpc.messages import serialize
from cart_grpc.rpc.methods import Method
from cart_grpc.rpc.tracing import trace
from cart_grpc.rpc.unread import Unread

# grpc.RpcMethodHandler. Any, because its stubs type each behaviour, such as unary_unary, as optional.
RpcMethod: TypeAlias = Any
Layer: TypeAlias = Callable[[Endpoint, Any], Step]

# The outermost layer is first.
UNARY: Final[tuple[Layer, ...]] = (
    trace,
    measure,
    errors,
    log_call,
    refuse_if_closed,
    reject_if_full,
    authenticate,
    deadline,
    authorize,
    admit,
    encode,
)
STREAM: Final[tuple[Layer, ...]] = (
    trace,
    measure,
    errors,
    log_call,
    refuse_if_closed,
    authenticate,
    receive_one,
    authorize,
    admit_stream,
    end_at_expiry,
    write_each,
)
# A stream of requests names no resources, so only its scope is checked.
BOTH_STREAM: Final[tuple[Layer, ...]] = (
    trace,
    measure,
    errors,
    log_call,
    refuse_if_closed,
    authenticate,
    authorize,
    admit_stream,
    end_at_expiry,
    receive_many,
    write_each,
)


class MethodMismatch(Exception):
    """A method has no row in the methods table or no rule in the permissions table, or its row is wrong."""


class Pipeline:
    """Gets a servicer's methods from generated code, as a server does, and adds them to `server` with their layers.

    The layers are composed once, when a method is added. A grpc interceptor would run again for each call.

    `methods` has the rows of each service, and `permissions` the scope of each of its methods. Without admission in
    `guards`, each method gets a queue of its own inside gRPC, so that its calls are answered while thousands of other
    calls wait there.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        methods: Mapping[str, Sequence[Method]],
        permissions: Mapping[str, Mapping[str, str]],
        guards: Guards,
    ) -> None:
        self._server = server
        self._methods = methods
        self._permissions = permissions
        self._guards = guards
        self._unread = Unread()

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Do nothing. Generated code calls this too, but only `add_registered_method_handlers` gets names."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, RpcMethod]) -> None:
        """Add the methods of a service. Raises MethodMismatch."""
        rows = {row.name: row for row in self._methods.get(service, ())}
        scopes = self._permissions.get(service, {})
        if unlike := rows.keys() ^ scopes.keys():
            names = ", ".join(sorted(unlike))
            raise MethodMismatch(f"methods.py and permissions.py do not have the same methods of /{service}: {names}")
        if service.startswith("grpc."):
            # Services of gRPC itself get more methods with its versions: serve those that both it and the table have.
            handlers = {name: method for name, method in handlers.items() if name in rows}
            rows = {name: row for name, row in rows.items() if name in handlers}
        added = {
            name: self._compose(f"/{service}/{name}", rows.get(name), scopes.get(name), method)
            for name, method in handlers.items()
        }
        if missing := rows.keys() - added.keys():
            raise MethodMismatch(f"/{service} has no method {', '.join(sorted(missing))}, but methods.py has a row")
        if self._guards.admission:
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, added),))
        else:
            self._server.add_registered_method_handlers(service, added)

    def _compose(self, path: str, row: Method | None, scope: str | None, method: RpcMethod) -> RpcMethod:
        if row is None or scope is None:
            raise MethodMismatch(f"{path} has no row in methods.py")
        if (row.takes_stream, row.streams) != (method.request_streaming, method.response_streaming):
            raise MethodMismatch(f"the row of {path} in methods.py is wrong: check streams and takes_stream")
        endpoint = Endpoint(path, row, scope, method.request_deserializer, self._unread, self._guards)
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
