"""Carts and items. Times are int microseconds since the Unix epoch, durations int microseconds."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from cart_grpc.names import CartKey, CheckoutKey
from cart_grpc.protocol.reservation import Reservation


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in the smallest unit of its currency."""

    currency_code: str
    minor_units: int


class CartState(IntEnum):
    """The state of a cart. `cartgrpc.v1` and the database use the same numbers."""

    ACTIVE = 1
    EXPIRED = 2
    DELETED = 3
    CHECKING_OUT = 4
    CHECKED_OUT = 5
    MERGED = 6


ENDED = frozenset({CartState.EXPIRED, CartState.DELETED, CartState.CHECKED_OUT, CartState.MERGED})


class Cart(NamedTuple):
    """A cart without its items. Each change updates the totals, so that no change must read the whole cart.

    `subtotal` is in the smallest unit of `currency_code`. `priced_count` is the number of items with a price.
    `owns_currency`: a caller set the currency of the cart itself. If not, `currency_code` is that of the prices, and ""
    while no item has a price. `byte_size` is the most bytes that the encoded cart can have (see `carts.sizes`).
    `revision` counts every visible change; `etag_revision` is the revision of the last change by a caller. `ttl_us` and
    `expire_time` are None if the cart does not expire. `checkout_id`: the checkout of a cart that is CHECKING_OUT or
    CHECKED_OUT, else "". `merged_into`: the name of the cart that a MERGED cart's items have passed to, else "".
    """

    key: CartKey
    uid: str
    state: CartState
    labels: Mapping[str, str]
    currency_code: str
    owns_currency: bool
    ttl_us: int | None
    item_count: int
    priced_count: int
    total_quantity: int
    subtotal: int
    byte_size: int
    revision: int
    etag_revision: int
    create_time: int
    update_time: int
    checkout_id: str = ""
    merged_into: str = ""

    @property
    def etag(self) -> str:
        # The uid is part of it because revisions restart after a purge: an old etag must not match a new cart.
        return f'"{self.uid[-8:]}-{self.etag_revision:x}"'

    @property
    def expire_time(self) -> int | None:
        return None if self.ttl_us is None else self.update_time + self.ttl_us


class UserTotals(NamedTuple):
    """The running totals of a user, or a change of them.

    `stored_bytes`: those of carts, checkouts, replies and reservations. The others count carts that have not ended.
    """

    stored_bytes: int = 0
    cart_count: int = 0
    item_count: int = 0
    unit_count: int = 0

    def plus(self, growth: "UserTotals") -> "UserTotals":
        """The totals after `growth`, which may be negative."""
        return UserTotals(*(max(before + more, 0) for before, more in zip(self, growth, strict=True)))

    def minus(self, part: "UserTotals") -> "UserTotals":
        """The totals without `part`, or the growth since it."""
        return UserTotals(*(now - then for now, then in zip(self, part, strict=True)))


def totals_of(cart: Cart | None) -> UserTotals:
    """The part of its user's totals that a cart makes."""
    if cart is None:
        return UserTotals()
    return UserTotals(cart.byte_size, cart.state not in ENDED, cart.item_count, cart.total_quantity)


class Item(NamedTuple):
    """One line of a cart. `unit_price` is in the smallest unit of the cart's currency, None if it has no price."""

    cart: CartKey
    item_id: str
    uid: str
    sku: str
    options: Mapping[str, str]
    quantity: int
    unit_price: int | None
    labels: Mapping[str, str]
    reservation_id: str
    create_time: int
    update_time: int

    @property
    def name(self) -> str:
        return self.cart.item_name(self.item_id)


class Line(NamedTuple):
    """An item and its reservation."""

    item: Item
    reservation: Reservation


class CheckoutState(IntEnum):
    """The state of a checkout. `cartgrpc.v1` and the database use the same numbers."""

    OPEN = 1
    COMPLETING = 2
    COMPLETED = 3
    FAILED = 4
    CANCELLED = 5
    EXPIRED = 6


class Checkout(NamedTuple):
    """The sale of a cart, without its items.

    While it is OPEN, the items belong to the cart, which is CHECKING_OUT. CompleteCheckout passes them to the checkout.
    `is_ready`: every hold is known to outlast `expire_time`, the end of the window. The totals and `currency_code` are
    those of the cart when the checkout began. `reason` says why the server ended it. `etag_revision` counts the changes
    by callers. `byte_size` counts for its user. `hold_ttl_us` is the ttl that the holds of the cart get back
    if the cart thaws.
    """

    key: CheckoutKey
    cart_id: str
    cart_uid: str
    state: CheckoutState
    is_ready: bool
    currency_code: str
    subtotal: int
    item_count: int
    total_quantity: int
    order_reference: str
    reason: str
    byte_size: int
    hold_ttl_us: int
    etag_revision: int
    create_time: int
    update_time: int
    expire_time: int

    @property
    def cart(self) -> CartKey:
        """The key of the cart's name. Another cart may have it by now."""
        return CartKey(self.key.slice, self.key.user_id, self.cart_id)

    @property
    def etag(self) -> str:
        return f'"{self.key.checkout_id[-8:]}-{self.etag_revision:x}"'
