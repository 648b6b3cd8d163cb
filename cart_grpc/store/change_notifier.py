"""The messages of a commit to the rest of its process: hints of changes, and claims that were made with a change.

A hint may be lost: its receivers also look for changes by themselves. So may a claim: it expires with its lease.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, Protocol

from cart_grpc.names import CartKey
from cart_grpc.protocol.lanes import Lane
from cart_grpc.protocol.reservation import Reservation

OnChange = Callable[[Iterable[CartKey]], None]


@dataclass(frozen=True, slots=True)
class Room:
    """How many reservations of each lane a batch may claim for this process, and for how many microseconds."""

    claims: Mapping[Lane, int]
    lease_us: int


NO_ROOM: Final = Room({}, 0)


class Claimant(Protocol):
    """Owns the claims that batches make for this process: its reconciler."""

    def reserve_room(self) -> AbstractContextManager[Room]:
        """Return the room for the claims of one batch. Nothing else gets that room until the block ends."""
        ...

    def take(self, claimed: Sequence[Reservation]) -> None:
        """Take over claims that are committed. Must not raise."""
        ...


class ChangeNotifier:
    """Tells the reconciler which reservations are due or claimed, and the watchers which carts have changed.

    `due` is set when a reservation becomes due, and `due_slices` names the slices that have one. `claimant` is None in
    a process without a reconciler. `closed` is set when the process begins to stop; no call may wait for a cart from
    then on.
    """

    def __init__(self) -> None:
        self.due = asyncio.Event()
        self.due_slices: set[int] = set()
        self.claimant: Claimant | None = None
        self.closed = False
        self._on_change: list[OnChange] = []
        self._on_close: list[Callable[[], None]] = []

    def subscribe(self, on_change: OnChange, on_close: Callable[[], None]) -> None:
        """Call `on_change` after each commit that changed carts, and `on_close` when the process begins to stop."""
        self._on_change.append(on_change)
        self._on_close.append(on_close)

    def reserve_room(self) -> AbstractContextManager[Room]:
        """Return the room for the claims of one batch, none without a claimant. The batch has it until the block ends.

        The claims of the batch must be published inside the block.
        """
        return self.claimant.reserve_room() if self.claimant else nullcontext(NO_ROOM)

    def publish(self, changed: Iterable[CartKey], *, claimed: Sequence[Reservation], due: bool) -> None:
        """Report a commit: the carts that it changed, its claims, and whether it made another reservation due."""
        if claimed and self.claimant:
            self.claimant.take(claimed)
        for on_change in self._on_change:
            on_change(changed)
        if due:
            self.due_slices.update(key.slice for key in changed)
            self.due.set()

    def close(self) -> None:
        """End every watch: the process is about to stop."""
        self.closed = True
        for on_close in self._on_close:
            on_close()
