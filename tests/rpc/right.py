"""A valid request for each method, for tests to break. An operators' method is named with its service before it."""

import json
from typing import Any

from cartgrpc.v1 import cart_admin_service_pb2, cart_service_pb2
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message_factory import GetMessageClass

from cart_grpc.names import item_id_of

SERVICE = cart_service_pb2.DESCRIPTOR.services_by_name["CartService"]
ADMIN_SERVICE = cart_admin_service_pb2.DESCRIPTOR.services_by_name["CartAdminService"]
ADMIN = "CartAdminService"
USER = "users/alice"
CART = f"{USER}/carts/default"
SKU = "espresso-beans"
ITEM = f"{CART}/items/{item_id_of(SKU, {})}"
CHECKOUT = f"{USER}/checkouts/01900000-0000-7000-8000-000000000000"


def descriptor_of(method: str) -> MethodDescriptor:
    """The descriptor of a method."""
    service, _, name = method.rpartition("/")
    return (ADMIN_SERVICE if service else SERVICE).methods_by_name[name]


def path_of(method: str) -> str:
    """The path of a method, as in HTTP/2."""
    found = descriptor_of(method)
    return f"/{found.containing_service.full_name}/{found.name}"


def request_of(method: str) -> Any:
    """An empty request for a method."""
    return GetMessageClass(descriptor_of(method).input_type)()


def ask(method: str, **fields: Any) -> Any:
    """A request for a method, from JSON."""
    return ParseDict(fields, request_of(method))


# A valid request for each method. Every row of an invalid request differs from one of these in one field only.
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
    "WatchCart": {"name": CART},
    "ListCarts": {"parent": USER},
    "RetryReservation": {"name": ITEM},
    "MergeCarts": {"name": f"{USER}/carts/second", "source": CART},
    "ReplaceItems": {"name": CART, "items": [{"sku": SKU, "quantity": 3}, {"sku": "filters"}]},
    "BeginCheckout": {"name": CART},
    "CompleteCheckout": {"name": CHECKOUT, "orderReference": "order-17"},
    "CancelCheckout": {"name": CHECKOUT},
    "GetCheckout": {"name": CHECKOUT},
    "ListCheckouts": {"parent": USER},
}
# Without a Reservation API no item is RESERVED, so there is no checkout: these methods only refuse.
NEED_A_SALE = frozenset({"BeginCheckout", "CompleteCheckout", "CancelCheckout", "GetCheckout"})
RESERVATION = "reservations/01900000-0000-7000-8000-000000000000"
RIGHT_OF_OPERATORS: dict[str, dict[str, Any]] = {
    f"{ADMIN}/ListReservations": {"states": ["STATE_DUE", "STATE_HELD"], "minAge": "0s", "minAttemptCount": 0},
    f"{ADMIN}/GetReservation": {"name": RESERVATION},
    f"{ADMIN}/RetryReservation": {"name": RESERVATION},
    f"{ADMIN}/ReleaseReservation": {"name": RESERVATION, "reason": "their ticket 17", "force": True},
    f"{ADMIN}/GetReservationStats": {},
    f"{ADMIN}/GetProcessStats": {},
    f"{ADMIN}/PauseReservations": {"reason": "their maintenance"},
    f"{ADMIN}/ResumeReservations": {},
    f"{ADMIN}/EraseUser": {"name": "users/nobody", "progressOnly": True},
    f"{ADMIN}/ListCarts": {"userPrefix": "a", "states": ["STATE_ACTIVE"], "minAge": "0s", "sku": SKU},
    f"{ADMIN}/ListCheckouts": {"states": ["STATE_OPEN"], "minAge": "0s", "orderReference": "order-17"},
    f"{ADMIN}/GetCheckout": {"name": CHECKOUT},
    f"{ADMIN}/EndCheckout": {"name": CHECKOUT, "reason": "their ticket 17", "force": True},
}


def right(method: str, user: str = USER) -> Any:
    """The valid request for a method."""
    return ParseDict(
        json.loads(json.dumps((RIGHT | RIGHT_OF_OPERATORS)[method]).replace(USER, user)), request_of(method)
    )
