"""Changes of a reservation that no caller made, and the invariant that readers rely on."""

from collections.abc import Iterable, Sequence

from cart_grpc.carts.progress import progress, shown_fields
from cart_grpc.commands.unit_of_work import UnitOfWork
from cart_grpc.names import CartKey
from cart_grpc.protocol.merging import finish_take_over, has_taken_over
from cart_grpc.protocol.reservation import Disposition, Reservation
from cart_grpc.protocol.transitions import release, stop_waiting


def apply_transition(unit: UnitOfWork, before: Reservation, after: Reservation, now: int) -> None:
    """Replace `before` by `after`, and raise the cart's revision if it must rise.

    If `after` is released, the holds that waited for this release become due.

    `unit` must have loaded the cart, the item and, if `after` is a release, the reservations of its sku.

    Invariant: an unclaimed reservation never changes without raising its cart's revision.

    A reader that knows a cart's revision relies on it: while no reservation of the cart is claimed or due, the same
    revision means the same cart (see `store.read.cache_validator`). `must_raise_revision` decides for every command
    that goes through here. The other writers keep the invariant as follows:
    - a caller's change always raises the revision (`carts.rules`), and so does `release_superseded`;
    - claiming changes only a due reservation, which is claimed afterwards; a returned claim leaves it due;
    - extending a lease needs a claim;
    - setting aside changes only a due or claimed reservation;
    - purging deletes only reservations without an item, which no reader shows;
    - a checkout that begins or thaws changes its cart, too, and a reservation that has passed to one is in no cart;
    - a restore runs only while no server runs, so no reader remembers a revision.
    """
    if after == before:
        return
    unit.put_reservation(after)
    changes = [(before, after)]
    if after.settled and not before.settled and after.disposition is Disposition.RELEASE:
        changes += _stop_waiting(unit, after, now)
    _raise_revision(unit, after.cart, changes, now)


def release_superseded(unit: UnitOfWork, now: int) -> None:
    """Release the reservations that a changed one superseded, if the changed one is now decided or released itself.

    A batch calls this after its commands, so that none of them can forget it. The commands that change a reservation
    have loaded the reconciling reservations of its sku.
    """
    done = [row for row in map(unit.reservations.__getitem__, sorted(unit.changed_reservations)) if has_taken_over(row)]
    for taker in done:
        same_sku = unit.reservations_of_sku(taker.cart, taker.sku)
        changes = [(row, release(row, now)) for row in same_sku if row.superseded_by == taker.reservation_id]
        # A superseded reservation may have superseded others in an earlier merge.
        done += [row for _, row in changes if has_taken_over(row)]
        waits = bool(changes) or any(row.releasing for row in same_sku)
        changes.append((taker, finish_take_over(taker, now, waits=waits)))
        for _, row in changes:
            unit.put_reservation(row)
        _raise_revision(unit, taker.cart, changes, now)


def _raise_revision(
    unit: UnitOfWork, key: CartKey, changes: Sequence[tuple[Reservation, Reservation]], now: int
) -> None:
    # The cart may be gone. An ended cart is purged once none of its reservations is reconciling, but an operator can
    # make such a reservation reconciling again.
    cart = unit.carts.get(key)
    of_cart = [(old, new) for old, new in changes if old.is_of_cart or new.is_of_cart]
    if cart and must_raise_revision(unit, of_cart, now):
        unit.put_cart(cart._replace(revision=cart.revision + 1))


def must_raise_revision(unit: UnitOfWork, changes: Iterable[tuple[Reservation, Reservation]], now: int) -> bool:
    """Whether the cart's revision must rise for `changes` (before, after) of its reservations.

    It must rise if callers can see the change. It must also rise if the reservation was unclaimed: that is the
    invariant of `apply_transition`. Time 0 is compared too: if the clock is set back, an expired hold is live again.
    """
    return any(
        before.lease_expire_time is None
        or any(_view(unit, before, time) != _view(unit, after, time) for time in (now, 0))
        for before, after in changes
    )


def find_visibility(before: Reservation, after: Reservation, now: int) -> bool | None:
    """Whether callers can see the change of a claimed reservation. None: it depends on the item."""
    if before.reconciling != after.reconciling:
        return True
    shown_alike = all(shown_fields(before, time) == shown_fields(after, time) for time in (now, 0))
    return False if shown_alike else None


def _view(unit: UnitOfWork, reservation: Reservation, now: int) -> object:
    """Return what callers can see of a reservation: its item's progress, or whether it is still being released."""
    line = unit.find_line(reservation.cart, reservation.item_id)
    if line is None or line.item.reservation_id != reservation.reservation_id:
        return reservation.reconciling or bool(reservation.superseded_by)
    seen = progress(line._replace(reservation=reservation), now)
    return (seen.state, seen.reserved_quantity, seen.reason, reservation.reconciling)


def _stop_waiting(unit: UnitOfWork, released: Reservation, now: int) -> list[tuple[Reservation, Reservation]]:
    """Make the holds due that waited for `released`, unless an older reservation of the sku is still being released.

    Returns each before and after.
    """
    same_sku = unit.reservations_of_sku(released.cart, released.sku)
    if any(other.releasing for other in same_sku):
        return []
    changes = [(other, stop_waiting(other, now)) for other in same_sku if other.waiting]
    for _, after in changes:
        unit.put_reservation(after)
    return changes
