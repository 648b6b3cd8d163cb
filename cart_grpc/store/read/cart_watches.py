"""Watches of carts. `max_wait` waits with a watch, and a stream can send the states that a watch returns.

Each watched cart has one subscription per process, which all its watchers share. A hint of a change only makes the
subscription read the cart: watchers get states, not changes. The subscription reads the cart when a watcher arrives,
after each commit of this process that changed the cart, and when a hold runs out. On a database that other processes
write to, it also polls. It sends its validator with each read, so for an unchanged cart the answer is "not modified".
On PostgreSQL, a `max_wait` of 30 s for a hanging call reads the whole cart twice: at its beginning and at its end.
Without validators it is 34 times.
"""

import asyncio
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from itertools import islice
from typing import Final

from cart_grpc.carts.refusals import DatabaseUnavailable, Overloaded
from cart_grpc.names import CartKey
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.read.cache_validator import MAX_AGE_US, CacheValidator, watch_validator
from cart_grpc.store.read.cart_json import CartJson, Found, NotModified
from cart_grpc.store.read.grouped_reads import MAX_BATCH
from cart_grpc.store.read.reads import Reads
from cart_grpc.store.read.snapshot import Snapshot, parse_snapshot
from cart_grpc.units import to_seconds

# Hints come from this process only, so polls find the changes of other processes. The interval doubles from the first
# value to the last: a change is most likely right after a call.
FIRST_POLL_SECONDS: Final = 0.1
LAST_POLL_SECONDS: Final = 1.0


class _Nothing(Enum):
    NOTHING = 0


_NOTHING: Final = _Nothing.NOTHING


class Watch:
    """One watcher's view of a cart: an asynchronous iterator of its states, None if there is no such cart.

    The first state was read after the watcher arrived. Newer states follow. At most one state is pending, so a slow
    watcher misses states, but never the last one. All watchers share the states, so a slow watcher costs no memory. If
    a wait for the next state is cancelled, no state is lost. The iterator ends when the process begins to stop.

    Raises Overloaded or DatabaseUnavailable if the first state cannot be read.
    """

    def __init__(self) -> None:
        self._pending: Snapshot | _Nothing | None = _NOTHING
        self._error: Exception | None = None
        self._has_begun = False
        self._is_ended = False
        self._news = asyncio.Event()

    def __aiter__(self) -> "Watch":
        return self

    async def __anext__(self) -> Snapshot | None:
        while self._pending is _NOTHING:
            if self._error:
                raise self._error
            # The first state is always returned: a call that begins to wait during a stop needs it for its reply.
            if self._is_ended and self._has_begun:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        state, self._pending = self._pending, _NOTHING
        return state

    def offer(self, state: Snapshot | None) -> None:
        """Replace the pending state."""
        self._pending = state
        self._has_begun = True
        self._news.set()

    def fail(self, error: Exception) -> None:
        """Raise `error` from the iterator, after the pending state if there is one."""
        self._error = error
        self._news.set()

    def end(self) -> None:
        """End the iterator, after the pending state if there is one."""
        self._is_ended = True
        self._news.set()


class _Subscription:
    """A watched cart: its watchers, those of them that have no state yet (`new`), and the last state that was read."""

    def __init__(self, key: CartKey) -> None:
        self.key = key
        self.watchers: set[Watch] = set()
        self.new: set[Watch] = set()
        self.timer: asyncio.TimerHandle | None = None
        self.poll_seconds = FIRST_POLL_SECONDS
        self.state: Snapshot | None = None
        self._text: CartJson | None = None
        self._validator: CacheValidator | None = None
        self._era = 0
        # By the event loop's clock.
        self._lapse_time = math.inf
        self._stale_time = 0.0

    def validator(self, time: float, era: int) -> CacheValidator | None:
        """The validator for the next read. Once a minute, and in a new era, it is None, and the whole cart is read."""
        return self._validator if time < self._stale_time and era == self._era else None

    def accept(self, found: Found, time: float, era: int) -> bool:
        """Record the answer of a read that began in `era`. Return whether the state is new."""
        if isinstance(found, NotModified):
            return False
        self._era = era
        before, self._text = self._text, found
        self._stale_time = time + to_seconds(MAX_AGE_US)
        if found is None:
            self.state, self._validator, self._lapse_time = None, None, math.inf
            return before is not None
        self.state = parse_snapshot(found)
        self._validator = watch_validator(found.version, self.state.lines, found.now)
        self._lapse_time = time + to_seconds(self._validator.until - found.now)
        return before is None or (before.head, before.lines) != (found.head, found.lines)

    def next_read(self, time: float, poll_seconds: float) -> float:
        """The seconds until the next read, if no hint comes first: until the next poll, lapse or whole read."""
        # After a lapse that the database's clock has not reached yet, ask again soon.
        return min(poll_seconds, max(min(self._lapse_time, self._stale_time) - time, FIRST_POLL_SECONDS))

    def cancel_timer(self) -> None:
        if self.timer:
            self.timer.cancel()
            self.timer = None


