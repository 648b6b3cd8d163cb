"""Waits for changes of checkouts.

A commit of this process that changes a checkout, or one of its reservations, publishes the checkout's cart. That wakes
the calls that wait. On a database that other processes write to, they also poll. A poll reads one row.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, TypeAlias

from cart_grpc.carts.refusals import DatabaseUnavailable
from cart_grpc.names import CartKey, CheckoutKey
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.read.checkout_reads import CheckoutReads, CheckoutSummary

IsUnsettled: TypeAlias = Callable[[CheckoutSummary], bool]
# The interval doubles from the first value to the last: a change is most likely right after a call.
FIRST_POLL_SECONDS: Final = 0.1
LAST_POLL_SECONDS: Final = 1.0


class CheckoutWatches:
    """The checkouts that calls of one process wait for. `polls`: other processes write to the same database."""

    def __init__(self, reads: CheckoutReads, notifier: ChangeNotifier, *, polls: bool) -> None:
        self._reads = reads
        self._notifier = notifier
        self._polls = polls
        # In the order of their arrival, in which they are also woken.
        self._waiting: dict[CartKey, list[asyncio.Event]] = {}
        notifier.subscribe(self._on_change, self._on_close)

    async def wait_while(self, is_unsettled: IsUnsettled, key: CheckoutKey, cart: CartKey, seconds: float) -> None:
        """Wait for the checkout `key` of `cart`.

        Returns once it is settled, does not exist, `seconds` have passed, or the process begins to stop.
        """
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
        delay = FIRST_POLL_SECONDS
        while not self._notifier.closed:
            # Before the read: a change during the read may not be in its answer.
            news.clear()
            # The change is made, so a database that is away for a moment must not end the call with an error.
            with suppress(DatabaseUnavailable):
                found = await self._reads.find_summary(key)
                if found is None or not is_unsettled(found):
                    return
            with suppress(TimeoutError):
                async with asyncio.timeout(delay if self._polls else LAST_POLL_SECONDS):
                    await news.wait()
            delay = min(2 * delay, LAST_POLL_SECONDS)

    def _on_change(self, changed: Iterable[CartKey]) -> None:
        if self._waiting:
            for key in changed:
                for news in self._waiting.get(key, ()):
                    news.set()

    def _on_close(self) -> None:
        for waiting in self._waiting.values():
            for news in waiting:
                news.set()
