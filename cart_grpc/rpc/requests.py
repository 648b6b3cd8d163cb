"""From the requests of `cartgrpc.v1.CartService` to calls. Each function checks one request. All raise InvalidArgument.

ListCarts is in `pages`.
"""

import hashlib
from typing import Any, TypedDict

from cartgrpc.v1 import cart_pb2, cart_service_pb2
from google.protobuf.message import Message

from cart_grpc.carts.calls import (
    AddItems,
    Addition,
    CartUpdate,
    ClearCart,
    CreateCart,
    DeleteCart,
    ItemUpdate,
    Limits,
    MergeCarts,
    RemoveItem,
    ReplaceItems,
    RetryReservation,
    UpdateCart,
    UpdateItem,
    addition,
)
from cart_grpc.names import CartKey, cart_key
from cart_grpc.rpc.fields import (
    MAX_LABELS,
    MAX_OPTIONS,
    MAX_SKU,
    MAX_TTL_SECONDS,
    MAX_WAIT_SECONDS,
    MIN_TTL_SECONDS,
    Fields,
)

ITEM_PATHS = ("quantity", "unit_price", "labels")
CART_PATHS = ("labels", "currency_code", "ttl")


class EveryMutation(TypedDict):
    """The fields of Call that every mutation takes from its request in the same way."""

    etag: str
    request_id: str
    fingerprint: bytes


def every_mutation(fields: Fields, request: Any) -> EveryMutation:
    request_id: str = request.request_id
    if request_id:
        fields.id("request_id", request_id)
    if request.HasField("max_wait"):
        fields.duration("max_wait", request.max_wait, 0, MAX_WAIT_SECONDS)
    etag = fields.etag("etag", request.etag)
    return {"etag": etag, "request_id": request_id, "fingerprint": _fingerprint(request) if request_id else b""}


def max_wait_seconds(request: Any) -> float:
    """The max_wait of a request that has been checked; 0 if it has none."""
    return request.max_wait.ToMicroseconds() / 1_000_000 if request.HasField("max_wait") else 0.0


def _fingerprint(request: Message) -> bytes:
    """SHA-256 of the method's request type and of every field that a repeated request must repeat."""
    body = type(request)()
    body.CopyFrom(request)
    body.ClearField("request_id")
    body.ClearField("max_wait")
    body.DiscardUnknownFields()
    type_name = request.DESCRIPTOR.full_name.encode()
    return hashlib.sha256(type_name + b"\0" + body.SerializeToString(deterministic=True)).digest()


def add_item(request: cart_service_pb2.AddItemRequest, limits: Limits) -> AddItems:
    fields = Fields()
    cart = fields.cart("parent", request.parent)
    additions = (_addition(fields, "item", request.item, limits.max_quantity_per_add),)
    call = AddItems(cart, additions, **every_mutation(fields, request))
    fields.check()
    return call


def batch_add_items(request: cart_service_pb2.BatchAddItemsRequest, limits: Limits) -> AddItems:
    fields = Fields()
    cart = fields.cart("parent", request.parent)
    if not 1 <= len(request.requests) <= limits.max_items_per_cart:
        count = len(request.requests)
        fields.fault("requests", "OUT_OF_RANGE", f"must have 1 to {limits.max_items_per_cart} entries, not {count}")
        fields.check()
    additions = []
    for index, one in enumerate(request.requests):
        field = f"requests[{index}]"
        if one.parent and one.parent != request.parent:
            fields.fault(f"{field}.parent", "PARENT_MISMATCH", "must be empty or the batch's parent")
        for name in ("request_id", "etag", "max_wait"):
            if one.HasField("max_wait") if name == "max_wait" else getattr(one, name):
                fields.fault(f"{field}.{name}", "NOT_IN_BATCH", "belongs to the whole batch: set it there")
        additions.append(_addition(fields, f"{field}.item", one.item, limits.max_quantity_per_add))
    call = AddItems(cart, tuple(additions), **every_mutation(fields, request))
    fields.check()
    return call


def replace_items(request: cart_service_pb2.ReplaceItemsRequest, limits: Limits) -> ReplaceItems:
    fields = Fields()
    cart = fields.cart("name", request.name)
    if (count := len(request.items)) > limits.max_items_per_cart:
        fields.fault("items", "OUT_OF_RANGE", f"must have up to {limits.max_items_per_cart} entries, not {count}")
        fields.check()
    most = limits.max_quantity_per_item
    additions = [_addition(fields, f"items[{index}]", item, most) for index, item in enumerate(request.items)]
    call = ReplaceItems(cart, tuple(additions), **every_mutation(fields, request))
    fields.check()
    return call


