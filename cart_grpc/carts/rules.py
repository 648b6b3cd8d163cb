"""What each call does to a cart: pure functions from what it touches to what it changes.

Every rule takes the contents it named, the arguments, the terms of service, the time and a source of ids, and
returns a Change or raises CallRefused. It may be run again, or in company: it touches nothing but what it was given.
"""

from collections.abc import Iterable, Sequence

from cart_grpc.carts.calls import Addition, CartUpdate, Change, ItemUpdate, Limits, LoadedCart, NewId
from cart_grpc.carts.model import ENDED, Cart, CartState, Item, Line, Money
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
from cart_grpc.protocol.reservation import Disposition, Reservation
from cart_grpc.protocol.transitions import hold, release

# What 64 bits hold: far away, unless the limits are raised.
MAX_SUBTOTAL = 2**63 - 1


def add_items(
    contents: LoadedCart, additions: Sequence[Addition], etag: str, limits: Limits, now: int, new_id: NewId
) -> Change:
    """Add to the lines with the same sku and options, or make them; start a cart where none is open."""
    _check_etag(contents, etag)
    cart = contents.cart
    if cart is None or cart.state in ENDED:
        cart = _start_cart(contents, limits.cart_ttl_us, now, new_id)
        contents = contents._replace(lines={})
    _check_open(cart)
    merged = _merge(additions)
    cart = _adopt_currency(cart, (addition.unit_price for addition in merged))
    lines = []
    for addition in merged:
        before = contents.lines.get(addition.item_id)
        after = _add(contents, before, addition, limits, now, new_id)
        cart = _recount(cart, before, after)
        lines.append(after)
    if cart.item_count > limits.max_items_per_cart:
        raise LimitExceeded(cart.key.name, "items_per_cart", limits.max_items_per_cart, cart.item_count)
    return Change(_touch(cart, now), tuple(lines))


def _merge(additions: Sequence[Addition]) -> Iterable[Addition]:
    """Sum the additions to one line, in the order of their first appearance; later prices and labels win."""
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


def _add(
    contents: LoadedCart, before: Line | None, addition: Addition, limits: Limits, now: int, new_id: NewId
) -> Line:
    quantity = addition.quantity + (before.item.quantity if before else 0)
    if quantity > limits.max_quantity_per_item:
        name = contents.key.item_name(addition.item_id)
        raise LimitExceeded(name, "quantity_per_item", limits.max_quantity_per_item, quantity)
    price = addition.unit_price.minor_units if addition.unit_price else None
    if before is None:
        item = Item(
            contents.key,
            addition.item_id,
            new_id(),
            addition.sku,
            addition.options,
            quantity,
            price,
            addition.labels or {},
            reservation_id="",
            create_time=now,
            update_time=now,
        )
        return _reserve(contents, item, limits, now, new_id)
    item = before.item._replace(
        quantity=quantity,
        unit_price=before.item.unit_price if price is None else price,
        labels=before.item.labels if addition.labels is None else addition.labels,
        update_time=now,
    )
    return _pursue(contents, Line(item, before.reservation), limits, now, new_id)


def _reserve(contents: LoadedCart, item: Item, limits: Limits, now: int, new_id: NewId) -> Line:
    """A new reservation for `item`, waiting where an older one of the same sku is not known to be released yet.

    Our own old hold could be what makes the new one out of stock.
    """
    waiting = item.sku in contents.releasing
    reservation = Reservation(
        reservation_id=new_id(),
        cart=item.cart,
        item_id=item.item_id,
        sku=item.sku,
        quantity=item.quantity,
        disposition=Disposition.HOLD,
        ttl_us=limits.hold_ttl_us,
        revision=1,
        intent_revision=1,
        reserved_cap=item.quantity,
        create_time=now,
        waiting=waiting,
        due_time=None if waiting else now,
    )
    return Line(item._replace(reservation_id=reservation.reservation_id), reservation)


