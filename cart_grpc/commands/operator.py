"""An operator's commands for a stuck reservation: retry it, or release it."""

from dataclasses import dataclass

from cart_grpc.carts.calls import CartRead, Given, Limits, NewId, RetryReservation
from cart_grpc.carts.progress import ProgressState, progress
from cart_grpc.carts.refusals import ReservationCommitted, ReservationNotFound
from cart_grpc.carts.rules import decide
from cart_grpc.commands.apply_transition import apply_transition
from cart_grpc.commands.checkout import evaluate_checkout
from cart_grpc.commands.unit_of_work import ReadSet, UnitOfWork
from cart_grpc.protocol.reservation import RELEASED_BY_OPERATOR, Disposition, Observed, Reservation
from cart_grpc.protocol.transitions import force_release, release, retry_now


@dataclass(frozen=True, slots=True)
class Retry:
    """Make the reservation due now. If its item is rejected or expired, reserve the item again.

    `found`: the reservation as the caller read it; only its keys are used. The answer: the id of the reservation that
    is due now, which is a new one if the old one was closed. Raises ReservationNotFound if it was purged, CartClosed if
    its cart has ended, CartFrozen if a checkout of its cart is OPEN.
    """

    found: Reservation
    limits: Limits

    def add_reads(self, reads: ReadSet) -> None:
        _add_reads(reads, self.found)

    def run(self, unit: UnitOfWork, now: int, new_id: NewId) -> str:
        reservation = _get_reservation(unit, self.found)
        line = unit.find_line(reservation.cart, reservation.item_id)
        is_current = line is not None and line.reservation is reservation
        # A row that is set aside may have no revision left for another intent.
        may_ask = not reservation.set_aside_reason and reservation.cart.user not in unit.erase_times
        asks_again = line and is_current and may_ask
        if line and asks_again and progress(line, now).state in (ProgressState.REJECTED, ProgressState.EXPIRED):
            call = RetryReservation(reservation.cart, reservation.item_id)
            change = decide(unit.get_loaded_cart(call.reads), call, Given(self.limits, now, new_id))
            # No caller changed the cart, so its etag and update_time stay as they are.
            cart = unit.carts[reservation.cart]
            unit.apply(change._replace(cart=cart._replace(revision=cart.revision + 1)))
            reservation = change.lines[0].reservation
            unit.put_reservation(retry_now(reservation, now))
        else:
            apply_transition(unit, reservation, retry_now(reservation, now), now)
        return reservation.reservation_id


@dataclass(frozen=True, slots=True)
class Release:
    """Release a reservation. With `force`, count it as released at once, without an answer of the Reservation API.

    The answer: with `force`, an alarm that says how much stock may still be held; otherwise None. Raises
    ReservationCommitted if it is committed or being committed, ReservationNotFound if it was purged.
    """

    found: Reservation
    reason: str
    force: bool

    def add_reads(self, reads: ReadSet) -> None:
        _add_reads(reads, self.found)

    def run(self, unit: UnitOfWork, now: int, new_id: NewId) -> str | None:
        before = _get_reservation(unit, self.found)
        if before.state is Observed.COMMITTED:
            raise ReservationCommitted(before.name, "COMMITTED")
        commit_was_rejected = before.settled and before.state is Observed.REJECTED
        if before.disposition is Disposition.COMMIT and not commit_was_rejected:
            raise ReservationCommitted(before.name, "COMMITTING")
        after = force_release(before, now) if self.force else release(before, now)
        if after is before:
            return None
        last_error = f"{RELEASED_BY_OPERATOR}: {self.reason}"
        seal_reason = before.seal_reason or RELEASED_BY_OPERATOR
        apply_transition(unit, before, after._replace(seal_reason=seal_reason, last_error=last_error), now)
        if before.checkout_id:
            # A checkout must not stay OPEN without one of its holds.
            evaluate_checkout(unit, before.cart.checkout(before.checkout_id), now)
        return _describe_forced_release(before) if self.force else None


def _describe_forced_release(before: Reservation) -> str:
    most = max(before.quantity, before.granted_quantity)
    return (
        "an operator forced its release, and the Reservation API has not confirmed it: "
        f"up to {most} of {before.sku} may still be held there; "
        f"the last answer was {before.state.name} for revision {before.observed_revision} of {before.revision}"
    )


def _add_reads(reads: ReadSet, found: Reservation) -> None:
    # The whole cart: a checkout of it may have begun since the reservation was read, and may end now.
    reads.add_cart(CartRead(found.cart))
    if found.checkout_id:
        reads.add_checkout(found.cart.checkout(found.checkout_id))
    reads.reservations.add((found.cart, found.reservation_id))
    reads.skus.add((found.cart, found.sku))


def _get_reservation(unit: UnitOfWork, found: Reservation) -> Reservation:
    current = unit.reservations.get(found.reservation_id)
    if current is None or current.cart != found.cart:
        # It was purged, or it has moved to another cart since it was read.
        raise ReservationNotFound(found.name)
    return current
