"""Who waits for a change in this process. A hint may be lost; whoever waits looks again by itself."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from cart_grpc.names import CartKey


class ChangeNotifier:
    """Wakes those who wait for a cart to change, and the reconciler when something is due."""

    def __init__(self) -> None:
        self.due = asyncio.Event()
        self.closed = False
        self._waiters: defaultdict[CartKey, set[asyncio.Event]] = defaultdict(set)

    @contextmanager
    def subscribe(self, key: CartKey) -> Iterator[asyncio.Event]:
        """An event that is set after each change of the cart. Subscribe, then read, then wait."""
        event = asyncio.Event()
        self._waiters[key].add(event)
        try:
            yield event
        finally:
            self._waiters[key].discard(event)
            if not self._waiters[key]:
                del self._waiters[key]

    def close(self) -> None:
        """Tell everybody who waits for a cart that nobody may wait any longer."""
        self.closed = True
        self.publish(list(self._waiters), due=False)

    def publish(self, changed: Iterable[CartKey], *, due: bool) -> None:
        """Tell those who wait for the carts that `changed`, and the reconciler if something is `due`."""
        if self._waiters:
            for key in changed:
                for event in self._waiters.get(key, ()):
                    event.set()
        if due:
            self.due.set()
