"""The methods of `cartgrpc.v1.CartService` about checkouts: decode, call, encode."""

from collections.abc import Callable
from typing import Any, TypeAlias

import grpc
from cartgrpc.v1 import cart_service_pb2 as pb
from cartgrpc.v1 import cart_service_pb2_grpc

from cart_grpc.carts.calls import Limits
from cart_grpc.carts.checkout_calls import BeginCheckout, CheckoutCall, CheckoutView
from cart_grpc.carts.checkout_refusals import CheckoutNotFound
from cart_grpc.carts.model import CheckoutState
from cart_grpc.commands.checkout import CheckoutMutation
from cart_grpc.names import find_cart, find_checkout
from cart_grpc.rpc import checkout_requests, pages
from cart_grpc.rpc.checkout_messages import checkout_message, snapshot_message, summary_message
from cart_grpc.rpc.messages import serialize
from cart_grpc.rpc.requests import max_wait_seconds
from cart_grpc.rpc.waiting import Waiting
from cart_grpc.store.read.checkout_reads import CheckoutSummary
from cart_grpc.store.read.checkout_watches import IsUnsettled
from cart_grpc.store.store import Store
from cart_grpc.tracing import find_sampled

Context = grpc.aio.ServicerContext[Any, Any]
Response: TypeAlias = type[pb.BeginCheckoutResponse | pb.CompleteCheckoutResponse | pb.CancelCheckoutResponse]
CallAboutCheckout: TypeAlias = BeginCheckout | CheckoutCall
MessageOrBytes: TypeAlias = Any


class CheckoutCalls(cart_service_pb2_grpc.CartServiceServicer):
    """The part of CartService that sells carts. `waiting` is for max_wait."""

    def __init__(self, store: Store, limits: Limits, waiting: Waiting) -> None:
        self._store = store
        self._limits = limits
        self._waiting = waiting

    async def BeginCheckout(self, request: pb.BeginCheckoutRequest, context: Context) -> MessageOrBytes:
        call = checkout_requests.begin_checkout(request)
        return await self._change(call, pb.BeginCheckoutResponse, _is_not_ready, request, context)

    async def CompleteCheckout(self, request: pb.CompleteCheckoutRequest, context: Context) -> MessageOrBytes:
        call = checkout_requests.complete_checkout(request)
        return await self._change(call, pb.CompleteCheckoutResponse, _is_completing, request, context)

    async def CancelCheckout(self, request: pb.CancelCheckoutRequest, context: Context) -> MessageOrBytes:
        call = checkout_requests.cancel_checkout(request)
        return await self._change(call, pb.CancelCheckoutResponse, _is_reconciling, request, context)

    async def GetCheckout(self, request: pb.GetCheckoutRequest, context: Context) -> pb.GetCheckoutResponse:
        key = checkout_requests.get_checkout(request)
        found = await self._store.checkout_reads.find(key)
        if found is None:
            raise CheckoutNotFound(key.name)
        return pb.GetCheckoutResponse(checkout=snapshot_message(found))

    async def ListCheckouts(self, request: pb.ListCheckoutsRequest, context: Context) -> pb.ListCheckoutsResponse:
        page = checkout_requests.list_checkouts(request)
        found = await self._store.checkout_reads.list_of_user(page)
        shown = pages.fitting([summary_message(one) for one in found], page.size)
        response = pb.ListCheckoutsResponse(checkouts=shown)
        if len(found) > len(shown):
            response.next_page_token = checkout_requests.next_page_token(page, found[len(shown) - 1].checkout)
        return response

    async def _change(
        self,
        call: CallAboutCheckout,
        response_type: Response,
        is_unsettled: IsUnsettled,
        request: Any,
        context: Context,
    ) -> MessageOrBytes:
        mutation = CheckoutMutation(call, _encode(response_type), self._limits, find_sampled())
        encoded = await self._store.mutate(mutation)
        max_wait = max_wait_seconds(request)
        if not max_wait:
            return encoded
        response = response_type.FromString(encoded)
        key, cart = find_checkout(response.checkout.name), find_cart(response.checkout.cart)
        found = key and cart and await self._waiting.await_checkout(key, cart, is_unsettled, max_wait, context)
        if found:
            response.checkout.CopyFrom(snapshot_message(found))
        return response


def _encode(response_type: Response) -> Callable[[CheckoutView, int], bytes]:
    def encode(view: CheckoutView, now: int) -> bytes:
        reconciling = any(line.reservation.reconciling for line in view.lines)
        message = checkout_message(view.checkout, view.lines, now, reconciling=reconciling)
        return serialize(response_type(checkout=message))

    return encode


def _is_not_ready(found: CheckoutSummary) -> bool:
    return found.checkout.state is CheckoutState.OPEN and not found.checkout.is_ready


def _is_completing(found: CheckoutSummary) -> bool:
    return found.checkout.state is CheckoutState.COMPLETING


def _is_reconciling(found: CheckoutSummary) -> bool:
    return found.reconciling
