"""The rules of the calls: pure functions from a loaded cart and a call to the change.

`decide` is the entry point. It checks that the cart exists, that the etag matches and that the cart is open, in this
order. Then it runs the rule for the type of the call. A rule takes an OpenCart, the call and a Given. It returns a
Change or raises CallRefused. A rule has no side effects: a transaction runs the rules of many calls, and may be
retried.
"""

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import Any, NamedTuple

from cart_grpc.carts.calls import (
    AddItems,
    Addition,
    Call,
    Change,
    ClearCart,
    CreateCart,
    DeleteCart,
    Given,
    ItemCall,
    LoadedCart,
    OpenCart,
    RemoveItem,
    RetryReservation,
    UpdateCart,
    UpdateItem,
)
from cart_grpc.carts.checkout_refusals import CartFrozen
from cart_grpc.carts.model import ENDED, Cart, CartState, Checkout, Item, Line
from cart_grpc.carts.progress import ProgressState, progress
from cart_grpc.carts.refusals import (
    AlreadyExists,
    CartClosed,
    CartNotFound,
    CurrencyMismatch,
    EtagMismatch,
    ItemNotFound,
    LimitExceeded,
)
from cart_grpc.carts.totals import adopt_currency, check_size, recount, relabel, start_cart, touch, without_price
from cart_grpc.protocol.reservation import Disposition, Reservation
from cart_grpc.protocol.transitions import hold, release


def decide(loaded: LoadedCart, call: Call, given: Given) -> Change:
    """The change that `call` makes. Raises CallRefused.

    If the call names several carts, this checks the first one, and the rule checks the others.
    """
    rule, needs = RULES[type(call)]
    cart = _get_open_cart(loaded, call.etag, needs, given)
    lines = loaded.lines if cart is loaded.cart else {}
    change = rule(OpenCart(cart, lines, loaded.releasing, loaded.others), call, given)
    check_size(cart, change.cart, given.limits.max_cart_bytes)
    return change


class Needs(Enum):
    """The state of the cart that a call needs."""

    OPEN_CART = 1
    OPEN_CART_OR_NONE = 2
    NO_OPEN_CART = 3


def _get_open_cart(loaded: LoadedCart, etag: str, needs: Needs, given: Given) -> Cart:
    """The open cart that the call applies to: the loaded one, or a new one if the call may start a cart.

    The order of the checks is part of the API: callers rely on it.
    """
    cart = loaded.cart
    may_start = needs is not Needs.OPEN_CART
    if cart is None and not may_start:
        raise CartNotFound(loaded.key.name)
    if etag and etag != (current_etag := cart.etag if cart else ""):
        raise EtagMismatch(loaded.key.name, etag, current_etag)
    if cart is None or (may_start and cart.state in ENDED):
        return start_cart(loaded.key, cart, given)
    if cart.state is CartState.CHECKING_OUT:
        raise frozen(cart, loaded.checkout)
    if needs is Needs.NO_OPEN_CART:
        raise AlreadyExists(loaded.key.name)
    if cart.state is not CartState.ACTIVE:
        raise CartClosed(loaded.key.name, cart.state.name)
    return cart


def frozen(cart: Cart, checkout: Checkout | None) -> CartFrozen:
    """The refusal of a change of a cart that is CHECKING_OUT. `checkout` is its checkout."""
    # A cart without its checkout can come only from a database that was changed by hand.
    end = checkout.expire_time if checkout else cart.update_time
    return CartFrozen(cart.key.name, cart.key.checkout(cart.checkout_id).name, end)


def _add_items(loaded: OpenCart, call: AddItems, given: Given) -> Change:
    merged = _merge(call.additions)
    cart, replaced = loaded.cart, {}
    for addition in merged:
        before = loaded.lines.get(addition.item_id)
        if before and addition.unit_price:
            # The old price does not count against the new one's currency.
            replaced[addition.item_id] = without_price(before)
            cart = recount(cart, before, replaced[addition.item_id])
    cart = adopt_currency(cart, (addition.unit_price for addition in merged))
    lines = []
    for addition in merged:
        before = loaded.lines.get(addition.item_id)
        after = _add(loaded, before, addition, given)
        cart = recount(cart, replaced.get(addition.item_id, before), after)
        lines.append(after)
    most = given.limits.max_items_per_cart
    if cart.item_count > most:
        raise LimitExceeded(cart.key.name, "items_per_cart", most, cart.item_count)
    return Change(touch(cart, given.now), tuple(lines))


def _merge(additions: Sequence[Addition]) -> Iterable[Addition]:
    """Sum the additions to one line, in the order of their first appearance. Later prices and labels win."""
    merged: dict[str, Addition] = {}
    for addition in additions:
        first = merged.setdefault(addition.item_id, addition)
        if first is not addition:
            merged[addition.item_id] = addition._replace(
                quantity=first.quantity + addition.quantity,
                unit_price=addition.unit_price or first.unit_price,
                labels=first.labels if addition.labels is None else addition.labels,
            )
    return merged.values()


def _add(loaded: OpenCart, before: Line | None, addition: Addition, given: Given) -> Line:
    quantity = addition.quantity + (before.item.quantity if before else 0)
    most = given.limits.max_quantity_per_item
    if quantity > most:
        raise LimitExceeded(loaded.cart.key.item_name(addition.item_id), "quantity_per_item", most, quantity)
    price = addition.unit_price.minor_units if addition.unit_price else None
    if before is None:
        item = Item(
            loaded.cart.key,
            addition.item_id,
            given.new_id(),
            addition.sku,
            addition.options,
            quantity,
            price,
            addition.labels or {},
            reservation_id="",
            create_time=given.now,
            update_time=given.now,
        )
        return _reserve(item, loaded.releasing, given)
    item = before.item._replace(
        quantity=quantity,
        unit_price=before.item.unit_price if price is None else price,
        labels=before.item.labels if addition.labels is None else addition.labels,
        update_time=given.now,
    )
    return _hold_quantity(loaded, Line(item, before.reservation), given)


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


