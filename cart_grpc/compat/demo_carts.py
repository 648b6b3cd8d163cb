"""The CartService of OpenTelemetry's demo and of Online Boutique: the same messages in two packages."""

from typing import Any

import grpc

from cart_grpc.carts.calls import AddItems, addition
from cart_grpc.compat.user_carts import UserCarts, cart_of
from cart_grpc.rpc.fields import MAX_SKU, Fields

Context = grpc.aio.ServicerContext[Any, Any]


class DemoCarts:
    """`CartService` with the messages of one demo, whose generated module is `messages`."""

    def __init__(self, carts: UserCarts, messages: Any) -> None:
        self._carts = carts
        self._messages = messages

    async def AddItem(self, request: Any, context: Context) -> bytes:
        return await self._carts.change(_add_item(request, self._carts.limits.max_quantity_per_add))

    async def GetCart(self, request: Any, context: Context) -> Any:
        # A load generator does that. As in the demos, an empty cart names no user.
        if not request.user_id:
            return b""
        fields = Fields()
        key = cart_of(fields, "user_id", request.user_id)
        fields.check()
        lines = await self._carts.lines(key)
        items = [self._messages.CartItem(product_id=line.item.sku, quantity=line.item.quantity) for line in lines]
        return self._messages.Cart(user_id=request.user_id, items=items) if items else b""

    async def EmptyCart(self, request: Any, context: Context) -> Any:
        if not request.user_id:
            return b""
        fields = Fields()
        key = cart_of(fields, "user_id", request.user_id)
        fields.check()
        return await self._carts.clear(key)


def _add_item(request: Any, most: int) -> AddItems:
    """Raises InvalidArgument."""
    fields = Fields()
    key = cart_of(fields, "user_id", request.user_id)
    sku = fields.text("item.product_id", request.item.product_id, MAX_SKU, least=1)
    quantity = fields.quantity("item.quantity", request.item.quantity, most)
    fields.check()
    return AddItems(key, (addition(sku, {}, quantity, None, None),))
