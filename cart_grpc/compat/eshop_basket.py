"""eShop's Basket: the caller's token names the user, and a product's number is its sku."""

import re
from collections.abc import Sequence
from typing import Any, Final

import grpc
from cartgrpc.compat import eshop_pb2, eshop_pb2_grpc

from cart_grpc.authentication.refusals import TokenMissing
from cart_grpc.carts.calls import Addition, Change, Limits, ReplaceItems, addition
from cart_grpc.carts.model import Line
from cart_grpc.compat.user_carts import CART_ID, UserCarts
from cart_grpc.names import CartKey, cart_key, user_key
from cart_grpc.rpc.access import CALLER
from cart_grpc.rpc.fields import Fields

Context = grpc.aio.ServicerContext[Any, Any]
_PRODUCT_ID: Final = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)
_MAX_INT32: Final = 2**31 - 1


class EshopBasket(eshop_pb2_grpc.BasketServicer):
    """`BasketApi.Basket`."""

    def __init__(self, carts: UserCarts) -> None:
        self._carts = carts

    async def GetBasket(self, request: eshop_pb2.GetBasketRequest, context: Context) -> Any:
        if not CALLER.get().user_id:
            return b""
        return _basket(await self._carts.lines(_own_cart()))

    async def UpdateBasket(self, request: eshop_pb2.UpdateBasketRequest, context: Context) -> Any:
        key = _own_cart()
        return await self._carts.change(ReplaceItems(key, _additions(request, self._carts.limits)), _encode_basket)

    async def DeleteBasket(self, request: eshop_pb2.DeleteBasketRequest, context: Context) -> Any:
        return await self._carts.clear(_own_cart())


def _own_cart() -> CartKey:
    """Return the caller's cart. Raises TokenMissing if the caller is no user."""
    user_id = CALLER.get().user_id
    if not user_id:
        raise TokenMissing
    # The user id of a token has been checked.
    return cart_key(user_key(user_id), CART_ID)


def _additions(request: eshop_pb2.UpdateBasketRequest, limits: Limits) -> Sequence[Addition]:
    """Raises InvalidArgument."""
    fields = Fields()
    if (count := len(request.items)) > limits.max_items_per_cart:
        fields.fault("items", "OUT_OF_RANGE", f"must have up to {limits.max_items_per_cart} entries, not {count}")
        fields.check()
    additions = []
    for index, item in enumerate(request.items):
        if item.product_id < 1:
            fields.fault(f"items[{index}].product_id", "OUT_OF_RANGE", f"must be 1 or more, not {item.product_id}")
        quantity = fields.quantity(f"items[{index}].quantity", item.quantity, limits.max_quantity_per_item)
        additions.append(addition(str(item.product_id), {}, quantity, None, None))
    fields.check()
    return additions


def _encode_basket(change: Change, _: int) -> bytes:
    return _basket(change.lines).SerializeToString()


def _basket(lines: Sequence[Line]) -> eshop_pb2.CustomerBasketResponse:
    """The lines whose sku is a product's number. Others cannot be expressed."""
    return eshop_pb2.CustomerBasketResponse(
        items=[
            eshop_pb2.BasketItem(product_id=int(line.item.sku), quantity=line.item.quantity)
            for line in lines
            if _PRODUCT_ID.fullmatch(line.item.sku) and int(line.item.sku) <= _MAX_INT32
        ]
    )
