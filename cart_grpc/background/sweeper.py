"""The sweeper: work that a time makes necessary, or that a lost trigger left undone, in small batches.

`chores` is the table of this work. Each row has a query that finds keys, and a command that it runs for each key.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cart_grpc.background.erasure import erase
from cart_grpc.background.loop import Loop
from cart_grpc.carts.refusals import Unavailable
from cart_grpc.commands.checkout import EvaluateCheckout
from cart_grpc.commands.direct import DEFAULT_CHECKOUT_RETENTION_US, Purge
from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.metrics import HOUSEKEEPING, HOUSEKEEPING_DURATION
from cart_grpc.names import CheckoutKey, UserKey
from cart_grpc.store.each_part import do_each
from cart_grpc.store.store import Store
from cart_grpc.units import to_seconds

log = Log(__name__)
BATCH_SIZE = 64
# About an hour, if nothing else is to be swept.
ROUNDS_UNTIL_RETRY = 100


@dataclass(frozen=True, slots=True)
class Retention:
    """How long stored replies, finished reservations, ended carts and ended checkouts are kept, in microseconds."""

    replies_us: int
    reservations_us: int
    carts_us: int
    checkouts_us: int = DEFAULT_CHECKOUT_RETENTION_US


class Chore(NamedTuple):
    """One kind of work: `find` returns up to a number of keys, and `sweep` does the work for one of them.

    `sweep` checks the key again under its lock, and returns whether it changed something. A key has a `name`.
    """

    name: str
    find: Callable[[int], Awaitable[Sequence[Any]]]
    sweep: Callable[[Any], Awaitable[bool]]


def chores(store: Store) -> Sequence[Chore]:
    """The work of the sweeper, besides purging. A round does one batch of each, in this order."""
    find = store.unswept

    async def evaluate(key: CheckoutKey) -> bool:
        evaluated = await store.intervene(EvaluateCheckout(key))
        if evaluated.alarm:
            log(events.CHECKOUT_ALARM, "%s", evaluated.alarm, checkout=key.name)
        return evaluated.is_changed

    async def erase_user(key: UserKey) -> bool:
        return await erase(store, key)

    return (
        Chore("expire carts", store.reads.find_idle_carts, store.expire),
        Chore("end windows", find.find_ended_windows, evaluate),
        Chore("evaluate checkouts", find.find_answered_checkouts, evaluate),
        Chore("erase users", store.erasures.find_users, erase_user),
    )


@dataclass(frozen=True, slots=True)
class Swept:
    """The result of one round of the sweeper: how many things each chore changed, by its name."""

    changed: Mapping[str, int]
    purged_rows: int

    @property
    def total(self) -> int:
        return sum(self.changed.values()) + self.purged_rows


class Sweeper:
    """Does the chores and purges, one batch of each per round, with `interval_us` between rounds that found nothing.

    Any number of sweepers may share a database: each command checks its rows again under its locks.
    """

    def __init__(self, store: Store, retention: Retention, interval_us: int) -> None:
        self._store = store
        self._chores = chores(store)
        self._retention = retention
        self._interval_us = interval_us
        # The keys that could not be swept, each with the round in which it is tried again. They must neither take the
        # places of others in every round nor fill the log.
        self._failed: dict[tuple[str, Any], int] = {}
        self._round = 0
        self._loop = Loop("sweeper", self.run_once, self._pause)

    async def run(self) -> None:
        """Sweep until cancelled."""
        await self._loop.run()

    async def run_once(self) -> Swept:
        """Purge one batch of each kind of row, and do one batch of each chore.

        Raises Unavailable if the database does not answer, or one of its shards, once the others are swept.
        """
        with HOUSEKEEPING_DURATION.time():
            swept = await self._sweep()
        for chore, count in (*swept.changed.items(), ("purge", swept.purged_rows)):
            HOUSEKEEPING.labels(chore.replace(" ", "_")).inc(count)
        return swept

    async def _sweep(self) -> Swept:
        keep = self._retention
        purge = Purge(keep.replies_us, keep.reservations_us, keep.carts_us, BATCH_SIZE, keep.checkouts_us)
        self._round += 1
        self._failed = {failed: again for failed, again in self._failed.items() if again > self._round}

        def parts() -> Iterator[Awaitable[int]]:
            yield self._store.purge(purge)
            for chore in self._chores:
                yield self._do(chore)

        purged, *changed = await do_each(parts())
        return Swept(dict(zip([chore.name for chore in self._chores], changed, strict=True)), purged)

    async def _do(self, chore: Chore) -> int:
        """Do one batch of a chore, and return how many changed."""
        found = await chore.find(BATCH_SIZE + len(self._failed))
        keys = [key for key in found if (chore.name, key) not in self._failed][:BATCH_SIZE]
        results = await asyncio.gather(*map(chore.sweep, keys), return_exceptions=True)
        for key, result in zip(keys, results, strict=True):
            if isinstance(result, Unavailable):
                raise result
            if isinstance(result, BaseException):
                self._failed[chore.name, key] = self._round + ROUNDS_UNTIL_RETRY
                log(
                    events.CHORE_FAILED,
                    "%s: the sweeper cannot %s",
                    key.name,
                    chore.name,
                    chore=chore.name,
                    exc_info=result,
                )
        return sum(result is True for result in results)

    async def _pause(self, swept: Swept | None) -> None:
        if swept and swept.total:
            return
        # Jitter: replicas that started together should not sweep together.
        await asyncio.sleep(to_seconds(self._interval_us) * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
