"""The replies to mutations: for each method, how to encode its reply and which part of it max_wait waits for."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import grpc
from cartgrpc.v1 import cart_pb2
from cartgrpc.v1 import cart_service_pb2 as pb
from google.protobuf.message import Message

from cart_grpc.carts.adjustments import Adjustment
from cart_grpc.carts.calls import Call, Change, ClearCart, DeleteCart, RemoveItem
from cart_grpc.names import UserKey
from cart_grpc.rpc.messages import cart_message, item_message, money_message, serialize
from cart_grpc.rpc.waiting import Waiting

Context = grpc.aio.ServicerContext[Any, Any]


class MutationReply(NamedTuple):
    """The reply of one method.

    `encode` makes the reply's bytes from the change and the time in microseconds. `settle` waits up to max_wait seconds
    for the reservations that the reply is about, and updates the decoded reply in place.
    """

    response: type[Message]
    encode: Callable[[Change, int], bytes]
    settle: Callable[[Waiting, Any, Any, float, Context], Awaitable[None]]


def _encode_added_item(change: Change, now: int) -> bytes:
    cart, (line,) = change.cart, change.lines
    response = pb.AddItemResponse(
        item=item_message(line, cart.currency_code, now), etag=cart.etag, revision=cart.revision
    )
    if replaced := change.find_replaced_price(line):
        response.previous_unit_price.CopyFrom(money_message(replaced))
    return serialize(response)


def _encode_item(
    response: type[pb.UpdateItemResponse | pb.RetryReservationResponse],
) -> Callable[[Change, int], bytes]:
    def encode(change: Change, now: int) -> bytes:
        cart = change.cart
        item = item_message(change.lines[0], cart.currency_code, now)
        return serialize(response(item=item, etag=cart.etag, revision=cart.revision))

    return encode


def _encode_items(change: Change, now: int) -> bytes:
    cart = change.cart
    items = [item_message(line, cart.currency_code, now) for line in change.lines]
    return serialize(
        pb.BatchAddItemsResponse(
            items=items, etag=cart.etag, revision=cart.revision, price_changes=_price_changes(change)
        )
    )


def _encode_removal(change: Change, now: int) -> bytes:
    cart, (item,) = change.cart, _removed_items(change, now)
    return serialize(
        pb.RemoveItemResponse(etag=cart.etag, revision=cart.revision, reconciling=_is_reconciling(change), item=item)
    )


def _encode_cart(
    response: type[pb.CreateCartResponse | pb.UpdateCartResponse],
) -> Callable[[Change, int], bytes]:
    def encode(change: Change, now: int) -> bytes:
        return serialize(response(cart=_changed_cart(change, now)))

    return encode


def _encode_emptied_cart(
    response: type[pb.ClearCartResponse | pb.DeleteCartResponse],
) -> Callable[[Change, int], bytes]:
    def encode(change: Change, now: int) -> bytes:
        return serialize(response(cart=_changed_cart(change, now), removed_items=_removed_items(change, now)))

    return encode


def _encode_replaced_items(change: Change, now: int) -> bytes:
    return serialize(
        pb.ReplaceItemsResponse(
            cart=_changed_cart(change, now),
            removed_items=_removed_items(change, now),
            price_changes=_price_changes(change),
        )
    )


def _encode_merged_carts(change: Change, now: int) -> bytes:
    adjustments = [
        pb.MergeAdjustment(
            type=pb.MergeAdjustment.Type.ValueType(each.type),
            source_item=_source_item(each, change.cart.key.user, now),
            item=each.item_name,
            quantity=each.quantity,
            quota=each.quota,
            lost_unit_price=money_message(each.lost_price) if each.lost_price else None,
        )
        for each in change.adjustments
    ]
    return serialize(pb.MergeCartsResponse(cart=_changed_cart(change, now), adjustments=adjustments))


def _source_item(adjustment: Adjustment, user: UserKey, now: int) -> cart_pb2.Item:
    """The item as it was in the source. The reply may outlive the source's user, so it does not name another user."""
    item = item_message(adjustment.line, adjustment.currency_code, now)
    if adjustment.line.item.cart.user != user:
        item.name = ""
    return item