def _hold_quantity(loaded: OpenCart, line: Line, given: Given) -> Line:
    """The line with a reservation that intends the item's quantity. A closed reservation is replaced by a new one."""
    if not line.reservation.is_closed:
        return Line(line.item, hold(line.reservation, line.item.quantity, given.now))
    sku = line.item.sku
    return _reserve(line.item, {*loaded.releasing, sku} if line.reservation.releasing else loaded.releasing, given)


def _update_item(loaded: OpenCart, call: UpdateItem, given: Given) -> Change:
    cart, before, update = loaded.cart, _get_line(loaded, call), call.update
    item = before.item
    if "quantity" in update.paths:
        most = given.limits.max_quantity_per_item
        if update.quantity > most:
            raise LimitExceeded(item.name, "quantity_per_item", most, update.quantity)
        item = item._replace(quantity=update.quantity)
    counted = before
    if "unit_price" in update.paths:
        # The old price does not count against the new one's currency.
        counted = without_price(before)
        cart = adopt_currency(recount(cart, before, counted), [update.unit_price])
        item = item._replace(unit_price=update.unit_price.minor_units if update.unit_price else None)
    if "labels" in update.paths:
        item = item._replace(labels=update.labels)
    if item == before.item and cart.currency_code == loaded.cart.currency_code:
        return Change(loaded.cart, (before,))
    after = Line(item._replace(update_time=given.now), before.reservation)
    if item.quantity != before.item.quantity:
        after = _hold_quantity(loaded, after, given)
    return Change(touch(recount(cart, counted, after), given.now), (after,))


def _remove_item(loaded: OpenCart, call: RemoveItem, given: Given) -> Change:
    return _take_out(loaded.cart, [_get_line(loaded, call)], given.now)


def _clear_cart(loaded: OpenCart, _: ClearCart, given: Given) -> Change:
    if not loaded.lines:
        return Change(loaded.cart, releasing=loaded.releasing)
    return _take_out(loaded.cart, loaded.lines.values(), given.now)


def _delete_cart(loaded: OpenCart, _: DeleteCart, given: Given) -> Change:
    return _take_out(loaded.cart._replace(state=CartState.DELETED), loaded.lines.values(), given.now)


def expire_cart(loaded: LoadedCart, now: int) -> Change | None:
    """End a cart whose ttl has passed since its last change; None if it has not, or if the cart has ended already."""
    cart = loaded.cart
    if cart is None or cart.state is not CartState.ACTIVE or cart.expire_time is None or cart.expire_time > now:
        return None
    return _take_out(cart._replace(state=CartState.EXPIRED), loaded.lines.values(), now)


def _take_out(cart: Cart, lines: Iterable[Line], now: int) -> Change:
    """Remove the lines and release their reservations, in any state."""
    removed = []
    for line in lines:
        cart = recount(cart, line, None)
        removed.append(Line(line.item, release(line.reservation, now)))
    return Change(touch(cart, now), removed=tuple(removed))


def _create_cart(loaded: OpenCart, call: CreateCart, given: Given) -> Change:
    values = call.values
    cart = _own_currency(relabel(loaded.cart, values.labels), values.currency_code)._replace(ttl_us=values.ttl_us)
    return Change(touch(cart, given.now), releasing=loaded.releasing)


def _update_cart(loaded: OpenCart, call: UpdateCart, given: Given) -> Change:
    cart, update = loaded.cart, call.update
    if "labels" in update.paths:
        cart = relabel(cart, update.labels)
    if "ttl" in update.paths:
        cart = cart._replace(ttl_us=update.ttl_us)
    if "currency_code" in update.paths:
        if cart.priced_count and update.currency_code != cart.currency_code:
            raise CurrencyMismatch(cart.key.name, cart.currency_code, update.currency_code)
        cart = _own_currency(cart, update.currency_code)
    changed = loaded.cart if cart == loaded.cart else touch(cart, given.now)
    return Change(changed, tuple(loaded.lines.values()), releasing=loaded.releasing)


def _own_currency(cart: Cart, code: str) -> Cart:
    """The cart with a currency that stays when its last price goes; "" leaves the currency to the prices."""
    return cart._replace(currency_code=code, owns_currency=bool(code))


def _retry_reservation(loaded: OpenCart, call: RetryReservation, given: Given) -> Change:
    line = _get_line(loaded, call)
    if progress(line, given.now).state not in (ProgressState.REJECTED, ProgressState.EXPIRED):
        return Change(loaded.cart, (line,))
    return Change(touch(loaded.cart, given.now), (_hold_quantity(loaded, line, given),))


def _get_line(loaded: OpenCart, call: ItemCall) -> Line:
    line = loaded.lines.get(call.item_id)
    if line is None:
        raise ItemNotFound(loaded.cart.key.item_name(call.item_id))
    return line


class Rule(NamedTuple):
    """The rule for one type of call, and the state of the cart that it needs."""

    change: Callable[[OpenCart, Any, Given], Change]
    needs: Needs = Needs.OPEN_CART


RULES: dict[type[Call], Rule] = {
    AddItems: Rule(_add_items, Needs.OPEN_CART_OR_NONE),
    UpdateItem: Rule(_update_item),
    RemoveItem: Rule(_remove_item),
    ClearCart: Rule(_clear_cart),
    DeleteCart: Rule(_delete_cart),
    CreateCart: Rule(_create_cart, Needs.NO_OPEN_CART),
    UpdateCart: Rule(_update_cart),
    RetryReservation: Rule(_retry_reservation),
}
