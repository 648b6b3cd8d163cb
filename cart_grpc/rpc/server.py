"""The gRPC server: its services, its limits, its start and its end."""

import grpc
from cart.v1 import cart_service_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cart_grpc.carts.changes import Terms
from cart_grpc.rpc.cart_service import CartService
from cart_grpc.rpc.guard import Guard
from cart_grpc.store.store import Store

SERVICE = "cart.v1.CartService"
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


class CartServer:
    """`cart.v1.CartService` with health and reflection on one port.

    Health: `""` is liveness; `cart.v1.CartService` is readiness, as `set_ready` says.
    """

    def __init__(self, store: Store, terms: Terms, *, call_timeout: float) -> None:
        self.port = 0
        self._hints = store.hints
        self._server = grpc.aio.server(interceptors=[Guard(call_timeout)], options=OPTIONS)
        self._health = health.aio.HealthServicer()
        cart_service_pb2_grpc.add_CartServiceServicer_to_server(CartService(store, terms), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

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
        await self._health.set(SERVICE, statuses.SERVING if ready else statuses.NOT_SERVING)

    async def stop(self, grace: float) -> None:
        """Say so, refuse new calls, give those under way `grace` seconds; those in max_wait answer at once."""
        await self._health.enter_graceful_shutdown()
        self._hints.close()
        await self._server.stop(grace)