def _changed_cart(change: Change, now: int) -> cart_pb2.Cart:
    return cart_message(change.cart, change.lines, now, reconciling=_is_reconciling(change))


def _removed_items(change: Change, now: int) -> list[cart_pb2.Item]:
    """The removed items as they were before the call, also their reservations."""
    before = (change.before[line.item.item_id] for line in change.removed)
    return [item_message(line, change.currency_before, now) for line in before]


def _price_changes(change: Change) -> list[pb.PriceChange]:
    return [
        pb.PriceChange(item=line.item.name, previous_unit_price=money_message(replaced))
        for line in change.lines
        if (replaced := change.find_replaced_price(line))
    ]


def _is_reconciling(change: Change) -> bool:
    return bool(change.releasing) or any(line.reservation.reconciling for line in (*change.lines, *change.removed))


async def _settle_item(waiting: Waiting, call: Call, response: Any, max_wait: float, context: Context) -> None:
    await waiting.await_items(call.cart, [response.item], max_wait, context)


async def _settle_items(waiting: Waiting, call: Call, response: Any, max_wait: float, context: Context) -> None:
    await waiting.await_items(call.cart, response.items, max_wait, context)


async def _settle_removal(waiting: Waiting, call: RemoveItem, response: Any, max_wait: float, context: Context) -> None:
    response.reconciling = await waiting.await_release(call.cart, call.item_id, max_wait, context)


async def _settle_emptied_cart(
    waiting: Waiting, call: ClearCart | DeleteCart, response: Any, max_wait: float, context: Context
) -> None:
    response.cart.reconciling = await waiting.await_release(call.cart, None, max_wait, context)


async def _settle_cart(waiting: Waiting, call: Call, response: Any, max_wait: float, context: Context) -> None:
    await waiting.await_cart(call.cart, response.cart, max_wait, context)


async def _settle_cart_and_releases(
    waiting: Waiting, call: Call, response: Any, max_wait: float, context: Context
) -> None:
    await waiting.await_cart(call.cart, response.cart, max_wait, context, and_releases=True)


async def _settle_nothing(*_: object) -> None:
    """Wait for nothing: a new cart has no reservations."""


ADD_ITEM = MutationReply(pb.AddItemResponse, _encode_added_item, _settle_item)
BATCH_ADD_ITEMS = MutationReply(pb.BatchAddItemsResponse, _encode_items, _settle_items)
UPDATE_ITEM = MutationReply(pb.UpdateItemResponse, _encode_item(pb.UpdateItemResponse), _settle_item)
REMOVE_ITEM = MutationReply(pb.RemoveItemResponse, _encode_removal, _settle_removal)
CLEAR_CART = MutationReply(pb.ClearCartResponse, _encode_emptied_cart(pb.ClearCartResponse), _settle_emptied_cart)
DELETE_CART = MutationReply(pb.DeleteCartResponse, _encode_emptied_cart(pb.DeleteCartResponse), _settle_emptied_cart)
CREATE_CART = MutationReply(pb.CreateCartResponse, _encode_cart(pb.CreateCartResponse), _settle_nothing)
UPDATE_CART = MutationReply(pb.UpdateCartResponse, _encode_cart(pb.UpdateCartResponse), _settle_cart)
RETRY_RESERVATION = MutationReply(pb.RetryReservationResponse, _encode_item(pb.RetryReservationResponse), _settle_item)
REPLACE_ITEMS = MutationReply(pb.ReplaceItemsResponse, _encode_replaced_items, _settle_cart_and_releases)
MERGE_CARTS = MutationReply(pb.MergeCartsResponse, _encode_merged_carts, _settle_cart_and_releases)
