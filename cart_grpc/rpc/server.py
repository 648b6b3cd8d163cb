"""The gRPC servers: their services, their limits, their start and their end."""

from collections.abc import Callable
from typing import Any

import grpc
from cartgrpc.v1 import cart_admin_service_pb2_grpc, cart_service_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from cart_grpc.admin import Operator
from cart_grpc.carts.calls import Limits
from cart_grpc.rpc.admission import Admission
from cart_grpc.rpc.cart_admin_service import CartAdminService
from cart_grpc.rpc.cart_service import CartService
from cart_grpc.rpc.fields import MAX_WAIT_SECONDS
from cart_grpc.rpc.guard import Guard
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.store import Store

SERVICE = "cartgrpc.v1.CartService"
ADMIN_SERVICE = "cartgrpc.v1.CartAdminService"
# gRPC ignores a name that it does not know: tests/attacks sees each of these at work. Figures are of grpcio 1.85, where
# a connection costs 15 KiB, a call that nobody has taken in 14, and one that is open 25.
OPTIONS = (
    # How much of us one connection may take. The calls beyond it wait in the client, which costs us nothing, where to
    # refuse one costs 0.8 of an empty call. Calls count until their memory is free, or 100,000 resets a second pile up
    # behind us (33 to 580 MiB in three seconds, and no other caller served). The price: a client that keeps its
    # connection full sees a few UNAVAILABLE, which it may repeat.
    ("grpc.max_concurrent_streams", 400),
    ("grpc.http.overload_protection", 1),
    # A connection's unfinished messages (by default 3 GiB in four seconds). The longest request has 46 KiB. A window
    # that grows with the bandwidth would be filled for each stream, whatever the limit of a message.
    ("grpc.max_receive_message_length", 64 * 1024),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 16 * 1024),
    # Both, or what lies between them is refused by chance.
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    # How much all of them may take. Above the first number gRPC answers CANCELLED by chance, above the second always;
    # refusing is ours to do, so these are beyond any burst that we take in.
    ("grpc.server.max_pending_requests", 12_000),
    ("grpc.server.max_pending_requests_hard_limit", 16_000),
    ("grpc.max_allowed_incoming_connections", 4_000),
    # How long a peer may take to speak HTTP/2, to acknowledge our settings, and to answer a ping.
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.http2.settings_timeout", 10_000),
    ("grpc.keepalive_time_ms", 60_000),
    # Not grpc.keepalive_timeout_ms, which has no effect of its own.
    ("grpc.http2.ping_timeout_ms", 20_000),
    # Clients may ping every 10 seconds, with and without calls; the default disconnects them below 5 minutes.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Connections are dealt to servers, not calls: from time to time each is dealt anew.
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_connection_age_ms", 1_800_000),
)


def cart_server(
    store: Store, limits: Limits, call_timeout: float, admission: Admission, *, shares_port: bool = False
) -> "Server":
    """The callers' server: `cartgrpc.v1.CartService`. Those who wait in a call when it stops are answered at once."""
    servicer = CartService(store, limits, admission.rest)
    add = cart_service_pb2_grpc.add_CartServiceServicer_to_server
    return Server(
        SERVICE, lambda guard: add(servicer, guard), call_timeout, admission, store.notifier, shares_port=shares_port
    )


def admin_server(operator: Operator, call_timeout: float) -> "Server":
    """The operator's server: `cartgrpc.v1.CartAdminService`, which whoever reaches its port may call."""
    servicer = CartAdminService(operator)
    add = cart_admin_service_pb2_grpc.add_CartAdminServiceServicer_to_server
    return Server(ADMIN_SERVICE, lambda guard: add(servicer, guard), call_timeout)


class Server:
    """One service with health and reflection on one port.

    Health: `""` is liveness; `service` is readiness, as `set_ready` says. `add` adds the servicer, whose calls need
    the `admission`; `hints` are closed when the server stops. `shares_port` with the other workers of this service,
    each of which gets its share of the connections.
    """

    def __init__(
        self,
        service: str,
        add: Callable[[Any], None],
        call_timeout: float,
        admission: Admission | None = None,
        notifier: ChangeNotifier | None = None,
        *,
        shares_port: bool = False,
    ) -> None:
        self.port = 0
        self._service = service
        self._notifier = notifier
        options = (
            *OPTIONS,
            # A call that was begun on a connection of that age ends in order; what never ends does not keep it.
            ("grpc.max_connection_age_grace_ms", int((call_timeout + MAX_WAIT_SECONDS) * 1000)),
            # On by default: a second server on the same port would steal half of the connections in silence.
            ("grpc.so_reuseport", int(shares_port)),
        )
        self._server = grpc.aio.server(options=options)
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
        if self._notifier:
            self._notifier.close()
        await self._server.stop(grace)
