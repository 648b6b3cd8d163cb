"""What the requests of `cartgrpc.v1` ask for, checked: values for the rules. Every function raises InvalidArgument."""

import hashlib
from dataclasses import dataclass
from typing import Any

from cartgrpc.v1 import cart_pb2, cart_service_pb2
from google.protobuf.message import Message

from cart_grpc.carts.calls import Addition, CartUpdate, ItemUpdate, Limits, addition
from cart_grpc.names import CartKey
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


@dataclass(frozen=True, slots=True)
class Options:
    """What every mutation carries, checked. `max_wait` in seconds; `fingerprint` tells one body from another."""

    request_id: str
    etag: str
    max_wait: float
    fingerprint: bytes


def options(fields: Fields, request: Any) -> Options:
    if request.request_id:
        fields.id("request_id", request.request_id)
    fields.etag("etag", request.etag)
    max_wait = fields.duration("max_wait", request.max_wait, 0, MAX_WAIT_SECONDS)
    fingerprint = _fingerprint(request) if request.request_id else b""
    return Options(request.request_id, request.etag, max_wait / 1_000_000, fingerprint)


def _fingerprint(request: Message) -> bytes:
    """SHA-256 of the method's request type and all that a repetition must have in common."""
    body = type(request)()
    body.CopyFrom(request)
    body.ClearField("request_id")
    body.ClearField("max_wait")
    body.DiscardUnknownFields()
    method = request.DESCRIPTOR.full_name.encode()
    return hashlib.sha256(method + b"\0" + body.SerializeToString(deterministic=True)).digest()


@dataclass(frozen=True, slots=True)
class AddItems:
    cart: CartKey
    additions: tuple[Addition, ...]
    options: Options


def add_item(request: cart_service_pb2.AddItemRequest, limits: Limits) -> AddItems:
    fields = Fields()
    cart = fields.cart("parent", request.parent)
    addition = _addition(fields, "item", request.item, limits)
    result = AddItems(cart, (addition,), options(fields, request))
    fields.check()
    return result


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
                fields.fault(f"{field}.{name}", "NOT_IN_BATCH", "is said once, for the whole batch")
        additions.append(_addition(fields, f"{field}.item", one.item, limits))
    result = AddItems(cart, tuple(additions), options(fields, request))
    fields.check()
    return result


def _addition(fields: Fields, field: str, item: cart_pb2.Item, limits: Limits) -> Addition:
    quantity = item.quantity if item.HasField("quantity") else 1
    return addition(
        sku=fields.text(f"{field}.sku", item.sku, MAX_SKU, least=1),
        options=fields.texts(f"{field}.options", item.options, MAX_OPTIONS),
        quantity=fields.quantity(f"{field}.quantity", quantity, limits.max_quantity_per_add),
        unit_price=fields.money(f"{field}.unit_price", item.unit_price) if item.HasField("unit_price") else None,
        labels=fields.texts(f"{field}.labels", item.labels, MAX_LABELS) if item.labels else None,
    )


@dataclass(frozen=True, slots=True)
class UpdateItem:
    cart: CartKey
    item_id: str
    update: ItemUpdate
    options: Options


def update_item(request: cart_service_pb2.UpdateItemRequest, limits: Limits) -> UpdateItem:
    fields = Fields()
    item = request.item
    cart, item_id = fields.item("item.name", item.name)
    paths = fields.paths("update_mask", request, item, ITEM_PATHS)
    quantity = item.quantity
    if "quantity" in paths and not item.quantity:
        fields.fault("item.quantity", "OUT_OF_RANGE", "must be 1 or more; RemoveItem takes an item out")
    elif "quantity" in paths:
        quantity = fields.quantity("item.quantity", item.quantity, limits.max_quantity_per_item)
    priced = "unit_price" in paths and item.HasField("unit_price")
    update = ItemUpdate(
        paths=paths,
        quantity=quantity,
        unit_price=fields.money("item.unit_price", item.unit_price) if priced else None,
        labels=fields.texts("item.labels", item.labels, MAX_LABELS) if "labels" in paths else {},
    )
    result = UpdateItem(cart, item_id, update, options(fields, request))
    fields.check()
    return result


@dataclass(frozen=True, slots=True)
class NamedItem:
    cart: CartKey
    item_id: str
    options: Options


def named_item(
    request: cart_service_pb2.RemoveItemRequest | cart_service_pb2.RetryReservationRequest,
) -> NamedItem:
    fields = Fields()
    cart, item_id = fields.item("name", request.name)
    result = NamedItem(cart, item_id, options(fields, request))
    fields.check()
    return result


@dataclass(frozen=True, slots=True)
class NamedCart:
    cart: CartKey
    options: Options


def named_cart(request: cart_service_pb2.ClearCartRequest | cart_service_pb2.DeleteCartRequest) -> NamedCart:
    fields = Fields()
    result = NamedCart(fields.cart("name", request.name), options(fields, request))
    fields.check()
    return result


@dataclass(frozen=True, slots=True)
class ChangeCart:
    cart: CartKey
    update: CartUpdate
    options: Options


def create_cart(request: cart_service_pb2.CreateCartRequest, limits: Limits) -> ChangeCart:
    fields = Fields()
    user = fields.user("parent", request.parent)
    cart_id = fields.id("cart_id", request.cart_id)
    update = _cart_update(fields, request.cart, frozenset(CART_PATHS), limits)
    result = ChangeCart(CartKey(user.slice, user.user_id, cart_id), update, options(fields, request))
    fields.check()
    return result


def update_cart(request: cart_service_pb2.UpdateCartRequest, limits: Limits) -> ChangeCart:
    fields = Fields()
    cart = fields.cart("cart.name", request.cart.name)
    paths = fields.paths("update_mask", request, request.cart, CART_PATHS)
    result = ChangeCart(cart, _cart_update(fields, request.cart, paths, limits), options(fields, request))
    fields.check()
    return result


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
