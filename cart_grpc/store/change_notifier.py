"""Hints of changes within this process. A hint may be lost: its receivers also look for changes by themselves."""

import asyncio
from collections.abc import Callable, Iterable

from cart_grpc.names import CartKey

OnChange = Callable[[Iterable[CartKey]], None]


class ChangeNotifier:
    """Sends hints: to the reconciler when a reservation becomes due, and to the watchers when carts change.

    `due` is set when a reservation becomes due. `closed` is set when the process begins to stop; no call may wait for a
    cart from then on.
    """

    def __init__(self) -> None:
        self.due = asyncio.Event()
        self.closed = False
        self._on_change: list[OnChange] = []
        self._on_close: list[Callable[[], None]] = []

    def subscribe(self, on_change: OnChange, on_close: Callable[[], None]) -> None:
        """Call `on_change` after each commit that changed carts, and `on_close` when the process begins to stop."""
        self._on_change.append(on_change)
        self._on_close.append(on_close)

    def publish(self, changed: Iterable[CartKey], *, due: bool) -> None:
        """Report a commit: the carts that it changed, and whether it made a reservation due."""
        for on_change in self._on_change:
            on_change(changed)
        if due:
            self.due.set()

    def close(self) -> None:
        """End every watch: the process is about to stop."""
        self.closed = True
        for on_close in self._on_close:
            on_close()
