"""Watches of carts. `max_wait` and WatchCart get the states of a cart from a watch.

Each watched cart has one subscription per process, which all its watchers share. A hint of a change only makes the
subscription read the cart: watchers get states, not changes. The subscription reads the cart when a watcher arrives,
after each commit of this process that changed the cart, when another process hints at a change, and when a hold runs
out. On a database that other processes write to, one statement per second compares the revisions of all watched carts,
because a hint may be lost. The subscription sends its validator with each read, so for an unchanged cart the answer is
"not modified". A `max_wait` of 30 s for a hanging call reads the whole cart twice: at its beginning and at its end.
"""

import asyncio
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final

from cart_grpc.carts.refusals import DatabaseUnavailable, Overloaded
from cart_grpc.logs import events
from cart_grpc.names import CartKey
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.each_part import do_each
from cart_grpc.store.engine import Hints
from cart_grpc.store.failure_log import FailureLog
from cart_grpc.store.read.cache_validator import MAX_WATCH_AGE_US, CacheValidator, watch_validator
from cart_grpc.store.read.cart_json import CartJson, NotModified
from cart_grpc.store.read.grouped_reads import MAX_BATCH
from cart_grpc.store.read.reads import Reads
from cart_grpc.store.read.revision_check import MAX_CHECKED, NO_CART, Known, to_known
from cart_grpc.store.read.watch import Form, SharedState, T, Watch
from cart_grpc.units import to_seconds

CHECK_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 1.0
# After a lapse that the database's clock has not reached yet, ask again so soon.
LAPSE_SECONDS: Final = 0.1
_TICK_SECONDS: Final = 0.05


class _Subscription:
    """A watched cart: its watchers, those of them that have no state yet (`new`), and the version that was read last.

    `known` is None before the first read. The cart itself is not kept: see `SharedState`.
    """

    def __init__(self, key: CartKey) -> None:
        self.key = key
        # In the order of their arrival, in which they are also woken.
        self.watchers: dict[Watch[Any], None] = {}
        self.new: dict[Watch[Any], None] = {}
        self.timer: asyncio.TimerHandle | None = None
        self.known: Known | None = None
        self._digest = b""
        self._validator: CacheValidator | None = None
        self._era = 0
        # By the event loop's clock.
        self._lapse_time = math.inf
        self._stale_time = 0.0

    def validator(self, time: float, era: int) -> CacheValidator | None:
        """The validator for the next read. It is None, and the whole cart is read, for a watcher without a state.

        And every ten minutes, and in a new era.
        """
        is_valid = not self.new and time < self._stale_time and era == self._era
        return self._validator if is_valid else None

    def accept(self, found: CartJson | None, time: float, era: int) -> bool:
        """Record the cart that a read found, which began in `era`. Return whether its state is new."""
        self._era = era
        self._stale_time = time + to_seconds(MAX_WATCH_AGE_US)
        before, self._digest = self._digest, _digest(found)
        if found is None:
            self.known, self._validator, self._lapse_time = NO_CART, None, math.inf
        else:
            self.known = to_known(found.version)
            self._validator = watch_validator(found.version, found.next_lapse, found.now)
            self._lapse_time = time + to_seconds(self._validator.until - found.now)
        return before != self._digest

    def next_read(self, time: float) -> float:
        """The seconds until the next read, if no hint comes first: until the next lapse or whole read."""
        return max(min(self._lapse_time, self._stale_time) - time, LAPSE_SECONDS)

    def cancel_timer(self) -> None:
        if self.timer:
            self.timer.cancel()
            self.timer = None


