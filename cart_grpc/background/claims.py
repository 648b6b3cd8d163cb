"""The claims of this process in one lane: how many more it may make, and which have no recorded outcome yet."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cart_grpc.commands.direct import ClaimKey
from cart_grpc.protocol.lanes import Lane
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.tracing import trace_id_of


def key_of(claimed: Reservation) -> ClaimKey:
    """Return the key of a claimed reservation."""
    return ClaimKey(claimed.cart.slice, claimed.reservation_id, claimed.lease_epoch)


def ids_of(claimed: Reservation) -> dict[str, Any]:
    """Return the fields that name a reservation in the log, and the trace of the call that changed it last."""
    return {"reservation": claimed.reservation_id, "trace_id": trace_id_of(claimed.trace_context or "")}


class LaneClaims:
    """The claims of one lane. Used on the event loop only.

    `open` has the claims whose outcome is not recorded yet. `backlog`: the last claim was full, or there was no room
    for one, so there may be more due rows. Room that is reserved for a transaction counts as used until the
    transaction has ended.
    """

    def __init__(self, name: Lane) -> None:
        self.name = name
        self.open: dict[ClaimKey, Reservation] = {}
        self.backlog = False
        self._reserved = 0
        self._unreserved = asyncio.Event()
        self._unreserved.set()

    def find_room(self, limit: int) -> int:
        """Return how many more claims the lane may have if it may have `limit` in all."""
        return max(0, limit - len(self.open) - self._reserved)

    @contextmanager
    def reserving(self, room: int) -> Iterator[None]:
        """Reserve room for the claims of a transaction, which must be added inside the block."""
        self._reserved += room
        if room:
            self._unreserved.clear()
        try:
            yield
        finally:
            self._reserved -= room
            if not self._reserved:
                self._unreserved.set()

    async def until_unreserved(self) -> None:
        """Wait until no transaction that may claim is under way."""
        await self._unreserved.wait()

    def add(self, claimed: Sequence[Reservation]) -> None:
        """Add claims that are committed."""
        self.open.update((key_of(each), each) for each in claimed)

    def end(self, claimed: Reservation) -> None:
        """Remove a claim: its outcome is recorded, or given up."""
        self.open.pop(key_of(claimed), None)