class CartWatches:
    """The watched carts of one process. `polls` is set if other processes write to the same database."""

    def __init__(
        self,
        reads: Reads,
        notifier: ChangeNotifier,
        *,
        polls: bool,
        first_poll: float = FIRST_POLL_SECONDS,
        last_poll: float = LAST_POLL_SECONDS,
    ) -> None:
        self._reads = reads
        self._notifier = notifier
        self._polls = polls
        self._first_poll = first_poll
        self._last_poll = last_poll
        self._subscriptions: dict[CartKey, _Subscription] = {}
        # The subscriptions to read, in the order of their requests.
        self._due: dict[_Subscription, None] = {}
        self._task: asyncio.Task[None] | None = None
        notifier.subscribe(self._on_change, self._on_close)

    @contextmanager
    def watch(self, key: CartKey) -> Iterator[Watch]:
        """Watch the cart under `key` until the end of the `with` block."""
        watch = Watch()
        if self._notifier.closed:
            watch.end()
        subscription = self._subscriptions.setdefault(key, _Subscription(key))
        subscription.watchers.add(watch)
        subscription.new.add(watch)
        subscription.poll_seconds = self._first_poll
        self._request_read(subscription)
        try:
            yield watch
        finally:
            subscription.watchers.discard(watch)
            subscription.new.discard(watch)
            if not subscription.watchers:
                del self._subscriptions[key]
                self._due.pop(subscription, None)
                subscription.cancel_timer()

    def _on_change(self, changed: Iterable[CartKey]) -> None:
        if self._subscriptions:
            for key in changed:
                if subscription := self._subscriptions.get(key):
                    self._request_read(subscription)

    def _on_close(self) -> None:
        for subscription in self._subscriptions.values():
            for watch in subscription.watchers:
                watch.end()

    def _request_read(self, subscription: _Subscription) -> None:
        """Read the cart, also if a read is under way: it may have begun before the change."""
        subscription.cancel_timer()
        self._due[subscription] = None
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="cart-watches")

    async def _run(self) -> None:
        """Read the due subscriptions in batches: thousands of polls at once would fill GetCart's queue."""
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
        new, subscription.new = subscription.new, set()
        delay = self._last_poll
        try:
            era = self._reads.era
            found = await self._reads.find_json(subscription.key, subscription.validator(loop.time(), era))
            is_changed = subscription.accept(found, loop.time(), era)
            # A watcher that arrived during this read waits for the next read: this one may not see that watcher's
            # change.
            for watch in subscription.watchers - subscription.new if is_changed else new:
                watch.offer(subscription.state)
            delay = subscription.next_read(loop.time(), self._next_poll(subscription))
        except (Overloaded, DatabaseUnavailable) as error:
            # The other watchers keep their state; the next read brings the changes that they missed.
            for watch in new:
                watch.fail(error)
        except Exception as error:  # noqa: BLE001 - a bug belongs to the calls that met it, not to the other carts
            for watch in subscription.watchers:
                watch.fail(error)
        if subscription.watchers and subscription not in self._due:
            # Rounded up to a tick, so that the polls of many carts share statements.
            tick = self._first_poll / 2
            when = math.ceil((loop.time() + delay) / tick) * tick
            subscription.timer = loop.call_at(when, self._request_read, subscription)

    def _next_poll(self, subscription: _Subscription) -> float:
        """The seconds until the next poll: twice as many each time, up to a bound."""
        if not self._polls:
            return math.inf
        delay = subscription.poll_seconds
        subscription.poll_seconds = min(2 * delay, self._last_poll)
        return delay
