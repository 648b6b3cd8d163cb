"""`cartgrpc.v1.CartService`: decode, call, encode."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import grpc
from cartgrpc.v1 import cart_service_pb2, cart_service_pb2_grpc
from google.protobuf.message import Message

from cart_grpc.carts import rules
from cart_grpc.carts.calls import Change, Limits, LoadedCart, NewId
from cart_grpc.commands.mutation import Mutation
from cart_grpc.names import CartKey
from cart_grpc.rpc import pages, requests
from cart_grpc.rpc.get_cart_cache import GetCartCache
from cart_grpc.rpc.messages import cart_message, item_message
from cart_grpc.rpc.requests import Options
from cart_grpc.rpc.waiting import Waiting
from cart_grpc.store.store import Store

Context = grpc.aio.ServicerContext[Any, Any]
# A response, or its bytes where they are at hand already: the guard passes them on as they are.
Encoded: TypeAlias = Any
Rule = Callable[[LoadedCart, int, NewId], Change]


class CartService(cart_service_pb2_grpc.CartServiceServicer):
    """Carts and their items, in `store`, by the rules and within the limits of `limits`.

    `rest` is told when a call is about to wait, and says whether there is room to.
    """

    def __init__(self, store: Store, limits: Limits, rest: Callable[[], bool] = lambda: True) -> None:
        self._store = store
        self._limits = limits
        self._waiting = Waiting(store, rest)
        self._get_cart_cache = GetCartCache(store.reads)

    async def AddItem(self, request: cart_service_pb2.AddItemRequest, context: Context) -> Encoded:
        call = requests.add_item(request, self._limits)
        reply = await self._add(call, _ENCODE_ADDED)
        if not call.options.max_wait:
            return reply
        response = cart_service_pb2.AddItemResponse.FromString(reply)
        await self._waiting.await_items(call.cart, [response.item], call.options.max_wait, context)
        return response

    async def BatchAddItems(
        self, request: cart_service_pb2.BatchAddItemsRequest, context: Context
    ) -> cart_service_pb2.BatchAddItemsResponse:
        call = requests.batch_add_items(request, self._limits)
        response = cart_service_pb2.BatchAddItemsResponse.FromString(await self._add(call, _encode_items))
        await self._waiting.await_items(call.cart, response.items, call.options.max_wait, context)
        return response

    async def _add(self, call: requests.AddItems, encode: Callable[[Change, int], bytes]) -> bytes:
        item_ids = [one.item_id for one in call.additions]
        skus = [one.sku for one in call.additions]
        return await self._mutate(
            call.cart,
            lambda contents, now, new_id: rules.add_items(
                contents, call.additions, call.options.etag, self._limits, now, new_id
            ),
            encode,
            call.options,
            item_ids,
            skus,
        )

    async def UpdateItem(
        self, request: cart_service_pb2.UpdateItemRequest, context: Context
    ) -> cart_service_pb2.UpdateItemResponse:
        call = requests.update_item(request, self._limits)
        reply = await self._mutate(
            call.cart,
            lambda contents, now, new_id: rules.update_item(
                contents, call.item_id, call.update, call.options.etag, self._limits, now, new_id
            ),
            _encode_item(cart_service_pb2.UpdateItemResponse),
            call.options,
            [call.item_id],
        )
        response = cart_service_pb2.UpdateItemResponse.FromString(reply)
        await self._waiting.await_items(call.cart, [response.item], call.options.max_wait, context)
        return response

    async def RemoveItem(
        self, request: cart_service_pb2.RemoveItemRequest, context: Context
    ) -> cart_service_pb2.RemoveItemResponse:
        call = requests.named_item(request)
        reply = await self._mutate(
            call.cart,
            lambda contents, now, _: rules.remove_item(contents, call.item_id, call.options.etag, now),
            _encode_removal,
            call.options,
            [call.item_id],
        )
        response = cart_service_pb2.RemoveItemResponse.FromString(reply)
        if call.options.max_wait:
            response.reconciling = await self._waiting.await_release(
                call.cart, call.item_id, call.options.max_wait, context
            )
        return response

    async def ClearCart(
        self, request: cart_service_pb2.ClearCartRequest, context: Context
    ) -> cart_service_pb2.ClearCartResponse:
        call = requests.named_cart(request)
        reply = await self._mutate(
            call.cart,
            lambda contents, now, _: rules.clear_cart(contents, call.options.etag, now),
            _encode_cart(cart_service_pb2.ClearCartResponse),
            call.options,
        )
        response = cart_service_pb2.ClearCartResponse.FromString(reply)
        if call.options.max_wait:
            response.cart.reconciling = await self._waiting.await_release(
                call.cart, None, call.options.max_wait, context
            )
        return response

    async def DeleteCart(
        self, request: cart_service_pb2.DeleteCartRequest, context: Context
    ) -> cart_service_pb2.DeleteCartResponse:
        call = requests.named_cart(request)
        reply = await self._mutate(
            call.cart,
            lambda contents, now, _: rules.delete_cart(contents, call.options.etag, now),
            _encode_cart(cart_service_pb2.DeleteCartResponse),
            call.options,
        )
        response = cart_service_pb2.DeleteCartResponse.FromString(reply)
        if call.options.max_wait:
            response.cart.reconciling = await self._waiting.await_release(
                call.cart, None, call.options.max_wait, context
            )
        return response

    async def CreateCart(
        self, request: cart_service_pb2.CreateCartRequest, context: Context
    ) -> cart_service_pb2.CreateCartResponse:
        call = requests.create_cart(request, self._limits)
        reply = await self._mutate(
            call.cart,
            lambda contents, now, new_id: rules.create_cart(contents, call.update, call.options.etag, now, new_id),
            _encode_cart(cart_service_pb2.CreateCartResponse),
            call.options,
        )
        return cart_service_pb2.CreateCartResponse.FromString(reply)

    async def UpdateCart(
        self, request: cart_service_pb2.UpdateCartRequest, context: Context
    ) -> cart_service_pb2.UpdateCartResponse:
        call = requests.update_cart(request, self._limits)
        reply = await self._mutate(
            call.cart,
            lambda contents, now, _: rules.update_cart(contents, call.update, call.options.etag, now),
            _encode_cart(cart_service_pb2.UpdateCartResponse),
            call.options,
        )
        response = cart_service_pb2.UpdateCartResponse.FromString(reply)
        await self._waiting.await_cart(call.cart, response.cart, call.options.max_wait, context)
        return response

    async def RetryReservation(
        self, request: cart_service_pb2.RetryReservationRequest, context: Context
    ) -> cart_service_pb2.RetryReservationResponse:
        call = requests.named_item(request)
        reply = await self._mutate(
            call.cart,
            lambda contents, now, new_id: rules.retry_reservation(
                contents, call.item_id, call.options.etag, self._limits, now, new_id
            ),
            _encode_item(cart_service_pb2.RetryReservationResponse),
            call.options,
            [call.item_id],
        )
        response = cart_service_pb2.RetryReservationResponse.FromString(reply)
        await self._waiting.await_items(call.cart, [response.item], call.options.max_wait, context)
        return response

    async def GetCart(  # type: ignore[override]  # the reply's bytes: see `get_cart_cache`
        self, request: cart_service_pb2.GetCartRequest, context: Context
    ) -> bytes:
        return await self._get_cart_cache.get_reply(requests.get_cart(request))

    async def ListCarts(
        self, request: cart_service_pb2.ListCartsRequest, context: Context
    ) -> cart_service_pb2.ListCartsResponse:
        page = pages.list_carts(request)
        found = await self._store.reads.list_carts(page)
        response = cart_service_pb2.ListCartsResponse(
            carts=[cart_message(one.cart, (), one.now, reconciling=one.reconciling) for one in found[: page.size]]
        )
        if len(found) > page.size:
            response.next_page_token = pages.next_page_token(page, found[page.size - 1].cart)
        return response

    async def _mutate(
        self,
        cart: CartKey,
        rule: Rule,
        encode: Callable[[Change, int], bytes],
        options: Options,
        item_ids: Sequence[str] | None = None,
        skus: Sequence[str] = (),
    ) -> bytes:
        return await self._store.mutate(
            Mutation(cart, rule, encode, item_ids, skus, options.request_id, options.fingerprint)
        )


def _encode_item(
    response: type[
        cart_service_pb2.AddItemResponse
        | cart_service_pb2.UpdateItemResponse
        | cart_service_pb2.RetryReservationResponse
    ],
) -> Callable[[Change, int], bytes]:
    def encode(change: Change, now: int) -> bytes:
        item = item_message(change.cart, change.lines[0], now)
        return _bytes(response(item=item, etag=change.cart.etag, revision=change.cart.revision))

    return encode


def _encode_items(change: Change, now: int) -> bytes:
    items = [item_message(change.cart, line, now) for line in change.lines]
    return _bytes(
        cart_service_pb2.BatchAddItemsResponse(items=items, etag=change.cart.etag, revision=change.cart.revision)
    )


def _encode_removal(change: Change, _: int) -> bytes:
    return _bytes(
        cart_service_pb2.RemoveItemResponse(
            etag=change.cart.etag, revision=change.cart.revision, reconciling=_is_reconciling(change)
        )
    )


def _encode_cart(
    response: type[
        cart_service_pb2.ClearCartResponse
        | cart_service_pb2.CreateCartResponse
        | cart_service_pb2.DeleteCartResponse
        | cart_service_pb2.UpdateCartResponse
    ],
) -> Callable[[Change, int], bytes]:
    def encode(change: Change, now: int) -> bytes:
        cart = cart_message(change.cart, change.lines, now, reconciling=_is_reconciling(change))
        return _bytes(response(cart=cart))

    return encode


def _is_reconciling(change: Change) -> bool:
    return bool(change.releasing) or any(line.reservation.reconciling for line in (*change.lines, *change.removed))


def _bytes(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


_ENCODE_ADDED = _encode_item(cart_service_pb2.AddItemResponse)
