"""The attempt of one claim, as its row has it."""

from cart_grpc.carts.refusals import Unavailable
from cart_grpc.commands.record import OpenAttempt
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.store.store import Store


class RecordedAttempt:
    """Implements Attempt for the claim that returned `claimed` and lasts `lease`, `grace` beyond what a call takes.

    All in microseconds, and all by the database's clock. `opened` is until when the attempt that was opened can take
    effect, None if none was.
    """

    def __init__(self, store: Store, claimed: Reservation, lease: int, grace: int) -> None:
        self.opened: int | None = None
        self._store = store
        self._claimed = claimed
        self._grace_us = grace
        claimed_at = (claimed.lease_expire_time or 0) - lease
        self.pending = max(0, (claimed.uncertain_until or 0) - claimed_at)

    async def open(self, timeout: float) -> bool:
        """See Attempt.open."""
        window = int(timeout * 1_000_000) + self._grace_us
        try:
            self.opened = await self._store.open_attempt(OpenAttempt(self._claimed, window))
        except Unavailable:
            return False
        return self.opened is not None
