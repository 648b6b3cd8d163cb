"""Corruptions of one table, so that the tables disagree."""

import random

from cart_grpc.carts.model import CartState, UserTotals
from cart_grpc.protocol.reservation import Disposition, Reservation
from tests.invariants.corruptions.registry import must_report, pick, swap, with_dump, with_row
from tests.invariants.run import Run


@must_report("is the reservation of 2 items")
def two_items_share_a_reservation(run: Run, rng: random.Random) -> Run:
    item = pick(rng, run.dump.items)
    return with_dump(run, items=[*run.dump.items, item._replace(item_id="0" * 32)])


@must_report("has no reservation")
def an_item_has_no_reservation(run: Run, rng: random.Random) -> Run:
    item = pick(rng, run.dump.items)
    return with_dump(
        run, reservations=[row for row in run.dump.reservations if row.reservation_id != item.reservation_id]
    )


def _of_item(run: Run, rng: random.Random) -> Reservation:
    names = {item.reservation_id for item in run.dump.items}
    return pick(rng, (row for row in run.dump.reservations if row.reservation_id in names and not row.seal_reason))


def _without_item(run: Run, rng: random.Random) -> Reservation:
    names = {item.reservation_id for item in run.dump.items}
    return pick(rng, (row for row in run.dump.reservations if row.reservation_id not in names))


@must_report("has the reservation of another item")
def an_item_has_anothers_reservation(run: Run, rng: random.Random) -> Run:
    row = _of_item(run, rng)
    return with_row(run, row, sku="another")


@must_report("is in its cart, but its reservation has the intent RELEASE")
def an_item_in_its_cart_is_released(run: Run, rng: random.Random) -> Run:
    row = _of_item(run, rng)
    return with_row(run, row, disposition=Disposition.RELEASE)


@must_report("but the intent is to reserve")
def another_quantity_is_intended(run: Run, rng: random.Random) -> Run:
    row = _of_item(run, rng)
    return with_row(run, row, quantity=row.quantity + 1)


@must_report("but its sealed hold keeps")
def a_sealed_hold_keeps_more_than_wanted(run: Run, rng: random.Random) -> Run:
    row = _of_item(run, rng)
    return with_row(run, row, quantity=row.quantity + 1, seal_reason="NOT_TODAY")


@must_report("belongs to no item, but its intent is not RELEASE")
def a_removed_item_is_not_released(run: Run, rng: random.Random) -> Run:
    row = _without_item(run, rng)
    return with_row(run, row, disposition=Disposition.HOLD)


@must_report("is in a cart that is not open")
def an_item_is_in_a_closed_cart(run: Run, rng: random.Random) -> Run:
    cart = pick(rng, (cart for cart in run.dump.carts if cart.item_count))
    return with_dump(run, carts=swap(run.dump.carts, cart, cart._replace(state=CartState.DELETED)))


@must_report("but its items make")
def a_total_is_wrong(run: Run, rng: random.Random) -> Run:
    cart = pick(rng, run.dump.carts)
    total = rng.choice(("item_count", "priced_count", "total_quantity", "subtotal", "byte_size"))
    return with_dump(run, carts=swap(run.dump.carts, cart, cart._replace(**{total: getattr(cart, total) + 1})))


@must_report("counts UserTotals.*, but its rows make")
def a_total_of_a_user_is_wrong(run: Run, rng: random.Random) -> Run:
    user = pick(rng, sorted(run.dump.totals))
    total, field = run.dump.totals[user], rng.choice(UserTotals._fields)
    wrong = total._replace(**{field: getattr(total, field) + 1})
    return with_dump(run, totals={**run.dump.totals, user: wrong})


@must_report("is at revision .* was answered")
def a_cart_forgets_revisions(run: Run, rng: random.Random) -> Run:
    cart = pick(rng, run.dump.carts)
    return with_dump(run, carts=swap(run.dump.carts, cart, cart._replace(revision=0)))


@must_report("was the last in an answer")
def a_change_is_not_acknowledged(run: Run, rng: random.Random) -> Run:
    cart = pick(rng, run.dump.carts)
    return with_dump(run, carts=swap(run.dump.carts, cart, cart._replace(etag_revision=cart.revision + 1)))
