"""Ending what was left alone, and deleting what nobody needs any more, a little at a time."""

import asyncio
import logging
import random
from dataclasses import dataclass

from cart_grpc.carts.refusals import Unavailable
from cart_grpc.commands.direct import Purge
from cart_grpc.store.store import Store

log = logging.getLogger(__name__)
BATCH = 64


@dataclass(frozen=True, slots=True)
class Retention:
    """How long replies can be asked for again, finished reservations and ended carts looked up, in microseconds."""

    replies: int
    reservations: int
    carts: int


class Sweeper:
    """Expires idle carts and purges. Any number of them may share a database: each step looks again under its lock."""

    def __init__(self, store: Store, retention: Retention, interval: float) -> None:
        self._store = store
        self._retention = retention
        self._interval = interval

    async def run(self) -> None:
        """Keep house until cancelled."""
        while True:
            try:
                done = await self.run_once()
            except Unavailable as refusal:
                log.warning("housekeeping was put off: %s", refusal.reason)
                done = 0
            except Exception:
                # Without this loop, stock would be hoarded by carts that nobody comes back to.
                log.exception("housekeeping met an error of its own, and goes on")
                done = 0
            if not done:
                # Replicas that were started together need not look together.
                await asyncio.sleep(self._interval * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load, hides nothing

    async def run_once(self) -> int:
        """One small step of everything. Returns how many carts were ended and rows deleted.

        Raises Unavailable where the database does not answer.
        """
        keep = self._retention
        purged = await self._store.purge(Purge(keep.replies, keep.reservations, keep.carts, BATCH))
        idle = await self._store.reads.find_idle_carts(BATCH)
        ended = await asyncio.gather(*(self._store.expire(cart) for cart in idle), return_exceptions=True)
        for cart, outcome in zip(idle, ended, strict=True):
            if isinstance(outcome, Unavailable):
                raise outcome
            if isinstance(outcome, BaseException):
                log.error("%s could not be expired", cart.name, exc_info=outcome)
        return purged + sum(outcome is True for outcome in ended)
