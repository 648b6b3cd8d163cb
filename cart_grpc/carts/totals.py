"""Steps that the rules share: start a cart, set its currency, update its totals, mark it as changed."""

from collections.abc import Iterable

from cart_grpc.carts.calls import Given
from cart_grpc.carts.model import Cart, CartState, Line, Money
from cart_grpc.carts.refusals import CurrencyMismatch, LimitExceeded
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
        ttl_us=given.limits.cart_ttl_us,
        item_count=0,
        total_quantity=0,
        subtotal=0,
        revision=revision,
        etag_revision=revision,
        create_time=given.now,
        update_time=given.now,
    )


def touch(cart: Cart, now: int) -> Cart:
    """The cart after a caller's change: a new revision, and with it a new etag."""
    revision = cart.revision + 1
    return cart._replace(revision=revision, etag_revision=revision, update_time=now)


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
    """The cart's totals once `before` has become `after`. Raises LimitExceeded if the subtotal exceeds 64 bits."""
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
