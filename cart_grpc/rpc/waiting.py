"""max_wait: holding a reply back until the reservations that it tells of have settled."""

from collections.abc import Callable, Sequence
from typing import Any

import grpc
from cartgrpc.v1 import cart_pb2

from cart_grpc.names import CartKey
from cart_grpc.rpc.messages import item_message
from cart_grpc.store.store import Store

Context = grpc.aio.ServicerContext[Any, Any]
# Kept of the caller's deadline, to read once more and to answer.
_ANSWER_SECONDS = 0.1


class Waiting:
    """Waits for the reservations of carts in `store`.

    `rest` is called before a call waits. It returns whether there is room to wait; without room the reply shows the
    current state.
    """

    def __init__(self, store: Store, rest: Callable[[], bool] = lambda: True) -> None:
        self._store = store
        self._rest = rest

    async def await_items(
        self, cart: CartKey, items: Sequence[cart_pb2.Item], max_wait: float, context: Context
    ) -> None:
        """Wait up to `max_wait` seconds for the items' reservations to settle, and update `items` in place."""
        if not max_wait:
            return
        by_uid = {item.uid: item for item in items}
        async for _ in self._store.watch(cart, self._bounded(max_wait, context)):
            found = await self._store.reads.find_cart(cart)
            if found is None:
                return
            lines = [line for line in found.lines if line.item.uid in by_uid]
            for line in lines:
                seen = item_message(found.cart, line, found.now)
                by_uid[line.item.uid].reservation.CopyFrom(seen.reservation)
                by_uid[line.item.uid].reconciling = seen.reconciling
            if not any(item.reconciling for item in by_uid.values()):
                return

    async def await_release(self, cart: CartKey, item_id: str | None, max_wait: float, context: Context) -> bool:
        """Wait up to `max_wait` seconds for removed items to be released: one, or all of the cart's if None.

        Return whether a release is still not confirmed.
        """
        async for _ in self._store.watch(cart, self._bounded(max_wait, context)):
            if not await self._store.reads.is_releasing(cart, item_id):
                return False
        return True

    def _bounded(self, max_wait: float, context: Context) -> float:
        """How long to wait, in seconds: max_wait, but not past the caller's deadline."""
        if not self._rest():
            return 0.0
        remaining = context.time_remaining()
        if remaining is None:
            return max_wait
        return max(0.0, min(max_wait, remaining - _ANSWER_SECONDS))
