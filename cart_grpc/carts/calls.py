"""The calls that change carts, as values, and the inputs and results of the rules.

A call that only reads, such as GetCart, has no type here.

Times and durations are int microseconds.
"""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import KW_ONLY, dataclass, field
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from cart_grpc.carts.adjustments import Adjustment
from cart_grpc.carts.model import Cart, Checkout, Line, Money, UserTotals
from cart_grpc.names import CartKey, item_id_of
from cart_grpc.protocol.reservation import Reservation

NewId = Callable[[], str]


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the service.

    `hold_ttl_us` is the ttl that every HOLD requests from the Reservation API. `cart_ttl_us` is the lifetime, from its
    last change, of a cart that has no ttl of its own. `max_user_bytes` bounds everything that is stored for one user;
    the other limits per user count carts that have not ended, their items, and the units that these intend to hold.
    """

    max_quantity_per_add: int = 100
    max_quantity_per_item: int = 1_000
    max_items_per_cart: int = 200
    max_cart_bytes: int = 256 * 1024
    max_user_bytes: int = 64 * 1024 * 1024
    max_carts_per_user: int = 1_000
    max_items_per_user: int = 5_000
    max_units_per_user: int = 20_000
    hold_ttl_us: int = 900_000_000
    cart_ttl_us: int = 604_800_000_000


class Given(NamedTuple):
    """The further inputs of a rule, beside the cart and the call: limits, time in microseconds, a generator of ids."""

    limits: Limits
    now: int
    new_id: NewId


class CartRead(NamedTuple):
    """The part of one cart that a call needs: the items in `item_ids`, or all items if None.

    `skus` are the skus of items that the call may create: the unfinished releases of these skus are read too.
    """

    cart: CartKey
    item_ids: Sequence[str] | None = None
    skus: Sequence[str] = ()


class LoadedCart(NamedTuple):
    """One cart before a call: the lines that the call's CartRead names, by item id.

    `cart` is None if no cart exists under this name. `releasing` are the skus that have an unfinished release.
    `others` are the further carts of a call that names several. `checkout` is the OPEN checkout of a cart that is
    CHECKING_OUT, else None. `rest_of_user` is what the user's other carts, and all reservations and replies, count.
    `itemless` are the reservations of the cart that belong to no item: for a whole cart, all that are reconciling or
    superseded.
    """

    key: CartKey
    cart: Cart | None
    lines: Mapping[str, Line]
    releasing: AbstractSet[str]
    others: "tuple[LoadedCart, ...]" = ()
    checkout: Checkout | None = None
    rest_of_user: UserTotals = UserTotals()
    itemless: tuple[Reservation, ...] = ()


class OpenCart(NamedTuple):
    """A LoadedCart whose cart exists, is open, and has the etag that the caller sent.

    `is_new`: the call starts the cart.
    """

    cart: Cart
    lines: Mapping[str, Line]
    releasing: AbstractSet[str]
    others: tuple[LoadedCart, ...] = ()
    is_new: bool = False
    rest_of_user: UserTotals = UserTotals()


class Change(NamedTuple):
    """The effect of a call: the cart, the lines that it named in their new state, and the lines that it removed.

    A cart, item or reservation that is the same Python object as in LoadedCart is unchanged, and is not written. If the
    reply shows the whole cart, `releasing` repeats the skus that had an unfinished release before the call. `others`
    are the changes of the further carts of a call that names several. `before` and `currency_before` are the lines that
    the call named and the currency of their prices, before the call. `itemless` are changed reservations that belong to
    no item of the cart.
    """

    cart: Cart
    lines: tuple[Line, ...] = ()
    removed: tuple[Line, ...] = ()
    releasing: AbstractSet[str] = frozenset()
    others: "tuple[Change, ...]" = ()
    before: Mapping[str, Line] = MappingProxyType({})
    currency_before: str = ""
    itemless: tuple[Reservation, ...] = ()
    adjustments: tuple[Adjustment, ...] = ()

    def find_replaced_price(self, line: Line) -> Money | None:
        """The price that the line had before the call, if it had one and the call changed it."""
        before = self.before.get(line.item.item_id)
        if before is None or before.item.unit_price is None:
            return None
        is_same = before.item.unit_price == line.item.unit_price and self.currency_before == self.cart.currency_code
        return None if is_same else Money(self.currency_before, before.item.unit_price)


@dataclass(frozen=True, slots=True)
class Call:
    """A checked request for a change. It applies to the whole cart unless its type says otherwise.

    `etag` is the one that the caller sent, or "". `request_id` is unique per user, or "" if the caller sent none.
    `fingerprint` is a hash of the request, so that another request with the same request_id is detected. It is empty if
    there is no request_id. If a call names several carts, these fields belong to `cart`, and `reads` names `cart` first
    and each cart once. `is_clamped`: the rule keeps to the user's limits itself, so that they never refuse the call.
    """

    is_clamped: ClassVar[bool] = False

    cart: CartKey
    _: KW_ONLY
    etag: str = ""
    request_id: str = ""
    fingerprint: bytes = b""

    @property
    def reads(self) -> tuple[CartRead, ...]:
        """The parts of carts that the call needs, one entry for each cart."""
        return (CartRead(self.cart),)


class Addition(NamedTuple):
    """One item to add. `quantity` is added to the line's. A price or labels of None leave the line's unchanged."""

    item_id: str
    sku: str
    options: Mapping[str, str]
    quantity: int
    unit_price: Money | None
    labels: Mapping[str, str] | None


def addition(
    sku: str, options: Mapping[str, str], quantity: int, unit_price: Money | None, labels: Mapping[str, str] | None
) -> Addition:
    """One item to add, under the item id of its sku and options."""
    return Addition(item_id_of(sku, options), sku, options, quantity, unit_price, labels)


@dataclass(frozen=True, slots=True)
class AddItems(Call):
    """Add to the lines with the same sku and options, or create them. Starts a cart if none is open."""

    additions: Sequence[Addition]

    @property
    def reads(self) -> tuple[CartRead, ...]:
        additions = self.additions
        return (CartRead(self.cart, [one.item_id for one in additions], [one.sku for one in additions]),)


@dataclass(frozen=True, slots=True)
class ReplaceItems(Call):
    """Make the cart contain exactly these lines. Starts a cart if none is open.

    The quantity of an addition is that of the line. A price or labels of None clear those of the line.
    """

    additions: Sequence[Addition]


@dataclass(frozen=True, slots=True)
class ItemCall(Call):
    """A call about one item of the cart."""

    item_id: str

    @property
    def reads(self) -> tuple[CartRead, ...]:
        return (CartRead(self.cart, (self.item_id,)),)


@dataclass(frozen=True, slots=True)
class ItemUpdate:
    """New values of an item, for the fields named in `paths`: quantity, unit_price, labels."""

    paths: AbstractSet[str]
    quantity: int = 0
    unit_price: Money | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UpdateItem(ItemCall):
    """Set an item's quantity, price or labels."""

    update: ItemUpdate


