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
# No checkout has this id.
NO_CHECKOUT = "01900000-0000-7000-8000-000000000000"
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
# The newest checkout of the user is number 0.
_checkouts = st.builds(
    lambda user, number: f"users/{user}/checkouts/{number}", st.sampled_from(USERS), st.integers(0, 1)
)
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
# The subtotal that a caller expects. 0 stands for the cart's own.
_subtotals = st.sampled_from(
    [None, None, *(cart_pb2.Money(currency_code="EUR", minor_units=units) for units in (0, 0, 100))]
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
ITEMS = st.lists(_items, max_size=3)
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
    "MergeCarts": st.permutations(CARTS).map(lambda carts: pb.MergeCartsRequest(name=carts[0], source=carts[1])),
    "BeginCheckout": st.builds(
        lambda cart, subtotal: pb.BeginCheckoutRequest(name=cart, expected_subtotal=subtotal), _carts, _subtotals
    ),
    "CompleteCheckout": st.builds(
        lambda name, order: pb.CompleteCheckoutRequest(name=name, order_reference=order),
        _checkouts,
        st.sampled_from(["order-1", "order-1", "order-2"]),
    ),
    "CancelCheckout": st.builds(lambda name: pb.CancelCheckoutRequest(name=name), _checkouts),
    "GetCheckout": st.builds(lambda name: pb.GetCheckoutRequest(name=name), _checkouts),
    "ListCheckouts": st.builds(lambda user: pb.ListCheckoutsRequest(parent=f"users/{user}"), st.sampled_from(USERS)),
    "WatchCart": st.builds(lambda cart: pb.WatchCartRequest(name=cart), _carts),
    "GetCart": st.builds(lambda cart: pb.GetCartRequest(name=cart), _carts),
    "ListCarts": st.builds(lambda user: pb.ListCartsRequest(parent=f"users/{user}"), st.sampled_from(USERS)),
}
READS = ("GetCart", "ListCarts", "WatchCart", "GetCheckout", "ListCheckouts")
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
    "MergeCarts": 2,
    "BeginCheckout": 2,
    "CompleteCheckout": 2,
    "CancelCheckout": 2,
    "GetCart": 1,
    "ListCarts": 1,
    "WatchCart": 1,
    "GetCheckout": 1,
    "ListCheckouts": 1,
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


def _races() -> st.SearchStrategy[list[Plan]]:
    """Calls at the same time that can contradict each other."""
    user, cart = st.sampled_from(USERS), _carts
    begins = cart.map(lambda name: [Plan("BeginCheckout", pb.BeginCheckoutRequest(name=name))] * 2)
    add_and_begin = st.builds(
        lambda name, item: [
            Plan("AddItem", pb.AddItemRequest(parent=name, item=item)),
            Plan("BeginCheckout", pb.BeginCheckoutRequest(name=name)),
        ],
        cart,
        _items,
    )
    complete_and_cancel = user.map(
        lambda one: [
            Plan(
                "CompleteCheckout",
                pb.CompleteCheckoutRequest(name=f"users/{one}/checkouts/0", order_reference="order-1"),
            ),
            Plan("CancelCheckout", pb.CancelCheckoutRequest(name=f"users/{one}/checkouts/0")),
        ]
    )
    merges = st.builds(
        lambda carts, targets: [
            Plan("MergeCarts", pb.MergeCartsRequest(name=carts[which], source=carts[2])) for which in targets
        ],
        st.permutations(CARTS),
        st.sampled_from([(0, 0), (0, 1)]),
    )
    return st.one_of(begins, add_and_begin, complete_and_cancel, merges)


RACES = _races()
