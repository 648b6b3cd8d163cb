"""The one way in which a reservation changes without its caller."""

from cart_grpc.carts.progress import progress
from cart_grpc.commands.unit_of_work import UnitOfWork
from cart_grpc.protocol.reservation import Disposition, Reservation
from cart_grpc.protocol.transitions import stop_waiting


def apply_transition(working: UnitOfWork, before: Reservation, after: Reservation, now: int) -> None:
    """Put `after` in the place of `before`: callers see that the cart changed, and what waited for a release goes on.

    `working` has the cart, the item and, where `after` is a release, the sku. What nobody has claimed changes with its
    cart's revision only, whatever of it does: `cart_json` counts on that.
    """
    if after == before:
        return
    # At 0, too: what has run out has not, once the database's clock is set back.
    shows = before.lease_expire_time is None or any(
        _visible(working, before, time) != _visible(working, after, time) for time in (now, 0)
    )
    working.put_reservation(after)
    if after.settled and not before.settled and after.disposition is Disposition.RELEASE:
        shows = _stop_waiting(working, after, now) or shows
    # An ended cart is purged once nothing of it is reconciling; an operator may set that going again.
    cart = working.carts.get(after.cart)
    if shows and cart:
        working.put_cart(cart._replace(revision=cart.revision + 1))


def _visible(working: UnitOfWork, reservation: Reservation, now: int) -> object:
    """What a caller can see of a reservation: its item's progress, or whether it is still going once removed."""
    line = working.find_line(reservation.cart, reservation.item_id)
    if line is None or line.item.reservation_id != reservation.reservation_id:
        return reservation.reconciling
    seen = progress(line._replace(reservation=reservation), now)
    return (seen.state, seen.reserved_quantity, seen.reason, reservation.reconciling)


def _stop_waiting(working: UnitOfWork, released: Reservation, now: int) -> bool:
    """Make due what waited for this release, unless another old reservation of the sku is still going.

    Returns whether there was anything.
    """
    same_sku = working.of_sku(released.cart, released.sku)
    if any(other.releasing for other in same_sku):
        return False
    waiting = [other for other in same_sku if other.waiting]
    for other in waiting:
        working.put_reservation(stop_waiting(other, now))
    return bool(waiting)
