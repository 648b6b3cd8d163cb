"""Reservations, lines and decisions for the tests of the pure rules."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cart_grpc.carts.model import Item, Line
from cart_grpc.names import cart_key, item_id_of, user_key
from cart_grpc.protocol.reservation import Decision, Disposition, Observed, Reservation
from cart_grpc.protocol.transitions import merge_decision

SECOND = 1_000_000
NOW = 1_770_000_000 * SECOND
LATER = NOW + 600 * SECOND
KEY = cart_key(user_key("alice"), "default")
SKU = "espresso-beans"


def numbered_ids() -> Callable[[], str]:
    """A source of ids that never repeats an id."""
    numbers = itertools.count(1)
    return lambda: f"id-{next(numbers)}"


def a_hold(quantity: int = 2, **changes: Any) -> Reservation:
    """A new reservation: revision 1, due now, nothing observed."""
    made = Reservation(
        reservation_id="r-1",
        cart=KEY,
        item_id=item_id_of(SKU, {}),
        sku=SKU,
        quantity=quantity,
        disposition=Disposition.HOLD,
        ttl_us=600 * SECOND,
        revision=1,
        intent_revision=1,
        reserved_cap=quantity,
        create_time=NOW,
        due_time=NOW,
    )
    return made._replace(**changes)


def decided(reservation: Reservation, state: Observed, granted: int = 0, **changes: Any) -> Decision:
    """A decision on the latest revision of `reservation`, with `changes`."""
    expire_time = LATER if granted else None
    decision = Decision(reservation.reservation_id, reservation.revision, state, granted, expire_time, "")
    return replace(decision, **changes)


def held(reservation: Reservation) -> Decision:
    """The decision that holds the whole quantity."""
    return decided(reservation, Observed.HELD, reservation.quantity)


def a_held(quantity: int = 2) -> Reservation:
    """A settled reservation that holds `quantity`."""
    hold = a_hold(quantity)
    return merge_decision(hold, held(hold))._replace(due_time=None)


def line_of(reservation: Reservation, quantity: int | None = None) -> Line:
    """The line of `reservation`. Its item has `quantity`, by default the quantity that the reservation intends."""
    wanted = reservation.quantity if quantity is None else quantity
    item = Item(KEY, reservation.item_id, "uid", SKU, {}, wanted, None, {}, reservation.reservation_id, NOW, NOW)
    return Line(item, reservation)
