"""Waits for changes of checkouts.

A commit of this process that changes a checkout, or one of its reservations, publishes the checkout's cart. That wakes
the calls that wait, and so does a hint of another process. They also look once a second, because a hint may be lost. A
look reads one row.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, TypeAlias

from cart_grpc.carts.refusals import DatabaseUnavailable
from cart_grpc.names import CartKey, CheckoutKey
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.engine import Hints
from cart_grpc.store.read.checkout_reads import CheckoutReads, CheckoutSummary

IsUnsettled: TypeAlias = Callable[[CheckoutSummary], bool]
LOOK_SECONDS: Final = 1.0


class CheckoutWatches:
    """The checkouts that calls of one process wait for.

    `hints` are those of other processes, if the database passes hints on.
    """

    def __init__(self, reads: CheckoutReads, notifier: ChangeNotifier, hints: Hints | None) -> None:
        self._reads = reads
        self._notifier = notifier
        self._hints = hints
        # In the order of their arrival, in which they are also woken.
        self._waiting: dict[CartKey, list[asyncio.Event]] = {}
        notifier.subscribe(self._on_change, self._wake_all)

    async def wait_while(self, is_unsettled: IsUnsettled, key: CheckoutKey, cart: CartKey, seconds: float) -> None:
        """Wait for the checkout `key` of `cart`.

        Returns once it is settled, does not exist, `seconds` have passed, or the process begins to stop.
        """
        if self._hints:
            self._hints.listen(self._on_change, self._wake_all)
        news = asyncio.Event()
        self._waiting.setdefault(cart, []).append(news)
        try:
            async with asyncio.timeout(seconds):
                await self._wait_while(is_unsettled, key, news)
        except TimeoutError:
            return
        finally:
            self._waiting[cart].remove(news)
            if not self._waiting[cart]:
                del self._waiting[cart]

    async def _wait_while(self, is_unsettled: IsUnsettled, key: CheckoutKey, news: asyncio.Event) -> None:
        while not self._notifier.closed:
            # Before the read: a change during the read may not be in its answer.
            news.clear()
            # The change is made, so a database that is away for a moment must not end the call with an error.
            with suppress(DatabaseUnavailable):
                found = await self._reads.find_summary(key)
                if found is None or not is_unsettled(found):
                    return
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await news.wait()

    def _on_change(self, changed: Iterable[CartKey]) -> None:
        if self._waiting:
            for key in changed:
                for news in self._waiting.get(key, ()):
                    news.set()

    def _wake_all(self) -> None:
        for waiting in self._waiting.values():
            for news in waiting:
                news.set()
