"""The operator's side of the store: what is stuck is looked at, tried again, given back; and all that is logged."""

import logging
from typing import Protocol

from cart_grpc.carts.calls import Limits
from cart_grpc.commands.direct import Pause, Resume
from cart_grpc.commands.operator import Release, Retry
from cart_grpc.store.read.operator_reads import PauseSnapshot, ReservationPage, ReservationSnapshot, Stats
from cart_grpc.store.store import Store

log = logging.getLogger(__name__)


class Calls(Protocol):
    """What the reconciler of this process knows of the Reservation API."""

    @property
    def in_flight(self) -> int:
        """How many calls are under way."""
        ...

    def breaker_open_seconds(self) -> float | None:
        """For how long nobody has answered, None while the Reservation API answers."""
        ...


class Operator:
    """What may be done by hand. Every method raises DatabaseUnavailable, and what else CallRefused it names.

    `calls` is None in a process that does not reconcile.
    """

    def __init__(self, store: Store, limits: Limits, calls: Calls | None) -> None:
        self.calls = calls
        self._store = store
        self._reads = store.operator_reads
        self._limits = limits

    async def get(self, reservation_id: str) -> ReservationSnapshot:
        """One reservation. Raises ReservationNotFound."""
        return await self._reads.get(reservation_id)

    async def list(self, page: ReservationPage) -> list[ReservationSnapshot]:
        """One page of reservations, and one more if there is one."""
        return await self._reads.list(page)

    async def get_stats(self) -> Stats:
        """How much is waiting."""
        return await self._reads.get_stats()

    async def retry(self, reservation_id: str) -> ReservationSnapshot:
        """Try again at once. Returns what is pursued now. Raises ReservationNotFound, CartClosed."""
        found = await self._reads.get(reservation_id)
        pursued = await self._store.intervene(Retry(found.reservation, self._limits))
        log.warning("reservation %s: an operator has it tried again, as %s", reservation_id, pursued)
        return await self._reads.get(pursued)

    async def release(self, reservation_id: str, reason: str, *, force: bool) -> ReservationSnapshot:
        """Give it back, or with `force` regard it as given back. Raises ReservationNotFound, ReservationCommitted."""
        found = await self._reads.get(reservation_id)
        alarm = await self._store.intervene(Release(found.reservation, reason, force))
        how = "regards it as released" if force else "has it released"
        log.warning("reservation %s: an operator %s: %s", reservation_id, how, reason)
        if alarm:
            log.error("ALARM reservation %s: %s", reservation_id, alarm)
        return await self._reads.get(reservation_id)

    async def pause(self, reason: str) -> PauseSnapshot | None:
        """Stop calling the Reservation API, on every replica. Returns how it stands then."""
        await self._store.pause(Pause(reason))
        log.warning("an operator has paused the calls of the Reservation API: %s", reason)
        return await self._reads.find_pause()

    async def resume(self) -> None:
        """Go on calling."""
        await self._store.pause(Resume())
        log.warning("an operator lets the calls of the Reservation API go on")
