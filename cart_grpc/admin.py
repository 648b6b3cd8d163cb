"""The actions of operators: inspect and end reservations and checkouts, pause all calls, erase users."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from cart_grpc.carts.calls import Limits
from cart_grpc.carts.checkout_refusals import CheckoutNotFound
from cart_grpc.carts.refusals import ReservationNotFound, ReservationUnprocessable
from cart_grpc.commands.checkout import EndCheckout
from cart_grpc.commands.command import Command
from cart_grpc.commands.direct import Pause, Resume
from cart_grpc.commands.erase import EraseUser
from cart_grpc.commands.operator import Release, Retry
from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.metrics import ALARMS
from cart_grpc.names import CheckoutKey, UserKey
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.store.failures import is_row_at_fault
from cart_grpc.store.read.cart_search import CartSearch, CartsFound
from cart_grpc.store.read.checkout_reads import CheckoutSnapshot, CheckoutSummary, OperatorCheckoutPage
from cart_grpc.store.read.erasures import Erasure
from cart_grpc.store.read.operator_reads import (
    PauseSnapshot,
    ReservationSnapshot,
    Stats,
)
from cart_grpc.store.read.reservation_search import ReservationPage, ReservationsFound
from cart_grpc.store.store import Store

log = Log(__name__)
R = TypeVar("R")


class ReconcilerStatus(Protocol):
    """The part of this process's reconciler that operators can see."""

    @property
    def in_flight(self) -> int:
        """The number of calls to the Reservation API in flight."""
        ...

    def find_breaker_open_us(self) -> int | None:
        """Return how long the Reservation API has counted as down, in microseconds; None while it answers."""
        ...


class OperatorActions:
    """The operator's actions on one store. Each change is logged.

    Every method raises DatabaseUnavailable, and the other kinds of CallRefused that it names. `reconciler` is None in a
    process that does not reconcile.
    """

    def __init__(self, store: Store, limits: Limits, reconciler: ReconcilerStatus | None) -> None:
        self.reconciler = reconciler
        self._store = store
        self._reads = store.operator_reads
        self._limits = limits

    async def get(self, reservation_id: str) -> ReservationSnapshot:
        """Return one reservation. Raises ReservationNotFound, ReservationUnprocessable."""
        return await self._reads.get(reservation_id)

    async def list(self, page: ReservationPage) -> ReservationsFound:
        """Return one page of reservations."""
        return await self._store.reservation_searches.find(page)

    async def find_carts(self, search: CartSearch) -> CartsFound:
        """Return one page of carts of all users."""
        return await self._store.cart_searches.find(search)

    async def erase_user(self, user: UserKey, *, progress_only: bool) -> Erasure:
        """Begin to erase a user, unless `progress_only` or nothing is stored for them. Returns the progress."""
        seen = await self._store.erasures.find(user)
        if progress_only or not seen.is_stored or seen.begin_time is not None:
            return seen
        if await self._store.intervene(EraseUser(user)):
            log(events.OPERATOR_ERASED_USER, "%s: an operator began to erase the user", user.name, user=user.name)
        return await self._store.erasures.find(user)

    async def get_stats(self) -> Stats:
        """Return the size of the backlog."""
        return await self._reads.get_stats()

    async def retry(self, reservation_id: str) -> ReservationSnapshot:
        """Make the reservation due now, or ask again for a rejected or expired one.

        Returns the reservation that is pursued, which may be a new one. Raises ReservationNotFound,
        ReservationUnprocessable, CartClosed.
        """
        pursued = await self._intervene(reservation_id, lambda found: Retry(found, self._limits))
        text = "reservation %s: an operator retried it as %s"
        log(events.OPERATOR_RETRIED, text, reservation_id, pursued, reservation=reservation_id)
        return await self._reads.get(pursued)

    async def release(self, reservation_id: str, reason: str, *, force: bool) -> ReservationSnapshot:
        """Release the reservation; with `force`, count it as released without an answer of the Reservation API.

        Raises ReservationNotFound, ReservationUnprocessable, ReservationCommitted.
        """
        alarm = await self._intervene(reservation_id, lambda found: Release(found, reason, force))
        action = "force-released" if force else "released"
        text = "reservation %s: an operator %s it: %s"
        log(events.OPERATOR_RELEASED, text, reservation_id, action, reason, reservation=reservation_id, reason=reason)
        if alarm:
            ALARMS.inc()
            log(events.RESERVATION_ALARM, "reservation %s: %s", reservation_id, alarm, reservation=reservation_id)
        return await self._reads.get(reservation_id)

    async def list_checkouts(self, page: OperatorCheckoutPage) -> Sequence[CheckoutSummary]:
        """Return one page of checkouts, plus one more if there is a next page."""
        return await self._store.checkout_reads.list_of_all(page)

    async def end_checkout(self, key: CheckoutKey, reason: str, *, force: bool) -> CheckoutSnapshot:
        """End a checkout. With `force`, also one that is COMPLETING: its items count as sold.

        Raises CheckoutNotFound, CheckoutCompleted.
        """
        ended = await self._store.intervene(EndCheckout(key, reason, force))
        text = "%s: an operator ended it: %s"
        log(events.OPERATOR_ENDED_CHECKOUT, text, key.name, reason, checkout=key.name, reason=reason)
        if ended.alarm:
            ALARMS.inc()
            log(events.CHECKOUT_ALARM, "%s", ended.alarm, checkout=key.name)
        return await self.get_checkout(key)

    async def get_checkout(self, key: CheckoutKey) -> CheckoutSnapshot:
        """Return one checkout with its items. Raises CheckoutNotFound."""
        found = await self._store.checkout_reads.find(key)
        if found is None:
            raise CheckoutNotFound(key.name)
        return found

    async def _intervene(self, reservation_id: str, command_for: Callable[[Reservation], Command[R]]) -> R:
        """Run the command for a reservation; again if the reservation moves to another cart at the same time."""
        found = (await self._reads.get(reservation_id)).reservation
        while True:
            try:
                return await self._store.intervene(command_for(found))
            except ReservationNotFound:
                before, found = found, (await self._reads.get(reservation_id)).reservation
                if found.cart == before.cart:
                    raise
            except Exception as error:
                if not is_row_at_fault(error):
                    raise
                log(events.OPERATOR_COMMAND_FAILED, "%s: an operator's command failed", found.name, exc_info=error)
                text = f"{type(error).__name__}; try ReleaseReservation with force, or correct the row in the database"
                raise ReservationUnprocessable(found.name, text) from error

    async def pause(self, reason: str) -> PauseSnapshot | None:
        """Stop calling the Reservation API, on every replica. Returns the pause; None if it was resumed meanwhile."""
        await self._store.pause(Pause(reason))
        log(events.OPERATOR_PAUSED, "an operator paused all calls to the Reservation API: %s", reason, reason=reason)
        return await self._reads.find_pause()

    async def resume(self) -> None:
        """Call the Reservation API again."""
        await self._store.pause(Resume())
        log(events.OPERATOR_RESUMED, "an operator resumed the calls to the Reservation API")
