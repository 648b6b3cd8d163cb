"""The gRPC servers: their services, their limits, their start and their end."""

from collections.abc import Callable
from typing import Any

import grpc
from cart.v1 import cart_admin_service_pb2_grpc, cart_service_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from cart_grpc.carts.changes import Terms
from cart_grpc.rpc.admission import Admission
from cart_grpc.rpc.cart_admin_service import CartAdminService
from cart_grpc.rpc.cart_service import CartService
from cart_grpc.rpc.guard import Guard
from cart_grpc.store.hints import Hints
from cart_grpc.store.operator import Operator
from cart_grpc.store.store import Store

SERVICE = "cart.v1.CartService"
ADMIN_SERVICE = "cart.v1.CartAdminService"
OPTIONS = (
    # A second server on the same port would steal half of the calls in silence.
    ("grpc.so_reuseport", 0),
    # Beyond the default of 1,000 calls that are not yet taken in, gRPC answers CANCELLED; refusing is ours to do.
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 40_000),
    # Peers that connect and say nothing.
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_concurrent_streams", 1_000),
    # Clients may ping every 10 seconds, with and without calls; the default disconnects them below 5 minutes.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


def cart_server(store: Store, terms: Terms, call_timeout: float, admission: Admission) -> "Server":
    """The callers' server: `cart.v1.CartService`. Those who wait in a call when it stops are answered at once."""
    servicer = CartService(store, terms, admission.rest)
    add = cart_service_pb2_grpc.add_CartServiceServicer_to_server
    return Server(SERVICE, lambda guard: add(servicer, guard), call_timeout, admission, store.hints)


def admin_server(operator: Operator, call_timeout: float) -> "Server":
    """The operator's server: `cart.v1.CartAdminService`, which whoever reaches its port may call."""
    servicer = CartAdminService(operator)
    add = cart_admin_service_pb2_grpc.add_CartAdminServiceServicer_to_server
    return Server(ADMIN_SERVICE, lambda guard: add(servicer, guard), call_timeout)


class Server:
    """One service with health and reflection on one port.

    Health: `""` is liveness; `service` is readiness, as `set_ready` says. `add` adds the servicer, whose calls need
    the `admission`; `hints` are closed when the server stops.
    """

    def __init__(
        self,
        service: str,
        add: Callable[[Any], None],
        call_timeout: float,
        admission: Admission | None = None,
        hints: Hints | None = None,
    ) -> None:
        self.port = 0
        self._service = service
        self._hints = hints
        self._server = grpc.aio.server(options=OPTIONS)
        self._health = health.aio.HealthServicer()
        add(Guard(self._server, call_timeout, admission))
        guard: Any = Guard(self._server, call_timeout)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, guard)
        names = (service, health.SERVICE_NAME, reflection.SERVICE_NAME)
        add_reflection: Any = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
        add_reflection(reflection.aio.ReflectionServicer(names), guard)

    async def start(self, address: str) -> None:
        """Listen on HOST:PORT, port 0 for any free one; `port` says which. Raises OSError."""
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError:
            raise OSError(f"cannot listen on {address}: it is taken, or not an address of this machine") from None
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        await self.set_ready(ready=True)
        await self._server.start()

    async def set_ready(self, *, ready: bool) -> None:
        """Say whether calls should be sent here."""
        statuses = health_pb2.HealthCheckResponse
        await self._health.set(self._service, statuses.SERVING if ready else statuses.NOT_SERVING)

    async def stop(self, grace: float) -> None:
        """Say so, refuse new calls, give those under way `grace` seconds; those in max_wait answer at once."""
        await self._health.enter_graceful_shutdown()
        if self._hints:
            self._hints.close()
        await self._server.stop(grace)
