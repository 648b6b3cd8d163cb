"""The replies to mutations: for each method, how to encode its reply and which part of it max_wait waits for."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import grpc
from cartgrpc.v1 import cart_service_pb2 as pb
from google.protobuf.message import Message

from cart_grpc.carts.calls import Call, Change, ClearCart, DeleteCart, RemoveItem
from cart_grpc.rpc.messages import cart_message, item_message
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


def _encode_item(
    response: type[pb.AddItemResponse | pb.UpdateItemResponse | pb.RetryReservationResponse],
) -> Callable[[Change, int], bytes]:
    def encode(change: Change, now: int) -> bytes:
        cart = change.cart
        item = item_message(change.lines[0], cart.currency_code, now)
        return _bytes(response(item=item, etag=cart.etag, revision=cart.revision))

    return encode


def _encode_items(change: Change, now: int) -> bytes:
    cart = change.cart
    items = [item_message(line, cart.currency_code, now) for line in change.lines]
    return _bytes(pb.BatchAddItemsResponse(items=items, etag=cart.etag, revision=cart.revision))


def _encode_removal(change: Change, _: int) -> bytes:
    cart = change.cart
    return _bytes(pb.RemoveItemResponse(etag=cart.etag, revision=cart.revision, reconciling=_is_reconciling(change)))


def _encode_cart(
    response: type[pb.ClearCartResponse | pb.CreateCartResponse | pb.DeleteCartResponse | pb.UpdateCartResponse],
) -> Callable[[Change, int], bytes]:
    def encode(change: Change, now: int) -> bytes:
        return _bytes(response(cart=cart_message(change.cart, change.lines, now, reconciling=_is_reconciling(change))))

    return encode


def _is_reconciling(change: Change) -> bool:
    return bool(change.releasing) or any(line.reservation.reconciling for line in (*change.lines, *change.removed))


def _bytes(message: Message) -> bytes:
    # Maps in the order of their keys, so that equal replies have equal bytes.
    return message.SerializeToString(deterministic=True)


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


async def _settle_nothing(*_: object) -> None:
    """Wait for nothing: a new cart has no reservations."""


ADD_ITEM = MutationReply(pb.AddItemResponse, _encode_item(pb.AddItemResponse), _settle_item)
BATCH_ADD_ITEMS = MutationReply(pb.BatchAddItemsResponse, _encode_items, _settle_items)
UPDATE_ITEM = MutationReply(pb.UpdateItemResponse, _encode_item(pb.UpdateItemResponse), _settle_item)
REMOVE_ITEM = MutationReply(pb.RemoveItemResponse, _encode_removal, _settle_removal)
CLEAR_CART = MutationReply(pb.ClearCartResponse, _encode_cart(pb.ClearCartResponse), _settle_emptied_cart)
DELETE_CART = MutationReply(pb.DeleteCartResponse, _encode_cart(pb.DeleteCartResponse), _settle_emptied_cart)
CREATE_CART = MutationReply(pb.CreateCartResponse, _encode_cart(pb.CreateCartResponse), _settle_nothing)
UPDATE_CART = MutationReply(pb.UpdateCartResponse, _encode_cart(pb.UpdateCartResponse), _settle_cart)
RETRY_RESERVATION = MutationReply(pb.RetryReservationResponse, _encode_item(pb.RetryReservationResponse), _settle_item)
