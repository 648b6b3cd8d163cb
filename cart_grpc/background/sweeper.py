"""The sweeper: expires idle carts and purges rows whose retention has ended, a small batch at a time."""

import asyncio
import logging
import random
from dataclasses import dataclass

from cart_grpc.background.loop import Loop
from cart_grpc.carts.refusals import Unavailable
from cart_grpc.commands.direct import Purge
from cart_grpc.names import CartKey
from cart_grpc.store.store import Store
from cart_grpc.units import to_seconds

log = logging.getLogger(__name__)
BATCH_SIZE = 64
# About an hour, if nothing else is to be swept.
ROUNDS_UNTIL_RETRY = 100


@dataclass(frozen=True, slots=True)
class Retention:
    """How long replies can be repeated, finished reservations read and ended carts read, in microseconds."""

    replies_us: int
    reservations_us: int
    carts_us: int


@dataclass(frozen=True, slots=True)
class Swept:
    """The result of one round of the sweeper."""

    expired_carts: int
    purged_rows: int

    @property
    def total(self) -> int:
        return self.expired_carts + self.purged_rows


class Sweeper:
    """Expires and purges, one batch of each per round, with `interval_us` between rounds that found nothing.

    Any number of sweepers may share a database: each command checks its rows again under its locks.
    """

    def __init__(self, store: Store, retention: Retention, interval_us: int) -> None:
        self._store = store
        self._retention = retention
        self._interval_us = interval_us
        # The carts that could not be expired, each with the round in which it is tried again. They must neither take
        # the places of others in every round nor fill the log.
        self._failed: dict[CartKey, int] = {}
        self._round = 0
        self._loop = Loop("sweeper", self.run_once, self._pause)

    async def run(self) -> None:
        """Sweep until cancelled."""
        await self._loop.run()

    async def run_once(self) -> Swept:
        """Purge one batch of each kind of row and expire one batch of idle carts.

        Raises Unavailable if the database does not answer.
        """
        keep = self._retention
        purged = await self._store.purge(Purge(keep.replies_us, keep.reservations_us, keep.carts_us, BATCH_SIZE))
        self._round += 1
        self._failed = {cart: again for cart, again in self._failed.items() if again > self._round}
        idle = await self._store.reads.find_idle_carts(BATCH_SIZE + len(self._failed))
        carts = [cart for cart in idle if cart not in self._failed][:BATCH_SIZE]
        results = await asyncio.gather(*(self._store.expire(cart) for cart in carts), return_exceptions=True)
        for cart, result in zip(carts, results, strict=True):
            if isinstance(result, Unavailable):
                raise result
            if isinstance(result, BaseException):
                self._failed[cart] = self._round + ROUNDS_UNTIL_RETRY
                log.error("ALARM %s: the cart cannot be expired", cart.name, exc_info=result)
        return Swept(sum(result is True for result in results), purged)

    async def _pause(self, swept: Swept | None) -> None:
        if swept and swept.total:
            return
        # Jitter: replicas that started together should not sweep together.
        await asyncio.sleep(to_seconds(self._interval_us) * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
