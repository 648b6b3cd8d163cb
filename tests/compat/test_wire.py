"""The demos' services are the same on the wire: names, numbers and types, written down once more by hand."""

import subprocess
import sys
from typing import Any

import pytest
from cartgrpc.compat import eshop_pb2, hipstershop_pb2, oteldemo_pb2
from google.protobuf.descriptor import FieldDescriptor

from cart_grpc.compat.methods import BASKET_SCOPES, BASKETS, CART_SCOPES, CARTS

TEXT, NUMBER, MESSAGE = FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_MESSAGE
CART_MESSAGES: dict[str, list[tuple[Any, ...]]] = {
    "CartItem": [("product_id", 1, TEXT, False), ("quantity", 2, NUMBER, False)],
    "AddItemRequest": [("user_id", 1, TEXT, False), ("item", 2, MESSAGE, False)],
    "EmptyCartRequest": [("user_id", 1, TEXT, False)],
    "GetCartRequest": [("user_id", 1, TEXT, False)],
    "Cart": [("user_id", 1, TEXT, False), ("items", 2, MESSAGE, True)],
    "Empty": [],
}
CART_METHODS = {
    "AddItem": ("AddItemRequest", "Empty"),
    "GetCart": ("GetCartRequest", "Cart"),
    "EmptyCart": ("EmptyCartRequest", "Empty"),
}
BASKET_MESSAGES: dict[str, list[tuple[Any, ...]]] = {
    "GetBasketRequest": [],
    "CustomerBasketResponse": [("items", 1, MESSAGE, True)],
    "BasketItem": [("product_id", 2, NUMBER, False), ("quantity", 6, NUMBER, False)],
    "UpdateBasketRequest": [("items", 2, MESSAGE, True)],
    "DeleteBasketRequest": [],
    "DeleteBasketResponse": [],
}
BASKET_METHODS = {
    "GetBasket": ("GetBasketRequest", "CustomerBasketResponse"),
    "UpdateBasket": ("UpdateBasketRequest", "CustomerBasketResponse"),
    "DeleteBasket": ("DeleteBasketRequest", "DeleteBasketResponse"),
}


@pytest.mark.parametrize(
    ("module", "name", "methods", "messages"),
    [
        (oteldemo_pb2, "oteldemo.CartService", CART_METHODS, CART_MESSAGES),
        (hipstershop_pb2, "hipstershop.CartService", CART_METHODS, CART_MESSAGES),
        (eshop_pb2, "BasketApi.Basket", BASKET_METHODS, BASKET_MESSAGES),
    ],
    ids=["oteldemo", "hipstershop", "eshop"],
)
def test_a_service_has_the_names_numbers_and_types_of_the_demo(
    module: Any, name: str, methods: Any, messages: Any
) -> None:
    file = module.DESCRIPTOR
    (service,) = file.services_by_name.values()
    assert service.full_name == name
    assert {method.name: (method.input_type.name, method.output_type.name) for method in service.methods} == methods
    seen = {
        message.name: [(field.name, field.number, field.type, field.is_repeated) for field in message.fields]
        for message in file.message_types_by_name.values()
    }
    assert seen == messages


@pytest.mark.parametrize(
    ("rows", "scopes", "methods"), [(CARTS, CART_SCOPES, CART_METHODS), (BASKETS, BASKET_SCOPES, BASKET_METHODS)]
)
def test_every_method_has_a_row_an_owner_and_a_scope(rows: Any, scopes: Any, methods: Any) -> None:
    assert [row.name for row in rows] == list(scopes) == list(methods)
    for row in rows:
        assert row.owner
        assert row.writes == (not row.name.startswith("Get"))
        assert scopes[row.name] == ("carts.write" if row.writes else "carts.read")
    assert [row.name for row in rows if row.allows_nobody] in ([], ["GetBasket"])


def test_callers_of_cartgrpc_v1_do_not_load_the_demos_messages() -> None:
    # A program of a demo has its own module with these messages. Two modules with the same names exclude each other.
    code = "import cartgrpc.v1.cart_service_pb2_grpc, cart_grpc.client, sys; print('cartgrpc.compat' in sys.modules)"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout == "False\n"
