"""The services that this process offers, and what all ports of a service share: its calls are counted together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from cartgrpc.v1 import cart_admin_service_pb2_grpc, cart_service_pb2_grpc

from cart_grpc.admin import OperatorActions
from cart_grpc.carts.calls import Limits
from cart_grpc.rpc.admission import Admission, OpenStreams
from cart_grpc.rpc.cart_admin_service import CartAdminService
from cart_grpc.rpc.cart_service import CartService
from cart_grpc.rpc.methods import ADMIN_SERVICE, CART_SERVICE, Method
from cart_grpc.rpc.receiving import Receiver
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.store import Store

# A request may have these bytes more than the largest cart, so that one request can hold everything in it.
REQUEST_ROOM: Final = 64 * 1024
# All incomplete requests together. gRPC keeps about twice as much as has arrived, and an open call takes 27 KiB beside,
# so they take at most 300 MiB. With the default limits, 409 requests may be incomplete at once. In a burst of 10,000
# calls on 30 connections, fewer than 50 are.
MAX_INCOMPLETE_BYTES: Final = 128 * 1024 * 1024
# A gateway opens the streams of many users on one connection, which must keep half of its 100 for unary calls.
MAX_STREAMS_PER_CONNECTION: Final = 50
MAX_STREAMS_PER_USER: Final = 50
# An idle WatchCart stream takes 33 KiB with its subscription, so 10,000 of them take 330 MiB.
MAX_STREAMS: Final = 10_000
# Half, so that the streams of one service leave room for all others.
MAX_STREAMS_PER_SERVICE: Final = MAX_STREAMS // 2


class OtherService(NamedTuple):
    """A service with other messages on the same carts: its rows and the scope of each. `add` adds its servicer."""

    name: str
    add: Callable[[Any], None]
    methods: Sequence[Method]
    permissions: Mapping[str, str]


class Service:
    """One service for any number of ports, with `others` beside it.

    `names` are those whose readiness its ports report. `add` adds its servicer to a pipeline; all calls need the
    `admission`. `notifier` is closed when a port stops. A request has at most `max_request_bytes`.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        add: Callable[[Any], None],
        *,
        admission: Admission | None = None,
        notifier: ChangeNotifier | None = None,
        max_request_bytes: int = 64 * 1024,
        others: Sequence[OtherService] = (),
    ) -> None:
        self.names = (*names, *(other.name for other in others))
        self.methods = {other.name: other.methods for other in others}
        self.permissions = {other.name: other.permissions for other in others}
        self.admission = admission
        self.notifier = notifier
        self.max_request_bytes = max_request_bytes
        self.streams = open_streams(MAX_STREAMS)
        self.receiver = Receiver(MAX_INCOMPLETE_BYTES // max_request_bytes)
        self._adds = (add, *(other.add for other in others))

    def add(self, pipeline: Any) -> None:
        """Add the servicers to a pipeline."""
        for add in self._adds:
            add(pipeline)


def cart_service(store: Store, limits: Limits, admission: Admission, others: Sequence[OtherService] = ()) -> Service:
    """Return `cartgrpc.v1.CartService`, with `others` beside it.

    Calls in max_wait are answered when one of its ports stops.
    """
    servicer = CartService(store, limits, admission.park)
    add = cart_service_pb2_grpc.add_CartServiceServicer_to_server
    return Service(
        (CART_SERVICE,),
        lambda pipeline: add(servicer, pipeline),
        admission=admission,
        notifier=store.notifier,
        max_request_bytes=limits.max_cart_bytes + REQUEST_ROOM,
        others=others,
    )


def admin_service(operator: OperatorActions) -> Service:
    """Return `cartgrpc.v1.CartAdminService`."""
    servicer = CartAdminService(operator)
    add = cart_admin_service_pb2_grpc.add_CartAdminServiceServicer_to_server
    return Service((ADMIN_SERVICE,), lambda pipeline: add(servicer, pipeline))


def no_service(*names: str) -> Service:
    """Return a service without methods, for a port that reports the readiness of services on other ports."""
    return Service(names, lambda _: None)


def open_streams(max_open: int) -> OpenStreams:
    """Return the counts of streams, of which `max_open` may be open."""
    return OpenStreams(
        max_open=max_open,
        max_per_service=MAX_STREAMS_PER_SERVICE,
        max_per_user=MAX_STREAMS_PER_USER,
        max_per_connection=MAX_STREAMS_PER_CONNECTION,
    )
