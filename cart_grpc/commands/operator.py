"""What an operator can write: a reservation that is stuck is tried again, or given back."""

from dataclasses import dataclass

from cart_grpc.carts.calls import Given, Limits, NewId, RetryReservation
from cart_grpc.carts.progress import ProgressState, progress
from cart_grpc.carts.refusals import ReservationCommitted, ReservationNotFound
from cart_grpc.carts.rules import decide
from cart_grpc.commands.apply_transition import apply_transition
from cart_grpc.commands.unit_of_work import ReadSet, UnitOfWork
from cart_grpc.protocol.reservation import RELEASED_BY_OPERATOR, Disposition, Observed, Reservation
from cart_grpc.protocol.transitions import force_release, release, retry_now


@dataclass(frozen=True, slots=True)
class Retry:
    """Say at once what is still to be said; ask again for an item that was rejected or has expired.

    `found` is the reservation as it was read, to know whose it is. Answered with the id of what is pursued now.
    """

    found: Reservation
    limits: Limits

    def add_reads(self, reads: ReadSet) -> None:
        _add_reads(reads, self.found)

    def run(self, working: UnitOfWork, now: int, new_id: NewId) -> str:
        reservation = _get(working, self.found)
        line = working.find_line(reservation.cart, reservation.item_id)
        shown = line is not None and line.reservation is reservation
        if line and shown and progress(line, now).state in (ProgressState.REJECTED, ProgressState.EXPIRED):
            call = RetryReservation(reservation.cart, reservation.item_id)
            change = decide(working.view(call.reads), call, Given(self.limits, now, new_id))
            # No caller has changed anything: the etag stays, and so does the time of the latest change.
            cart = working.carts[reservation.cart]
            working.apply(change._replace(cart=cart._replace(revision=cart.revision + 1)))
            reservation = change.lines[0].reservation
            working.put_reservation(retry_now(reservation, now))
        else:
            apply_transition(working, reservation, retry_now(reservation, now), now)
        return reservation.reservation_id


@dataclass(frozen=True, slots=True)
class Release:
    """Give a reservation back; with `force`, regard that as done. Answered with an alarm where it may not be."""

    found: Reservation
    reason: str
    force: bool

    def add_reads(self, reads: ReadSet) -> None:
        _add_reads(reads, self.found)

    def run(self, working: UnitOfWork, now: int, new_id: NewId) -> str | None:
        before = _get(working, self.found)
        if before.state is Observed.COMMITTED:
            raise ReservationCommitted(before.name, "COMMITTED")
        refused = before.settled and before.state is Observed.REJECTED
        if before.disposition is Disposition.COMMIT and not refused:
            raise ReservationCommitted(before.name, "COMMITTING")
        after = force_release(before, now) if self.force else release(before, now)
        if after is before:
            return None
        because = f"{RELEASED_BY_OPERATOR}: {self.reason}"
        seal_reason = before.seal_reason or RELEASED_BY_OPERATOR
        apply_transition(working, before, after._replace(seal_reason=seal_reason, last_error=because), now)
        return _alarm(before) if self.force else None


def _alarm(before: Reservation) -> str:
    most = max(before.quantity, before.granted_quantity)
    return (
        f"an operator regards it as released, which the Reservation API has not said: up to {most} of {before.sku} may "
        f"still be held there; revision {before.observed_revision} of {before.revision} was answered, with "
        f"{before.state.name}"
    )


def _add_reads(reads: ReadSet, found: Reservation) -> None:
    reads.users.add(found.cart.user)
    reads.carts.add(found.cart)
    reads.items.add((found.cart, found.item_id))
    reads.reservations.add((found.cart, found.reservation_id))
    reads.skus.add((found.cart, found.sku))


def _get(working: UnitOfWork, found: Reservation) -> Reservation:
    current = working.reservations.get(found.reservation_id)
    if current is None:
        raise ReservationNotFound(found.name)
    return current
