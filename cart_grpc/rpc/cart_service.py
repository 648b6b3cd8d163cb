"""`cartgrpc.v1.CartService`: decode, call, encode."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from cartgrpc.v1 import cart_service_pb2 as pb

from cart_grpc.carts.calls import Call, Limits
from cart_grpc.commands.mutation import Mutation
from cart_grpc.rpc import mutation_replies as replies
from cart_grpc.rpc import pages, requests
from cart_grpc.rpc.checkout_calls import CheckoutCalls
from cart_grpc.rpc.get_cart_cache import GetCartCache
from cart_grpc.rpc.messages import cart_message
from cart_grpc.rpc.mutation_replies import MutationReply
from cart_grpc.rpc.waiting import Waiting
from cart_grpc.rpc.watching import watch_cart
from cart_grpc.store.store import Store
from cart_grpc.tracing import find_sampled

Context = grpc.aio.ServicerContext[Any, Any]
# A response, or its bytes if those exist already: the pipeline sends them as they are.
MessageOrBytes: TypeAlias = Any


class CartService(CheckoutCalls):
    """Carts and their items in `store`, within `limits`. The methods about checkouts are in CheckoutCalls.

    `park` is called before a call waits. It returns whether there is room to wait.
    """

    def __init__(self, store: Store, limits: Limits, park: Callable[[], bool] = lambda: True) -> None:
        super().__init__(store, limits, Waiting(store, park))
        self._get_cart_cache = GetCartCache(store.reads)

    async def AddItem(self, request: pb.AddItemRequest, context: Context) -> MessageOrBytes:
        call = requests.add_item(request, self._limits)
        return await self._mutate(call, replies.ADD_ITEM, request, context)

    async def BatchAddItems(self, request: pb.BatchAddItemsRequest, context: Context) -> MessageOrBytes:
        call = requests.batch_add_items(request, self._limits)
        return await self._mutate(call, replies.BATCH_ADD_ITEMS, request, context)

    async def UpdateItem(self, request: pb.UpdateItemRequest, context: Context) -> MessageOrBytes:
        call = requests.update_item(request, self._limits)
        return await self._mutate(call, replies.UPDATE_ITEM, request, context)

    async def RemoveItem(self, request: pb.RemoveItemRequest, context: Context) -> MessageOrBytes:
        call = requests.remove_item(request)
        return await self._mutate(call, replies.REMOVE_ITEM, request, context)

    async def ClearCart(self, request: pb.ClearCartRequest, context: Context) -> MessageOrBytes:
        call = requests.clear_cart(request)
        return await self._mutate(call, replies.CLEAR_CART, request, context)

    async def DeleteCart(self, request: pb.DeleteCartRequest, context: Context) -> MessageOrBytes:
        call = requests.delete_cart(request)
        return await self._mutate(call, replies.DELETE_CART, request, context)

    async def CreateCart(self, request: pb.CreateCartRequest, context: Context) -> MessageOrBytes:
        call = requests.create_cart(request, self._limits)
        return await self._mutate(call, replies.CREATE_CART, request, context)

    async def UpdateCart(self, request: pb.UpdateCartRequest, context: Context) -> MessageOrBytes:
        call = requests.update_cart(request, self._limits)
        return await self._mutate(call, replies.UPDATE_CART, request, context)

    async def RetryReservation(self, request: pb.RetryReservationRequest, context: Context) -> MessageOrBytes:
        call = requests.retry_reservation(request)
        return await self._mutate(call, replies.RETRY_RESERVATION, request, context)

    async def ReplaceItems(self, request: pb.ReplaceItemsRequest, context: Context) -> MessageOrBytes:
        call = requests.replace_items(request, self._limits)
        return await self._mutate(call, replies.REPLACE_ITEMS, request, context)

    async def MergeCarts(self, request: pb.MergeCartsRequest, context: Context) -> MessageOrBytes:
        call = requests.merge_carts(request)
        return await self._mutate(call, replies.MERGE_CARTS, request, context)

    async def _mutate(self, call: Call, reply: MutationReply, request: Any, context: Context) -> MessageOrBytes:
        encoded = await self._store.mutate(Mutation(call, reply.encode, self._limits, find_sampled()))
        max_wait = requests.max_wait_seconds(request)
        if not max_wait:
            return encoded
        response = reply.response.FromString(encoded)
        await reply.settle(self._waiting, call, response, max_wait, context)
        return response

    async def GetCart(self, request: pb.GetCartRequest, context: Context) -> MessageOrBytes:
        return await self._get_cart_cache.get_reply(requests.get_cart(request))

    async def ListCarts(self, request: pb.ListCartsRequest, context: Context) -> pb.ListCartsResponse:
        page = pages.list_carts(request)
        found = await self._store.reads.list_carts(page)
        carts = [cart_message(one.cart, (), one.now, reconciling=one.reconciling) for one in found]
        shown = pages.fitting(carts, page.size)
        response = pb.ListCartsResponse(carts=shown)
        if len(found) > len(shown):
            response.next_page_token = pages.next_page_token(page, found[len(shown) - 1].cart)
        return response

    async def WatchCart(self, request: pb.WatchCartRequest, context: Context) -> AsyncIterator[MessageOrBytes]:
        async with aclosing(watch_cart(self._store.watches, requests.watch_cart(request))) as messages:
            async for message in messages:
                yield message