def _pursue(contents: LoadedCart, line: Line, limits: Limits, now: int, new_id: NewId) -> Line:
    """The line with its quantity intended: under its reservation, or under a new one where that one is over."""
    if not line.reservation.is_closed:
        return Line(line.item, hold(line.reservation, line.item.quantity, now))
    if line.reservation.releasing:
        contents = contents._replace(releasing={*contents.releasing, line.item.sku})
    return _reserve(contents, line.item, limits, now, new_id)


def update_item(
    contents: LoadedCart, item_id: str, update: ItemUpdate, etag: str, limits: Limits, now: int, new_id: NewId
) -> Change:
    """Set an item's quantity, price or labels. Nothing is changed where they are so already."""
    cart, before = _get_line(contents, item_id, etag)
    item = before.item
    if "quantity" in update.paths:
        if update.quantity > limits.max_quantity_per_item:
            raise LimitExceeded(item.name, "quantity_per_item", limits.max_quantity_per_item, update.quantity)
        item = item._replace(quantity=update.quantity)
    if "unit_price" in update.paths:
        cart = _adopt_currency(cart, [update.unit_price])
        item = item._replace(unit_price=update.unit_price.minor_units if update.unit_price else None)
    if "labels" in update.paths:
        item = item._replace(labels=update.labels)
    if item == before.item:
        return Change(cart, (before,))
    after = Line(item._replace(update_time=now), before.reservation)
    if item.quantity != before.item.quantity:
        after = _pursue(contents, after, limits, now, new_id)
    return Change(_touch(_recount(cart, before, after), now), (after,))


def remove_item(contents: LoadedCart, item_id: str, etag: str, now: int) -> Change:
    """Take an item out of the cart; its reservation is to be released, however far it had got."""
    cart, line = _get_line(contents, item_id, etag)
    return _take_out(cart, [line], now)


def clear_cart(contents: LoadedCart, etag: str, now: int) -> Change:
    """Take every item out. An empty cart is left as it is."""
    cart = _get_open_cart(contents, etag)
    if not contents.lines:
        return Change(cart, releasing=contents.releasing)
    return _take_out(cart, contents.lines.values(), now)


def delete_cart(contents: LoadedCart, etag: str, now: int) -> Change:
    """End the cart and take every item out."""
    cart = _get_open_cart(contents, etag)
    return _take_out(cart._replace(state=CartState.DELETED), contents.lines.values(), now)


def expire_cart(contents: LoadedCart, now: int) -> Change | None:
    """End a cart that was left alone for longer than its ttl; None where it was not, or has ended already."""
    cart = contents.cart
    if cart is None or cart.state is not CartState.ACTIVE or cart.expire_time is None or cart.expire_time > now:
        return None
    return _take_out(cart._replace(state=CartState.EXPIRED), contents.lines.values(), now)


def _take_out(cart: Cart, lines: Iterable[Line], now: int) -> Change:
    removed = []
    for line in lines:
        cart = _recount(cart, line, None)
        removed.append(Line(line.item, release(line.reservation, now)))
    return Change(_touch(cart, now), removed=tuple(removed))


def create_cart(contents: LoadedCart, update: CartUpdate, etag: str, now: int, new_id: NewId) -> Change:
    """Start a cart under a name that has none, or one that has ended."""
    _check_etag(contents, etag)
    if contents.cart is not None and contents.cart.state not in ENDED:
        raise AlreadyExists(contents.key.name)
    cart = _start_cart(contents, update.ttl_us, now, new_id)
    cart = cart._replace(labels=update.labels, currency_code=update.currency_code)
    return Change(_touch(cart, now), releasing=contents.releasing)


