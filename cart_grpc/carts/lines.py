"""Steps that the rules share for lines: create one, change its quantity, take it out."""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from cart_grpc.carts.calls import Addition, Change, Given
from cart_grpc.carts.model import Cart, Item, Line
from cart_grpc.carts.refusals import LimitExceeded
from cart_grpc.carts.totals import recount, touch
from cart_grpc.names import CartKey
from cart_grpc.protocol.merging import ask_beside_release
from cart_grpc.protocol.reservation import Disposition, Reservation
from cart_grpc.protocol.transitions import hold, release


def sum_up(additions: Sequence[Addition]) -> Sequence[Addition]:
    """Sum the additions to one line, in the order of their first appearance. Later prices and labels win."""
    if len(additions) == 1:
        return additions
    summed: dict[str, Addition] = {}
    for addition in additions:
        first = summed.setdefault(addition.item_id, addition)
        if first is not addition:
            summed[addition.item_id] = addition._replace(
                quantity=first.quantity + addition.quantity,
                unit_price=addition.unit_price or first.unit_price,
                labels=first.labels if addition.labels is None else addition.labels,
            )
    return list(summed.values())


def create_line(cart: CartKey, addition: Addition, releasing: AbstractSet[str], given: Given) -> Line:
    """A new line and its reservation. It waits if `releasing`, the skus with an unfinished release, has its sku."""
    item = Item(
        cart,
        addition.item_id,
        given.new_id(),
        addition.sku,
        addition.options,
        addition.quantity,
        addition.unit_price.minor_units if addition.unit_price else None,
        addition.labels or {},
        reservation_id="",
        create_time=given.now,
        update_time=given.now,
    )
    return _reserve(item, releasing, given)


def _reserve(item: Item, releasing: AbstractSet[str], given: Given) -> Line:
    """`item` with a new reservation, which waits until the older ones of the same sku are known to be released.

    Without the wait, our own old hold could be the reason why the new one is out of stock.
    """
    waiting = item.sku in releasing
    reservation = Reservation(
        reservation_id=given.new_id(),
        cart=item.cart,
        item_id=item.item_id,
        sku=item.sku,
        quantity=item.quantity,
        disposition=Disposition.HOLD,
        ttl_us=given.limits.hold_ttl_us,
        revision=1,
        intent_revision=1,
        reserved_cap=item.quantity,
        create_time=given.now,
        waiting=waiting,
        due_time=None if waiting else given.now,
    )
    return Line(item._replace(reservation_id=reservation.reservation_id), reservation)


def hold_quantity(line: Line, releasing: AbstractSet[str], given: Given) -> Line:
    """The line with a reservation that intends the item's quantity. A closed reservation is replaced by a new one.

    `releasing` is as in `create_line`.
    """
    if not line.reservation.is_closed:
        row = hold(line.reservation, line.item.quantity, given.now)
        return Line(line.item, ask_beside_release(row) if row.sku in releasing else row)
    return _reserve(line.item, {*releasing, line.item.sku} if line.reservation.releasing else releasing, given)


def release_line(line: Line, now: int) -> Line:
    """The line as it is removed: its reservation, in any state, intends RELEASE."""
    return Line(line.item, release(line.reservation, now))


def take_out(cart: Cart, lines: Iterable[Line], now: int) -> Change:
    """Remove the lines."""
    removed = []
    for line in lines:
        cart = recount(cart, line, None)
        removed.append(release_line(line, now))
    return Change(touch(cart, now), removed=tuple(removed))


def check_quantity(cart: CartKey, item_id: str, quantity: int, given: Given) -> None:
    """Raise LimitExceeded if one item would have too many units."""
    most = given.limits.max_quantity_per_item
    if quantity > most:
        raise LimitExceeded(cart.item_name(item_id), "quantity_per_item", most, quantity)


def check_item_count(before: Cart, after: Cart, given: Given) -> None:
    """Raise LimitExceeded if a cart with too many items gets more. The limit may have been lowered."""
    most = given.limits.max_items_per_cart
    if after.item_count > most and after.item_count > before.item_count:
        raise LimitExceeded(after.key.name, "items_per_cart", most, after.item_count)
