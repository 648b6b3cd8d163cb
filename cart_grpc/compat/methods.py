"""The methods of the demos' services, one row each, and the scope that each needs.

Their requests have no resource names. So a row has an accessor of the user instead: the user id in the request, or the
caller's own. A user's token reaches only that user's cart, as everywhere.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from cart_grpc.authentication.caller import CARTS_READ, CARTS_WRITE
from cart_grpc.rpc.access import CALLER
from cart_grpc.rpc.methods import Method


def _of_request(request: Any) -> str:
    user_id: str = request.user_id
    return user_id


def _of_caller(_: Any) -> str:
    return CALLER.get().user_id


# OpenTelemetry's demo and Online Boutique.
CARTS: Final = (
    Method("AddItem", owner=_of_request, writes=True),
    Method("GetCart", owner=_of_request),
    Method("EmptyCart", owner=_of_request, writes=True),
)
CART_SCOPES: Final[Mapping[str, str]] = MappingProxyType(
    {"AddItem": CARTS_WRITE, "GetCart": CARTS_READ, "EmptyCart": CARTS_WRITE}
)
# eShop.
BASKETS: Final = (
    Method("GetBasket", owner=_of_caller, allows_nobody=True),
    Method("UpdateBasket", owner=_of_caller, writes=True),
    Method("DeleteBasket", owner=_of_caller, writes=True),
)
BASKET_SCOPES: Final[Mapping[str, str]] = MappingProxyType(
    {"GetBasket": CARTS_READ, "UpdateBasket": CARTS_WRITE, "DeleteBasket": CARTS_WRITE}
)
