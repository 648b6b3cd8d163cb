"""The demos' services, for a server of CartService."""

from collections.abc import Sequence
from typing import Any, Final

from cartgrpc.compat import eshop_pb2_grpc, hipstershop_pb2, hipstershop_pb2_grpc, oteldemo_pb2, oteldemo_pb2_grpc

from cart_grpc.carts.calls import Limits
from cart_grpc.compat.demo_carts import DemoCarts
from cart_grpc.compat.demos import Demo
from cart_grpc.compat.eshop_basket import EshopBasket
from cart_grpc.compat.methods import BASKET_SCOPES, BASKETS, CART_SCOPES, CARTS
from cart_grpc.compat.user_carts import UserCarts
from cart_grpc.rpc.services import OtherService
from cart_grpc.store.store import Store

# Any: DemoCarts stands for the servicers of both packages.
_ADD_OTELDEMO: Final[Any] = oteldemo_pb2_grpc.add_CartServiceServicer_to_server
_ADD_HIPSTERSHOP: Final[Any] = hipstershop_pb2_grpc.add_CartServiceServicer_to_server


def demo_services(demos: Sequence[Demo], store: Store, limits: Limits) -> Sequence[OtherService]:
    """Return the service of each of `demos`, on the carts in `store`."""
    carts = UserCarts(store, limits)
    services: dict[Demo, OtherService] = {
        "oteldemo": OtherService(
            "oteldemo.CartService",
            lambda pipeline: _ADD_OTELDEMO(DemoCarts(carts, oteldemo_pb2), pipeline),
            CARTS,
            CART_SCOPES,
        ),
        "hipstershop": OtherService(
            "hipstershop.CartService",
            lambda pipeline: _ADD_HIPSTERSHOP(DemoCarts(carts, hipstershop_pb2), pipeline),
            CARTS,
            CART_SCOPES,
        ),
        "eshop": OtherService(
            "BasketApi.Basket",
            lambda pipeline: eshop_pb2_grpc.add_BasketServicer_to_server(EshopBasket(carts), pipeline),
            BASKETS,
            BASKET_SCOPES,
        ),
    }
    return [services[demo] for demo in demos]