@dataclass(frozen=True, slots=True)
class RemoveItem(ItemCall):
    """Take an item out of the cart and release its reservation."""


@dataclass(frozen=True, slots=True)
class RetryReservation(ItemCall):
    """Reserve a rejected or expired item again. Changes nothing in any other state."""


@dataclass(frozen=True, slots=True)
class ClearCart(Call):
    """Take every item out of the cart."""


@dataclass(frozen=True, slots=True)
class DeleteCart(Call):
    """End the cart and take every item out."""


@dataclass(frozen=True, slots=True)
class CartUpdate:
    """New values of a cart, for the fields named in `paths`: labels, currency_code, ttl (microseconds)."""

    paths: AbstractSet[str]
    labels: Mapping[str, str] = field(default_factory=dict)
    currency_code: str = ""
    ttl_us: int | None = None


@dataclass(frozen=True, slots=True)
class CreateCart(Call):
    """Start a cart under a name that has no open cart."""

    values: CartUpdate


@dataclass(frozen=True, slots=True)
class UpdateCart(Call):
    """Set a cart's labels, currency or lifetime."""

    update: CartUpdate


@dataclass(frozen=True, slots=True)
class MergeCarts(Call):
    """Move the items of the cart `source` to the cart, with their reservations, and end `source`.

    Starts a cart if none is open.
    """

    is_clamped: ClassVar[bool] = True

    source: CartKey

    @property
    def reads(self) -> tuple[CartRead, ...]:
        return (CartRead(self.cart), CartRead(self.source))
