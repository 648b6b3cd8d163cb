"""An attempt of the `basic` contract that is recorded in the reservation's row before anything is sent."""

from collections.abc import Awaitable, Callable

from cart_grpc.carts.refusals import Unavailable
from cart_grpc.commands.record import OpenAttempt
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.store.store import Store

# Notices a step of the clock that a slice has. Raises Unavailable.
CheckClock = Callable[[int], Awaitable[None]]


class RecordedAttempt:
    """Implements Attempt for one claim.

    `claimed` is the row as the claim returned it and `lease_us` the claim's duration. A request may take effect up to
    `grace_us` after its timeout. `open_until` is the database time until which the opened attempt may take effect, None
    if none was opened. `claim_time` is the database time of the claim.
    """

    def __init__(
        self, store: Store, claimed: Reservation, lease_us: int, grace_us: int, check_clock: CheckClock
    ) -> None:
        self.open_until: int | None = None
        self._store = store
        self._claimed = claimed
        self._grace_us = grace_us
        self._check_clock = check_clock
        # Both times are the database's: this machine's clock may differ.
        self.claim_time = (claimed.lease_expire_time or 0) - lease_us
        self.uncertain_us = max(0, (claimed.uncertain_until or 0) - self.claim_time)

    async def open(self, timeout_us: int) -> bool:
        """See Attempt.open."""
        try:
            # If the clock was set forward, an earlier attempt seems to be over.
            await self._check_clock(self._claimed.cart.slice)
            self.open_until = await self._store.open_attempt(OpenAttempt(self._claimed, timeout_us + self._grace_us))
        except Unavailable:
            return False
        return self.open_until is not None
