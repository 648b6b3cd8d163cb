"""`max_wait`: hold a reply back until the reservations in it have settled."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from cartgrpc.v1 import cart_pb2

from cart_grpc.carts.refusals import DatabaseUnavailable
from cart_grpc.names import CartKey, CheckoutKey
from cart_grpc.rpc.call_log import in_max_wait
from cart_grpc.rpc.messages import item_message
from cart_grpc.store.read.checkout_reads import CheckoutSnapshot
from cart_grpc.store.read.checkout_watches import IsUnsettled
from cart_grpc.store.read.snapshot import Snapshot, parse_snapshot
from cart_grpc.store.store import Store

Context = grpc.aio.ServicerContext[Any, Any]
# This much of the caller's deadline is kept for the last read and the reply.
_ANSWER_SECONDS = 0.1


class Waiting:
    """Lets calls wait for the reservations of their carts in `store`.

    `park` is called before a call waits, and returns whether the call may wait. If it may not, the reply shows the
    current state.
    """

    def __init__(self, store: Store, park: Callable[[], bool] = lambda: True) -> None:
        self._store = store
        self._park = park

    async def await_items(
        self, cart: CartKey, items: Sequence[cart_pb2.Item], max_wait: float, context: Context
    ) -> None:
        """Wait up to `max_wait` seconds for the items' reservations to settle, and update `items` in place.

        An item that another call has removed is neither waited for nor updated.

        Raises Overloaded or DatabaseUnavailable.
        """
        if max_wait:
            await self._await_items(cart, items, max_wait, context)

    async def await_cart(
        self,
        cart: CartKey,
        message: cart_pb2.Cart,
        max_wait: float,
        context: Context,
        *,
        and_releases: bool = False,
    ) -> None:
        """Wait as `await_items` does, for all items of a cart. Also update the `reconciling` of the cart.

        `and_releases`: wait until every removed item of the cart is released, too.
        """
        if max_wait:
            found = await self._await_items(cart, message.items, max_wait, context, and_releases=and_releases)
            releasing = found is not None and found.is_releasing(None)
            message.reconciling = releasing or any(item.reconciling for item in message.items)

    async def await_release(self, cart: CartKey, item_id: str | None, max_wait: float, context: Context) -> bool:
        """Wait up to `max_wait` seconds until the removed item `item_id`, or every removed item if None, is released.

        Return whether a release is still not confirmed. Raises Overloaded or DatabaseUnavailable.
        """

        def is_releasing(found: Snapshot | None) -> bool:
            return found is not None and found.is_releasing(item_id)

        return is_releasing(await self._wait_while(is_releasing, cart, max_wait, context))

    async def await_checkout(
        self, key: CheckoutKey, cart: CartKey, is_unsettled: IsUnsettled, max_wait: float, context: Context
    ) -> CheckoutSnapshot | None:
        """Wait up to `max_wait` seconds while the checkout `key` of `cart` is unsettled. Return its state then.

        None if it cannot be read: the caller then gets the reply of its change, which is made.
        """
        if seconds := self._bounded(max_wait, context):
            with in_max_wait():
                await self._store.checkout_watches.wait_while(is_unsettled, key, cart, seconds)
        try:
            return await self._store.checkout_reads.find(key)
        except DatabaseUnavailable:
            return None

    async def _await_items(
        self,
        cart: CartKey,
        items: Sequence[cart_pb2.Item],
        max_wait: float,
        context: Context,
        *,
        and_releases: bool = False,
    ) -> Snapshot | None:
        by_uid = {item.uid: item for item in items}

        def is_reconciling(found: Snapshot | None) -> bool:
            if found is None:
                return False
            is_unsettled = and_releases and found.is_releasing(None)
            for line in found.lines:
                if item := by_uid.get(line.item.uid):
                    current = item_message(line, found.cart.currency_code, found.now)
                    item.reservation.CopyFrom(current.reservation)
                    item.reconciling = current.reconciling
                    is_unsettled = is_unsettled or item.reconciling
            return is_unsettled

        found = await self._wait_while(is_reconciling, cart, max_wait, context)
        is_reconciling(found)
        return found

    async def _wait_while(
        self, is_unsettled: Callable[[Snapshot | None], bool], cart: CartKey, max_wait: float, context: Context
    ) -> Snapshot | None:
        """Return the cart's first settled state, or its state at the end of the wait. A process stop ends the wait."""
        seconds = self._bounded(max_wait, context)
        with self._store.watches.watch(cart, parse_snapshot) as states:
            found = await anext(states)
            if not seconds:
                return found
            try:
                with in_max_wait():
                    async with asyncio.timeout(seconds):
                        while is_unsettled(found):
                            found = await anext(states)
            except (TimeoutError, StopAsyncIteration):
                # An attempt without an answer changes the reservation's message, but does not wake watchers: read it
                # now.
                found = await self._store.reads.find_cart(cart)
        return found

    def _bounded(self, max_wait: float, context: Context) -> float:
        """The seconds to wait: max_wait, but not past the caller's deadline; 0 if the call may not be parked."""
        if not self._park():
            return 0.0
        remaining = context.time_remaining()
        if remaining is None:
            return max_wait
        return max(0.0, min(max_wait, remaining - _ANSWER_SECONDS))