def _addition(fields: Fields, field: str, item: cart_pb2.Item, max_quantity: int) -> Addition:
    quantity = item.quantity if item.HasField("quantity") else 1
    return addition(
        sku=fields.text(f"{field}.sku", item.sku, MAX_SKU, least=1),
        options=fields.texts(f"{field}.options", item.options, MAX_OPTIONS),
        quantity=fields.quantity(f"{field}.quantity", quantity, max_quantity),
        unit_price=fields.money(f"{field}.unit_price", item.unit_price) if item.HasField("unit_price") else None,
        labels=fields.texts(f"{field}.labels", item.labels, MAX_LABELS) if item.labels else None,
    )


def update_item(request: cart_service_pb2.UpdateItemRequest, limits: Limits) -> UpdateItem:
    fields = Fields()
    item = request.item
    cart, item_id = fields.item("item.name", item.name)
    paths = fields.paths("update_mask", request, item, ITEM_PATHS)
    quantity = item.quantity
    if "quantity" in paths and not item.quantity:
        fields.fault("item.quantity", "OUT_OF_RANGE", "must be 1 or more; to remove the item, call RemoveItem")
    elif "quantity" in paths:
        quantity = fields.quantity("item.quantity", item.quantity, limits.max_quantity_per_item)
    priced = "unit_price" in paths and item.HasField("unit_price")
    update = ItemUpdate(
        paths=paths,
        quantity=quantity,
        unit_price=fields.money("item.unit_price", item.unit_price) if priced else None,
        labels=fields.texts("item.labels", item.labels, MAX_LABELS) if "labels" in paths else {},
    )
    call = UpdateItem(cart, item_id, update, **every_mutation(fields, request))
    fields.check()
    return call


def remove_item(request: cart_service_pb2.RemoveItemRequest) -> RemoveItem:
    fields = Fields()
    call = RemoveItem(*fields.item("name", request.name), **every_mutation(fields, request))
    fields.check()
    return call


def retry_reservation(request: cart_service_pb2.RetryReservationRequest) -> RetryReservation:
    fields = Fields()
    call = RetryReservation(*fields.item("name", request.name), **every_mutation(fields, request))
    fields.check()
    return call


def clear_cart(request: cart_service_pb2.ClearCartRequest) -> ClearCart:
    fields = Fields()
    call = ClearCart(fields.cart("name", request.name), **every_mutation(fields, request))
    fields.check()
    return call


def delete_cart(request: cart_service_pb2.DeleteCartRequest) -> DeleteCart:
    fields = Fields()
    call = DeleteCart(fields.cart("name", request.name), **every_mutation(fields, request))
    fields.check()
    return call


def merge_carts(request: cart_service_pb2.MergeCartsRequest) -> MergeCarts:
    fields = Fields()
    target, source = fields.cart("name", request.name), fields.cart("source", request.source)
    if target == source and target.cart_id:
        fields.fault("source", "SAME_CART", "must not be the cart in name")
    call = MergeCarts(target, source, **every_mutation(fields, request))
    fields.check()
    return call


def create_cart(request: cart_service_pb2.CreateCartRequest, limits: Limits) -> CreateCart:
    fields = Fields()
    user = fields.user("parent", request.parent)
    cart = cart_key(user, fields.id("cart_id", request.cart_id))
    values = _cart_update(fields, request.cart, frozenset(CART_PATHS), limits)
    call = CreateCart(cart, values, **every_mutation(fields, request))
    fields.check()
    return call


def update_cart(request: cart_service_pb2.UpdateCartRequest, limits: Limits) -> UpdateCart:
    fields = Fields()
    cart = fields.cart("cart.name", request.cart.name)
    paths = fields.paths("update_mask", request, request.cart, CART_PATHS)
    update = _cart_update(fields, request.cart, paths, limits)
    call = UpdateCart(cart, update, **every_mutation(fields, request))
    fields.check()
    return call


def _cart_update(fields: Fields, cart: cart_pb2.Cart, paths: frozenset[str], limits: Limits) -> CartUpdate:
    has_currency = "currency_code" in paths and cart.currency_code
    has_ttl = "ttl" in paths and cart.HasField("ttl")
    return CartUpdate(
        paths=paths,
        labels=fields.texts("cart.labels", cart.labels, MAX_LABELS) if "labels" in paths else {},
        currency_code=fields.currency("cart.currency_code", cart.currency_code) if has_currency else "",
        ttl_us=fields.duration("cart.ttl", cart.ttl, MIN_TTL_SECONDS, MAX_TTL_SECONDS)
        if has_ttl
        else limits.cart_ttl_us,
    )


def get_cart(request: cart_service_pb2.GetCartRequest) -> CartKey:
    fields = Fields()
    cart = fields.cart("name", request.name)
    fields.check()
    return cart


def watch_cart(request: cart_service_pb2.WatchCartRequest) -> CartKey:
    fields = Fields()
    cart = fields.cart("name", request.name)
    fields.check()
    return cart
