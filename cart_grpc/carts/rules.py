"""The rules of the calls: pure functions from a loaded cart and a call to the change.

`decide` is the entry point. It checks that the cart exists, that the etag matches and that the cart is open, in this
order. Then it runs the rule for the type of the call; long rules have files of their own. A rule takes an OpenCart, the
call and a Given. It returns a Change or raises CallRefused. A rule has no side effects: a transaction runs the rules of
many calls, and may be retried.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from cart_grpc.carts.add_items import add_items
from cart_grpc.carts.calls import (
    AddItems,
    Call,
    Change,
    ClearCart,
    CreateCart,
    DeleteCart,
    Given,
    ItemCall,
    LoadedCart,
    MergeCarts,
    OpenCart,
    RemoveItem,
    ReplaceItems,
    RetryReservation,
    UpdateCart,
    UpdateItem,
)
from cart_grpc.carts.lines import check_quantity, hold_quantity, take_out
from cart_grpc.carts.merge import find_repeated, merge_carts
from cart_grpc.carts.model import ENDED, Cart, CartState, Line
from cart_grpc.carts.progress import ProgressState, progress
from cart_grpc.carts.refusals import (
    AlreadyExists,
    CartClosed,
    CartNotFound,
    CurrencyMismatch,
    EtagMismatch,
    ItemNotFound,
)
from cart_grpc.carts.replace_items import replace_items
from cart_grpc.carts.totals import (
    adopt_currency,
    check_size,
    frozen,
    recount,
    relabel,
    start_cart,
    touch,
    without_price,
)


def decide(loaded: LoadedCart, call: Call, given: Given) -> Change:
    """The change that `call` makes. Raises CallRefused.

    If the call names several carts, this checks the first one, and the rule checks the others.
    """
    rule, needs, find_repeated = RULES[type(call)]
    if find_repeated and (repeated := find_repeated(loaded, call)):
        _check_etag(loaded, call.etag)
        return repeated
    cart = _get_open_cart(loaded, call.etag, needs, given)
    is_new = cart is not loaded.cart
    lines: Mapping[str, Line] = {} if is_new else loaded.lines
    opened = OpenCart(cart, lines, loaded.releasing, loaded.others, is_new, loaded.rest_of_user)
    change = rule(opened, call, given)
    check_size(cart, change.cart, given.limits.max_cart_bytes)
    return change._replace(before=lines, currency_before=cart.currency_code)


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
    _check_etag(loaded, etag)
    if cart is None or (may_start and cart.state in ENDED):
        return start_cart(loaded.key, cart, given)
    if cart.state is CartState.CHECKING_OUT:
        raise frozen(cart, loaded.checkout)
    if needs is Needs.NO_OPEN_CART:
        raise AlreadyExists(loaded.key.name)
    if cart.state is not CartState.ACTIVE:
        raise CartClosed(loaded.key.name, cart.state.name)
    return cart


def _check_etag(loaded: LoadedCart, etag: str) -> None:
    if etag and etag != (current_etag := loaded.cart.etag if loaded.cart else ""):
        raise EtagMismatch(loaded.key.name, etag, current_etag)


def _update_item(loaded: OpenCart, call: UpdateItem, given: Given) -> Change:
    cart, before, update = loaded.cart, _get_line(loaded, call), call.update
    item = before.item
    if "quantity" in update.paths:
        check_quantity(cart.key, item.item_id, update.quantity, given)
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
        after = hold_quantity(after, loaded.releasing, given)
    return Change(touch(recount(cart, counted, after), given.now), (after,))


def _remove_item(loaded: OpenCart, call: RemoveItem, given: Given) -> Change:
    return take_out(loaded.cart, [_get_line(loaded, call)], given.now)


def _clear_cart(loaded: OpenCart, _: ClearCart, given: Given) -> Change:
    if not loaded.lines:
        return Change(loaded.cart, releasing=loaded.releasing)
    return take_out(loaded.cart, loaded.lines.values(), given.now)


def _delete_cart(loaded: OpenCart, _: DeleteCart, given: Given) -> Change:
    return take_out(loaded.cart._replace(state=CartState.DELETED), loaded.lines.values(), given.now)


def expire_cart(loaded: LoadedCart, now: int) -> Change | None:
    """End a cart whose ttl has passed since its last change; None if it has not, or if the cart has ended already."""
    cart = loaded.cart
    if cart is None or cart.state is not CartState.ACTIVE or cart.expire_time is None or cart.expire_time > now:
        return None
    return take_out(cart._replace(state=CartState.EXPIRED), loaded.lines.values(), now)


def erase_cart(loaded: LoadedCart, now: int) -> Change | None:
    """End an ACTIVE cart as DELETED, for an operator; None if there is no such cart."""
    cart = loaded.cart
    if cart is None or cart.state is not CartState.ACTIVE:
        return None
    return take_out(cart._replace(state=CartState.DELETED), loaded.lines.values(), now)


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
        if update.currency_code and cart.priced_count and update.currency_code != cart.currency_code:
            raise CurrencyMismatch(cart.key.name, cart.currency_code, update.currency_code)
        cart = _own_currency(cart, update.currency_code)
    changed = loaded.cart if cart == loaded.cart else touch(cart, given.now)
    return Change(changed, tuple(loaded.lines.values()), releasing=loaded.releasing)


def _own_currency(cart: Cart, code: str) -> Cart:
    """The cart with a currency that stays when its last price goes; "" leaves the currency to the prices."""
    of_prices = cart.currency_code if cart.priced_count else ""
    return cart._replace(currency_code=code or of_prices, owns_currency=bool(code))


def _retry_reservation(loaded: OpenCart, call: RetryReservation, given: Given) -> Change:
    line = _get_line(loaded, call)
    if progress(line, given.now).state not in (ProgressState.REJECTED, ProgressState.EXPIRED):
        return Change(loaded.cart, (line,))
    return Change(touch(loaded.cart, given.now), (hold_quantity(line, loaded.releasing, given),))


def _get_line(loaded: OpenCart, call: ItemCall) -> Line:
    line = loaded.lines.get(call.item_id)
    if line is None:
        raise ItemNotFound(loaded.cart.key.item_name(call.item_id))
    return line


class Rule(NamedTuple):
    """The rule for one type of call, and the state of the cart that it needs.

    `find_repeated` returns the result of a call whose effect is there already, whatever the state of the cart.
    """

    change: Callable[[OpenCart, Any, Given], Change]
    needs: Needs = Needs.OPEN_CART
    find_repeated: Callable[[LoadedCart, Any], Change | None] | None = None


RULES: dict[type[Call], Rule] = {
    AddItems: Rule(add_items, Needs.OPEN_CART_OR_NONE),
    ReplaceItems: Rule(replace_items, Needs.OPEN_CART_OR_NONE),
    UpdateItem: Rule(_update_item),
    RemoveItem: Rule(_remove_item),
    ClearCart: Rule(_clear_cart),
    DeleteCart: Rule(_delete_cart),
    CreateCart: Rule(_create_cart, Needs.NO_OPEN_CART),
    UpdateCart: Rule(_update_cart),
    MergeCarts: Rule(merge_carts, Needs.OPEN_CART_OR_NONE, find_repeated),
    RetryReservation: Rule(_retry_reservation),
}
