"""A right request for each method, to be spoilt."""

import json
from typing import Any

from cart.v1 import cart_service_pb2
from google.protobuf.json_format import ParseDict

from cart_grpc.carts.names import item_id_of

SERVICE = cart_service_pb2.DESCRIPTOR.services_by_name["CartService"]
USER = "users/alice"
CART = f"{USER}/carts/default"
SKU = "espresso-beans"
ITEM = f"{CART}/items/{item_id_of(SKU, {})}"


def request_of(method: str) -> Any:
    """An empty request of a method."""
    name = SERVICE.methods_by_name[method].input_type.name
    return getattr(cart_service_pb2, name)()


def ask(method: str, **fields: Any) -> Any:
    """A request of a method, from JSON."""
    return ParseDict(fields, request_of(method))


# A right request for each method: every row differs from one of them in the field at fault alone.
RIGHT: dict[str, dict[str, Any]] = {
    "AddItem": {"parent": CART, "item": {"sku": SKU, "quantity": 2}},
    "BatchAddItems": {
        "parent": CART,
        "requests": [{"item": {"sku": SKU}}, {"item": {"sku": "filters", "quantity": 3}}],
    },
    "UpdateItem": {"item": {"name": ITEM, "quantity": 5}, "updateMask": "quantity"},
    "RemoveItem": {"name": ITEM},
    "ClearCart": {"name": CART},
    "CreateCart": {"parent": USER, "cartId": "second", "cart": {"labels": {"colour": "red"}}},
    "UpdateCart": {"cart": {"name": CART, "labels": {"colour": "red"}}, "updateMask": "labels"},
    "DeleteCart": {"name": CART},
    "GetCart": {"name": CART},
    "ListCarts": {"parent": USER},
    "RetryReservation": {"name": ITEM},
}


def right(method: str, user: str = USER) -> Any:
    """The right request of a method."""
    return ParseDict(json.loads(json.dumps(RIGHT[method]).replace(USER, user)), request_of(method))