class CartWatches:
    """The watched carts of one process. `checks` is set if other processes write to the same database.

    `hints` are those of other processes, if the database passes hints on.
    """

    def __init__(
        self,
        reads: Reads,
        notifier: ChangeNotifier,
        hints: Hints | None = None,
        *,
        checks: bool,
        check_seconds: float = CHECK_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._reads = reads
        self._notifier = notifier
        self._hints = hints
        self._checks = checks
        self._check_seconds = check_seconds
        self._retry_seconds = retry_seconds
        self._subscriptions: dict[CartKey, _Subscription] = {}
        # The subscriptions to read, in the order of their requests.
        self._due: dict[_Subscription, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None
        self._check_now = asyncio.Event()
        self._bugs = FailureLog(
            events.LOOP_FAILING,
            events.LOOP_RECOVERED,
            "watches cannot check revisions",
            "watches check revisions again",
        )
        notifier.subscribe(self._on_change, self._on_close)

    @contextmanager
    def watch(self, key: CartKey, form: Form[T]) -> Iterator[Watch[T]]:
        """Watch the cart under `key` until the end of the `with` block. The watch has its states in `form`."""
        watch = Watch(form)
        if self._notifier.closed:
            watch.end()
        subscription = self._subscriptions.get(key)
        if subscription is None:
            subscription = self._subscriptions[key] = _Subscription(key)
        subscription.watchers[watch] = None
        subscription.new[watch] = None
        self._request_read(subscription)
        self._look_elsewhere()
        try:
            yield watch
        finally:
            subscription.watchers.pop(watch, None)
            subscription.new.pop(watch, None)
            if not subscription.watchers:
                self._forget(subscription)

    def _look_elsewhere(self) -> None:
        """Look for the changes of other processes from now on."""
        if self._hints:
            self._hints.listen(self._on_change, self._check_now.set)
        if self._checks and self._checking is None:
            self._checking = asyncio.create_task(self._check_regularly(), name="watch-revisions")

    def _forget(self, subscription: _Subscription) -> None:
        del self._subscriptions[subscription.key]
        self._due.pop(subscription, None)
        subscription.cancel_timer()
        if self._checking and not self._subscriptions:
            self._checking.cancel()
            self._checking = None

    def _on_change(self, changed: Iterable[CartKey]) -> None:
        if self._subscriptions:
            for key in changed:
                if subscription := self._subscriptions.get(key):
                    self._request_read(subscription)

    def _on_close(self) -> None:
        for subscription in self._subscriptions.values():
            for watch in subscription.watchers:
                watch.end()

    async def _check_regularly(self) -> None:
        """Compare the revisions of all watched carts each second, and whenever hints may have been lost."""
        while True:
            try:
                async with asyncio.timeout(self._check_seconds):
                    await self._check_now.wait()
            except TimeoutError:
                pass
            self._check_now.clear()
            try:
                await self._check()
                self._bugs.note_success()
            except (Overloaded, DatabaseUnavailable):
                # `reads` logs the outage. The next check finds the changes that this one did not.
                continue
            except Exception as error:  # noqa: BLE001 - without this task, watchers would miss changes silently
                self._bugs.note_failure(error)

    async def _check(self) -> None:
        known = [(each.key, each.known) for each in self._subscriptions.values() if each.known is not None]

        async def check(some: Sequence[tuple[CartKey, Known]]) -> None:
            self._on_change(await self._reads.find_changed(some))

        await do_each(check(known[start : start + MAX_CHECKED]) for start in range(0, len(known), MAX_CHECKED))

    def _request_read(self, subscription: _Subscription) -> None:
        """Read the cart, also if a read is under way: it may have begun before the change."""
        subscription.cancel_timer()
        self._due[subscription] = None
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="cart-watches")

    async def _run(self) -> None:
        """Read the due subscriptions in batches: thousands of reads at once would fill GetCart's queue."""
        try:
            while self._due:
                batch = list(islice(self._due, MAX_BATCH))
                for subscription in batch:
                    del self._due[subscription]
                await asyncio.gather(*map(self._read, batch))
        finally:
            self._task = None

    async def _read(self, subscription: _Subscription) -> None:
        """Read a cart, give its state to the watchers that need it, and set the next timer. Never raises."""
        loop = asyncio.get_running_loop()
        era = self._reads.era
        validator = subscription.validator(loop.time(), era)
        new, subscription.new = subscription.new, {}
        delay = self._retry_seconds
        try:
            found = await self._reads.find_json(subscription.key, validator)
            if not isinstance(found, NotModified):
                is_new = subscription.accept(found, loop.time(), era)
                state = SharedState(found)
                # A watcher that arrived during this read waits for the next read: this one may not see that watcher's
                # change.
                for watch in subscription.watchers if is_new else new:
                    if watch not in subscription.new and watch in subscription.watchers:
                        watch.offer(state)
            delay = subscription.next_read(loop.time())
        except (Overloaded, DatabaseUnavailable) as error:
            # The other watchers keep their state; the next read brings the changes that they missed.
            for watch in new:
                watch.fail(error)
        except Exception as error:  # noqa: BLE001 - a bug belongs to the calls that met it, not to the other carts
            for watch in subscription.watchers:
                watch.fail(error)
        if subscription.watchers and subscription not in self._due:
            # Rounded up to a tick, so that the reads of many carts share statements.
            when = math.ceil((loop.time() + delay) / _TICK_SECONDS) * _TICK_SECONDS
            subscription.timer = loop.call_at(when, self._request_read, subscription)


def _digest(found: CartJson | None) -> bytes:
    """A digest of the cart: 10,000 watched carts of 20 items would take 200 MiB."""
    if found is None:
        return b""
    return hashlib.blake2b("\n".join((found.head, *found.lines)).encode(), digest_size=16).digest()
