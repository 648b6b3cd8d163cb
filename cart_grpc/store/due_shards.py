"""Which shards to look at for due reservations: those with a hint, and at each poll some of the others."""

import random
from collections.abc import Sequence
from typing import Final

from cart_grpc.protocol.lanes import LANES, Lane
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.shards import shard_index

# A poll looks at so many shards, so an idle process asks no more often with 32 shards than with 8.
POLLED: Final = 8


class DueShards:
    """The numbers of the shards that each lane has to look at, those with a hint first.

    Without a hint, a shard has its turn at every poll if there are up to POLLED shards, and more seldom if there are
    more. So a process finds the rows that others leave behind, and those that a time makes due.
    """

    def __init__(self, count: int, notifier: ChangeNotifier) -> None:
        self._count = count
        self._notifier = notifier
        # Each process begins elsewhere, so that several of them do not poll the same shards.
        self._next = random.randrange(count)  # noqa: S311 - no secret
        # In the order of the hints.
        self._to_look: dict[Lane, dict[int, None]] = {lane: dict.fromkeys(range(count)) for lane in LANES}

    def find(self, lane: Lane) -> Sequence[int]:
        """Return the shards to look at for `lane`. If there is only one shard, it always is."""
        if self._count == 1:
            return (0,)
        if self._notifier.due_slices:
            slices, self._notifier.due_slices = self._notifier.due_slices, set()
            for number in {shard_index(slice_, self._count) for slice_ in slices}:
                self._add(number)
        return list(self._to_look[lane])

    def begin_look(self, lane: Lane, number: int) -> None:
        """Forget the hints for a shard. Call it before the look, which may miss what comes during it."""
        self._to_look[lane].pop(number, None)

    def note_due(self, lane: Lane, number: int) -> None:
        """Note that a look has found a due row: the next claim begins with this shard."""
        self._to_look[lane] = {number: None, **self._to_look[lane]}

    def note_more(self, lane: Lane, number: int) -> None:
        """Note that a claim may have left due rows. The other shards come first, so that none waits for a backlog."""
        self._to_look[lane][number] = None

    def poll(self, *, everywhere: bool = False) -> None:
        """Look at some shards without a hint, or at all of them."""
        for _ in range(self._count if everywhere else min(self._count, POLLED)):
            self._add(self._next)
            self._next = (self._next + 1) % self._count

    def _add(self, number: int) -> None:
        for of_lane in self._to_look.values():
            of_lane[number] = None
