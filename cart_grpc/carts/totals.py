"""Steps that the rules share: start a cart, set its labels and currency, update its totals, mark it as changed."""

from collections.abc import Iterable, Mapping

from cart_grpc.carts.calls import Given
from cart_grpc.carts.checkout_refusals import CartFrozen
from cart_grpc.carts.model import Cart, CartState, Checkout, Line, Money
from cart_grpc.carts.refusals import CurrencyMismatch, LimitExceeded
from cart_grpc.carts.sizes import CART_ROOM, entries_bytes, item_bytes
from cart_grpc.names import CartKey

# The largest signed 64-bit integer: databases and protobuf cannot hold more.
MAX_SUBTOTAL = 2**63 - 1


def start_cart(key: CartKey, ended: Cart | None, given: Given) -> Cart:
    """A new empty cart. Its revision continues the ended cart's, so that watchers of the name never see it fall."""
    revision = ended.revision if ended else 0
    return Cart(
        key=key,
        uid=given.new_id(),
        state=CartState.ACTIVE,
        labels={},
        currency_code="",
        owns_currency=False,
        ttl_us=given.limits.cart_ttl_us,
        item_count=0,
        priced_count=0,
        total_quantity=0,
        subtotal=0,
        byte_size=CART_ROOM + len(key.name),
        revision=revision,
        etag_revision=revision,
        create_time=given.now,
        update_time=given.now,
    )


def frozen(cart: Cart, checkout: Checkout | None) -> CartFrozen:
    """The refusal of a change of a cart that is CHECKING_OUT. `checkout` is its checkout."""
    # A cart without its checkout can come only from a database that was changed by hand.
    end = checkout.expire_time if checkout else cart.update_time
    return CartFrozen(cart.key.name, cart.key.checkout(cart.checkout_id).name, end)


def touch(cart: Cart, now: int) -> Cart:
    """The cart after a caller's change: a new revision, and with it a new etag."""
    revision = cart.revision + 1
    return cart._replace(revision=revision, etag_revision=revision, update_time=now)


def relabel(cart: Cart, labels: Mapping[str, str]) -> Cart:
    """The cart with other labels."""
    growth = entries_bytes(labels) - entries_bytes(cart.labels)
    return cart._replace(labels=labels, byte_size=cart.byte_size + growth)


def adopt_currency(cart: Cart, prices: Iterable[Money | None]) -> Cart:
    """The cart, with the currency of `prices` if it has none yet. Raises CurrencyMismatch if it has another one."""
    for price in prices:
        if price is None or price.currency_code == cart.currency_code:
            continue
        if cart.currency_code:
            raise CurrencyMismatch(cart.key.name, cart.currency_code, price.currency_code)
        cart = cart._replace(currency_code=price.currency_code)
    return cart


def recount(cart: Cart, before: Line | None, after: Line | None) -> Cart:
    """The cart's totals once `before` has become `after`. Raises LimitExceeded if the subtotal exceeds 64 bits.

    A currency that came from a price ends with the last price.
    """
    subtotal = cart.subtotal + _price(after) - _price(before)
    if subtotal > MAX_SUBTOTAL:
        raise LimitExceeded(cart.key.name, "subtotal", MAX_SUBTOTAL, subtotal)
    priced_count = cart.priced_count + _is_priced(after) - _is_priced(before)
    is_last_price = priced_count < cart.priced_count and not priced_count
    return cart._replace(
        currency_code="" if is_last_price and not cart.owns_currency else cart.currency_code,
        item_count=cart.item_count + (after is not None) - (before is not None),
        priced_count=priced_count,
        total_quantity=cart.total_quantity + _quantity(after) - _quantity(before),
        subtotal=subtotal,
        byte_size=cart.byte_size + _growth(before, after),
    )


def check_size(before: Cart, after: Cart, most: int) -> None:
    """Raise LimitExceeded if a cart beyond the limit grows. It may shrink: the limit may have been lowered."""
    if after.byte_size > most and after.byte_size > before.byte_size:
        raise LimitExceeded(after.key.name, "bytes_per_cart", most, after.byte_size)


def without_price(line: Line) -> Line:
    """The line without its price."""
    return line._replace(item=line.item._replace(unit_price=None))


def _is_priced(line: Line | None) -> bool:
    return line is not None and line.item.unit_price is not None


def _growth(before: Line | None, after: Line | None) -> int:
    # A line keeps its sku and options, so it keeps its size if it keeps its labels.
    if before and after and before.item.labels == after.item.labels:
        return 0
    return _bytes(after) - _bytes(before)


def _bytes(line: Line | None) -> int:
    return item_bytes(line.item) if line else 0


def _quantity(line: Line | None) -> int:
    return line.item.quantity if line else 0


def _price(line: Line | None) -> int:
    return line.item.quantity * (line.item.unit_price or 0) if line else 0
