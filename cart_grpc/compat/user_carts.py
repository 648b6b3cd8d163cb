"""The one cart of each user that the demos know: `users/{user}/carts/default`."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from cart_grpc.carts.calls import Call, Change, ClearCart, Limits
from cart_grpc.carts.model import Line
from cart_grpc.carts.refusals import CartClosed, CartNotFound
from cart_grpc.commands.mutation import Mutation
from cart_grpc.names import CartKey, cart_key, user_key
from cart_grpc.rpc.fields import Fields
from cart_grpc.store.store import Store
from cart_grpc.tracing import find_sampled

CART_ID: Final = "default"


def cart_of(fields: Fields, field: str, user_id: str) -> CartKey:
    """Return the key of a user's cart. A user id that is not valid is a fault of `field`."""
    return cart_key(user_key(fields.id(field, user_id)), CART_ID)


class UserCarts:
    """The demos' carts in `store`, within `limits`."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self.limits = limits
        self._store = store

    async def change(self, call: Call, encode: Callable[[Change, int], bytes] = lambda *_: b"") -> bytes:
        """Make a change, without waiting for reservations. Return the reply's bytes; by default, an empty message."""
        return await self._store.mutate(Mutation(call, encode, self.limits, find_sampled()))

    async def lines(self, key: CartKey) -> Sequence[Line]:
        """Return the lines of the cart, whatever their reservations' states are. An ended cart has none."""
        found = await self._store.reads.find_cart(key)
        return found.lines if found else ()

    async def clear(self, key: CartKey) -> Any:
        """Remove all items, and release their reservations. Nothing to remove is success."""
        try:
            return await self.change(ClearCart(key))
        except (CartNotFound, CartClosed):
            return b""
