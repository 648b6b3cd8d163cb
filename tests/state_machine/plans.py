"""The calls that the machine draws: requests without etag and request_id, and how to complete them."""

from dataclasses import dataclass
from typing import Any

from cartgrpc.v1 import cart_pb2
from cartgrpc.v1 import cart_service_pb2 as pb
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import strategies as st

from cart_grpc.names import item_id_of
from tests.state_machine.carts import SOLD_OUT

USERS = ("ada", "bob")
# USER stands for the part of a user's name that each run has for itself.
CARTS = ("users/ada/carts/default", "users/ada/carts/gifts", "users/ada/carts/later", "users/bob/carts/default")
SKUS = ("beans", "beans", "filters", "kettle", SOLD_OUT)


@dataclass(frozen=True)
class Plan:
    """A call to make. `etag` is "", "current" or "stale"; `has_id`: it has a request_id; `waits`: it has max_wait."""

    method: str
    request: Any
    etag: str = ""
    has_id: bool = True
    waits: bool = False


_carts = st.sampled_from(CARTS)
_skus = st.sampled_from(SKUS)
_options = st.sampled_from([{}, {}, {"size": "L"}])
_labels = st.sampled_from([{}, {"gift": "yes"}, {"gift": "no", "note": "ü"}])
_prices = st.one_of(
    st.none(),
    st.builds(
        lambda code, units: cart_pb2.Money(currency_code=code, minor_units=units),
        st.sampled_from(["EUR", "EUR", "JPY"]),
        st.integers(0, 300),
    ),
)
_names = st.builds(lambda cart, sku, options: f"{cart}/items/{item_id_of(sku, options)}", _carts, _skus, _options)


def _item(**fields: Any) -> cart_pb2.Item:
    return cart_pb2.Item(**{name: value for name, value in fields.items() if value is not None})


_items = st.builds(
    _item,
    sku=_skus,
    options=_options,
    quantity=st.one_of(st.none(), st.integers(1, 6)),
    unit_price=_prices,
    labels=_labels,
)
_cart_values = st.builds(
    lambda labels, code, seconds: cart_pb2.Cart(
        labels=labels, currency_code=code, ttl=Duration(seconds=seconds) if seconds else None
    ),
    _labels,
    st.sampled_from(["", "EUR", "JPY"]),
    st.sampled_from([0, 3600]),
)


def _masks(*paths: str) -> st.SearchStrategy[FieldMask]:
    return st.builds(
        lambda chosen: FieldMask(paths=sorted(chosen)), st.sets(st.sampled_from(paths), min_size=1, max_size=3)
    )


def _update_item(name: str, item: cart_pb2.Item, quantity: int, mask: FieldMask) -> pb.UpdateItemRequest:
    changed = cart_pb2.Item(name=name, quantity=quantity, labels=item.labels)
    if item.HasField("unit_price"):
        changed.unit_price.CopyFrom(item.unit_price)
    return pb.UpdateItemRequest(item=changed, update_mask=mask)


def _create_cart(name: str, values: cart_pb2.Cart) -> pb.CreateCartRequest:
    parent, _, cart_id = name.partition("/carts/")
    return pb.CreateCartRequest(parent=parent, cart_id=cart_id, cart=values)


def _update_cart(name: str, values: cart_pb2.Cart, mask: FieldMask) -> pb.UpdateCartRequest:
    cart = cart_pb2.Cart(name=name)
    cart.MergeFrom(values)
    return pb.UpdateCartRequest(cart=cart, update_mask=mask)


_REQUESTS: dict[str, st.SearchStrategy[Any]] = {
    "AddItem": st.builds(lambda cart, item: pb.AddItemRequest(parent=cart, item=item), _carts, _items),
    "BatchAddItems": st.builds(
        lambda cart, items: pb.BatchAddItemsRequest(
            parent=cart, requests=[pb.AddItemRequest(item=item) for item in items]
        ),
        _carts,
        st.lists(_items, min_size=1, max_size=3),
    ),
    "ReplaceItems": st.builds(
        lambda cart, items: pb.ReplaceItemsRequest(name=cart, items=items), _carts, st.lists(_items, max_size=3)
    ),
    "UpdateItem": st.builds(
        _update_item, _names, _items, st.integers(1, 9), _masks("quantity", "unit_price", "labels")
    ),
    "RemoveItem": st.builds(lambda name: pb.RemoveItemRequest(name=name), _names),
    "RetryReservation": st.builds(lambda name: pb.RetryReservationRequest(name=name), _names),
    "ClearCart": st.builds(lambda cart: pb.ClearCartRequest(name=cart), _carts),
    "DeleteCart": st.builds(lambda cart: pb.DeleteCartRequest(name=cart), _carts),
    "CreateCart": st.builds(_create_cart, _carts, _cart_values),
    "UpdateCart": st.builds(_update_cart, _carts, _cart_values, _masks("labels", "currency_code", "ttl")),
    "GetCart": st.builds(lambda cart: pb.GetCartRequest(name=cart), _carts),
    "ListCarts": st.builds(lambda user: pb.ListCartsRequest(parent=f"users/{user}"), st.sampled_from(USERS)),
}
READS = ("GetCart", "ListCarts")
# How often each method is drawn.
_WEIGHTS = {
    "AddItem": 5,
    "BatchAddItems": 3,
    "ReplaceItems": 2,
    "UpdateItem": 3,
    "RemoveItem": 2,
    "ClearCart": 1,
    "DeleteCart": 1,
    "CreateCart": 1,
    "UpdateCart": 1,
    "RetryReservation": 1,
    "GetCart": 1,
    "ListCarts": 1,
}


def _plans(method: str) -> st.SearchStrategy[Plan]:
    if method in READS:
        return st.builds(Plan, st.just(method), _REQUESTS[method])
    return st.builds(
        Plan,
        st.just(method),
        _REQUESTS[method],
        st.sampled_from(["", "", "", "current", "stale"]),
        st.sampled_from([True, True, False]),
        st.sampled_from([False, False, True]),
    )


PLANS: st.SearchStrategy[Plan] = st.sampled_from(
    [method for method, weight in _WEIGHTS.items() for _ in range(weight)]
).flatmap(_plans)
