"""The rules for the reservations of two carts that are merged.

A reservation moves with its item and keeps its id. If both carts have the item, one of the two reservations takes the
quantity of the other one over. The other one is *superseded*: it keeps its hold until the first one is decided, so
that the customer has at least that much meanwhile. If that decision is a refusal, our own old hold may have been what
was missing. So the first one asks once more, after the superseded one is released. A merge can also leave an item
beside an older reservation that is still being released. Then the same applies to every new quantity of the item.

All functions are pure. Times are int microseconds since the Unix epoch in UTC.
"""

from cart_grpc.names import CartKey
from cart_grpc.protocol.reservation import Observed, Reservation
from cart_grpc.protocol.transitions import hold, is_refused, release, wait_again


def move(reservation: Reservation, cart: CartKey, now: int) -> Reservation:
    """The row as part of another cart.

    This ends the claim of a call under way, because that call's answer names the old cart and is dropped. The next
    claim sends the same revision and gets the same decision.
    """
    if reservation.lease_expire_time is None:
        return reservation._replace(cart=cart)
    return reservation._replace(
        cart=cart, due_time=now, lease_epoch=reservation.lease_epoch + 1, lease_expire_time=None
    )


def ask_beside_release(reservation: Reservation) -> Reservation:
    """The row, whose cart still releases an older reservation of the same sku. If it is refused, it asks once more.

    `reservation` has a new revision or a new cart, so a record of an earlier claim cannot settle it.
    """
    is_decided = reservation.settled or reservation.is_closed
    return reservation if is_decided or reservation.waiting else reservation._replace(supersedes=True)


def may_hold_stock(reservation: Reservation) -> bool:
    """Whether the Reservation API may hold stock for it: no answer proves that it does not."""
    if reservation.finish_time is not None:
        return False
    return not reservation.settled or (reservation.state is not Observed.EXPIRED and reservation.granted_quantity > 0)


def take_over(
    kept: Reservation, kept_held: int, other: Reservation, other_held: int, quantity: int, now: int
) -> tuple[Reservation, Reservation]:
    """The rows once `kept` intends to hold `quantity` for both of them. `kept` must not be closed.

    `kept_held` and `other_held` are the quantities that are certainly held. `other` is superseded if it holds any and
    `kept` has to grow; otherwise it is released at once.
    """
    grows = quantity > kept_held
    if grows or quantity != kept.quantity:
        kept = hold(kept, quantity, now)
    if grows and may_hold_stock(other):
        kept = kept._replace(supersedes=True)
    if grows and other_held and not other.is_closed:
        return kept, other._replace(superseded_by=kept.reservation_id)
    return kept, release(other, now)


def has_taken_over(reservation: Reservation) -> bool:
    """Whether those that it supersedes are to be released now: it is decided, or it will hold nothing."""
    return reservation.supersedes and (reservation.settled or reservation.is_closed)


def finish_take_over(reservation: Reservation, now: int, *, waits: bool) -> Reservation:
    """The row that has taken over, once those that it superseded intend RELEASE. If it was refused, it asks once more.

    `waits`: one of them may still hold stock. The row then waits for its release, but not longer than its own hold
    lasts without a renewal.
    """
    done = reservation._replace(supersedes=False)
    # A seal follows an error that a release of stock does not mend.
    if not is_refused(done) or done.seal_reason:
        return done
    return wait_again(done, now) if waits else hold(done, done.quantity, now)