def update_cart(contents: LoadedCart, update: CartUpdate, etag: str, now: int) -> Change:
    """Set a cart's labels, currency or lifetime. Nothing is changed where they are so already."""
    before = _get_open_cart(contents, etag)
    cart = before
    if "labels" in update.paths:
        cart = cart._replace(labels=update.labels)
    if "ttl" in update.paths:
        cart = cart._replace(ttl_us=update.ttl_us)
    if "currency_code" in update.paths and update.currency_code != cart.currency_code:
        if any(line.item.unit_price is not None for line in contents.lines.values()):
            raise CurrencyMismatch(cart.key.name, cart.currency_code, update.currency_code)
        cart = cart._replace(currency_code=update.currency_code)
    lines = tuple(contents.lines.values())
    return Change(before if cart == before else _touch(cart, now), lines, releasing=contents.releasing)


def retry_reservation(contents: LoadedCart, item_id: str, etag: str, limits: Limits, now: int, new_id: NewId) -> Change:
    """Ask again for a rejected or expired item; otherwise change nothing."""
    cart, line = _get_line(contents, item_id, etag)
    if progress(line, now).state not in (ProgressState.REJECTED, ProgressState.EXPIRED):
        return Change(cart, (line,))
    return Change(_touch(cart, now), (_pursue(contents, line, limits, now, new_id),))


def _get_open_cart(contents: LoadedCart, etag: str) -> Cart:
    if contents.cart is None:
        raise CartNotFound(contents.key.name)
    _check_etag(contents, etag)
    _check_open(contents.cart)
    return contents.cart


def _get_line(contents: LoadedCart, item_id: str, etag: str) -> tuple[Cart, Line]:
    cart = _get_open_cart(contents, etag)
    line = contents.lines.get(item_id)
    if line is None:
        raise ItemNotFound(contents.key.item_name(item_id))
    return cart, line


def _check_etag(contents: LoadedCart, etag: str) -> None:
    current = contents.cart.etag if contents.cart else ""
    if etag and etag != current:
        raise EtagMismatch(contents.key.name, etag, current)


def _check_open(cart: Cart) -> None:
    if cart.state is not CartState.ACTIVE:
        raise CartClosed(cart.key.name, cart.state.name)


def _start_cart(contents: LoadedCart, ttl_us: int | None, now: int, new_id: NewId) -> Cart:
    """A new cart; the revision goes on from the ended one's, so that a watcher of the name never sees it fall."""
    revision = contents.cart.revision if contents.cart else 0
    return Cart(
        key=contents.key,
        uid=new_id(),
        state=CartState.ACTIVE,
        labels={},
        currency_code="",
        ttl_us=ttl_us,
        item_count=0,
        total_quantity=0,
        subtotal=0,
        revision=revision,
        etag_revision=revision,
        create_time=now,
        update_time=now,
    )


def _touch(cart: Cart, now: int) -> Cart:
    return cart._replace(revision=cart.revision + 1, etag_revision=cart.revision + 1, update_time=now)


def _adopt_currency(cart: Cart, prices: Iterable[Money | None]) -> Cart:
    for price in prices:
        if price is None or price.currency_code == cart.currency_code:
            continue
        if cart.currency_code:
            raise CurrencyMismatch(cart.key.name, cart.currency_code, price.currency_code)
        cart = cart._replace(currency_code=price.currency_code)
    return cart


def _recount(cart: Cart, before: Line | None, after: Line | None) -> Cart:
    """The cart's totals once `before` has become `after`."""
    subtotal = cart.subtotal + _price(after) - _price(before)
    if subtotal > MAX_SUBTOTAL:
        raise LimitExceeded(cart.key.name, "subtotal", MAX_SUBTOTAL, subtotal)
    return cart._replace(
        item_count=cart.item_count + (after is not None) - (before is not None),
        total_quantity=cart.total_quantity + _quantity(after) - _quantity(before),
        subtotal=subtotal,
    )


def _quantity(line: Line | None) -> int:
    return line.item.quantity if line else 0


def _price(line: Line | None) -> int:
    return line.item.quantity * (line.item.unit_price or 0) if line else 0
