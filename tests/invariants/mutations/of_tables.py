"""Tables that do not agree."""

import random

from cart_grpc.carts.model import CartState
from cart_grpc.protocol.reservation import Disposition, Reservation
from tests.invariants.mutations.registry import pick, says, swap, with_dump, with_row
from tests.invariants.run import Run


@says("is the reservation of 2 items")
def two_items_share_a_reservation(run: Run, numbers: random.Random) -> Run:
    item = pick(numbers, run.dump.items)
    return with_dump(run, items=[*run.dump.items, item._replace(item_id="0" * 32)])


@says("has no reservation")
def an_item_has_no_reservation(run: Run, numbers: random.Random) -> Run:
    item = pick(numbers, run.dump.items)
    return with_dump(
        run, reservations=[row for row in run.dump.reservations if row.reservation_id != item.reservation_id]
    )


def _of_item(run: Run, numbers: random.Random) -> Reservation:
    names = {item.reservation_id for item in run.dump.items}
    return pick(numbers, (row for row in run.dump.reservations if row.reservation_id in names and not row.seal_reason))


def _of_nobody(run: Run, numbers: random.Random) -> Reservation:
    names = {item.reservation_id for item in run.dump.items}
    return pick(numbers, (row for row in run.dump.reservations if row.reservation_id not in names))


@says("has the reservation of another item")
def an_item_has_anothers_reservation(run: Run, numbers: random.Random) -> Run:
    row = _of_item(run, numbers)
    return with_row(run, row, sku="another")


@says("is in its cart, and its reservation is to be released")
def an_item_is_released(run: Run, numbers: random.Random) -> Run:
    row = _of_item(run, numbers)
    return with_row(run, row, disposition=Disposition.RELEASE)


@says("are intended to be reserved")
def another_quantity_is_intended(run: Run, numbers: random.Random) -> Run:
    row = _of_item(run, numbers)
    return with_row(run, row, quantity=row.quantity + 1)


@says("are kept for it")
def more_is_kept_than_wanted(run: Run, numbers: random.Random) -> Run:
    row = _of_item(run, numbers)
    return with_row(run, row, quantity=row.quantity + 1, seal_reason="NOT_TODAY")


@says("is no item's, and is to be kept")
def a_removed_item_is_not_released(run: Run, numbers: random.Random) -> Run:
    row = _of_nobody(run, numbers)
    return with_row(run, row, disposition=Disposition.HOLD)


@says("is in a cart that is not open")
def an_item_is_in_a_closed_cart(run: Run, numbers: random.Random) -> Run:
    cart = pick(numbers, (cart for cart in run.dump.carts if cart.item_count))
    return with_dump(run, carts=swap(run.dump.carts, cart, cart._replace(state=CartState.DELETED)))


@says("but its items make")
def a_total_is_wrong(run: Run, numbers: random.Random) -> Run:
    cart = pick(numbers, run.dump.carts)
    total = numbers.choice(("item_count", "total_quantity", "subtotal"))
    return with_dump(run, carts=swap(run.dump.carts, cart, cart._replace(**{total: getattr(cart, total) + 1})))


@says("is at revision .* was answered")
def a_cart_forgets_revisions(run: Run, numbers: random.Random) -> Run:
    cart = pick(numbers, run.dump.carts)
    return with_dump(run, carts=swap(run.dump.carts, cart, cart._replace(revision=0)))


@says("was the last that was answered")
def a_change_is_not_acknowledged(run: Run, numbers: random.Random) -> Run:
    cart = pick(numbers, run.dump.carts)
    return with_dump(run, carts=swap(run.dump.carts, cart, cart._replace(etag_revision=cart.revision + 1)))
