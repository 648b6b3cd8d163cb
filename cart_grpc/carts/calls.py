"""What goes into a rule and what comes out of it. Times and durations are int microseconds."""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

from cart_grpc.carts.model import Cart, Line, Money
from cart_grpc.names import CartKey, item_id_of

NewId = Callable[[], str]


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the service. `hold_ttl_us`, how long stock is held, and `cart_ttl_us`, how long a cart that says nothing
    else lives when it is left alone, in microseconds.
    """

    max_quantity_per_add: int = 100
    max_quantity_per_item: int = 1_000
    max_items_per_cart: int = 200
    hold_ttl_us: int = 900_000_000
    cart_ttl_us: int = 604_800_000_000


class LoadedCart(NamedTuple):
    """What a call touches: the cart, the lines that it named (or all), and the skus whose old holds are still going."""

    key: CartKey
    cart: Cart | None
    lines: Mapping[str, Line]
    releasing: AbstractSet[str]


class Change(NamedTuple):
    """What a call made of it: the cart, the lines it named as they are now, and those it took out.

    What is the same object as in LoadedCart was not changed, and is not written. `releasing` are the skus whose old
    holds were going already, where the call speaks of the whole cart.
    """

    cart: Cart
    lines: tuple[Line, ...] = ()
    removed: tuple[Line, ...] = ()
    releasing: AbstractSet[str] = frozenset()


class Addition(NamedTuple):
    """One item to add. `quantity` is how many more; None in price or labels leaves what is there."""

    item_id: str
    sku: str
    options: Mapping[str, str]
    quantity: int
    unit_price: Money | None
    labels: Mapping[str, str] | None


def addition(
    sku: str, options: Mapping[str, str], quantity: int, unit_price: Money | None, labels: Mapping[str, str] | None
) -> Addition:
    """One item to add, under the id that its sku and options make."""
    return Addition(item_id_of(sku, options), sku, options, quantity, unit_price, labels)


@dataclass(frozen=True, slots=True)
class ItemUpdate:
    """New values of an item, for the fields named in `paths`: quantity, unit_price, labels."""

    paths: AbstractSet[str]
    quantity: int = 0
    unit_price: Money | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CartUpdate:
    """New values of a cart, for the fields named in `paths`: labels, currency_code, ttl (microseconds)."""

    paths: AbstractSet[str]
    labels: Mapping[str, str] = field(default_factory=dict)
    currency_code: str = ""
    ttl_us: int | None = None
