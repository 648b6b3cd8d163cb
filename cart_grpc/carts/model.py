"""Carts, items and lines as values. Times and durations are int microseconds, times since the Unix epoch."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from cart_grpc.names import CartKey
from cart_grpc.protocol.reservation import Reservation


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in the smallest unit of its currency."""

    currency_code: str
    minor_units: int


class CartState(IntEnum):
    """The states of a cart's life. The numbers are those of `cartgrpc.v1` and of the database."""

    ACTIVE = 1
    EXPIRED = 2
    DELETED = 3


ENDED = frozenset({CartState.EXPIRED, CartState.DELETED})


class Cart(NamedTuple):
    """A cart without its items; the totals are kept as items change, so that no change reads the whole cart.

    `etag_revision` is the revision at which a caller last changed the cart. `ttl_us` and `expire_time` are None if the
    cart does not expire.
    """

    key: CartKey
    uid: str
    state: CartState
    labels: Mapping[str, str]
    currency_code: str
    ttl_us: int | None
    item_count: int
    total_quantity: int
    subtotal: int
    revision: int
    etag_revision: int
    create_time: int
    update_time: int

    @property
    def etag(self) -> str:
        # The uid is part of it because revisions restart after an ended cart is purged. An old etag must not match
        # then.
        return f'"{self.uid[-8:]}-{self.etag_revision:x}"'

    @property
    def expire_time(self) -> int | None:
        return None if self.ttl_us is None else self.update_time + self.ttl_us


class Item(NamedTuple):
    """One line of a cart. `unit_price` is in the cart's currency, None if no caller gave one."""

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
    """An item and the reservation behind it."""

    item: Item
    reservation: Reservation
