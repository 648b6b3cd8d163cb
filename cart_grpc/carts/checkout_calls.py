"""The calls that change checkouts, as values, and the inputs and results of their rules.

Times and durations are int microseconds.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Final, NamedTuple

from cart_grpc.carts.calls import Call, CartRead
from cart_grpc.carts.model import Cart, CartState, Checkout, Line, Money
from cart_grpc.names import CheckoutKey

DEFAULT_WINDOW_US: Final = 15 * 60_000_000
MIN_WINDOW_US: Final = 60_000_000
MAX_WINDOW_US: Final = 24 * 3_600_000_000


@dataclass(frozen=True, slots=True)
class BeginCheckout(Call):
    """Freeze the cart for up to `window_us`, MIN_WINDOW_US to MAX_WINDOW_US, so that it can be sold.

    `expected_subtotal` is the subtotal that the customer saw, None if the caller does not send it.
    """

    window_us: int = DEFAULT_WINDOW_US
    expected_subtotal: Money | None = None

    @property
    def reads(self) -> tuple[CartRead, ...]:
        return (CartRead(self.cart),)


@dataclass(frozen=True, slots=True)
class CheckoutCall:
    """A checked request for a change of one checkout. The fields are those of Call; the etag is the checkout's."""

    checkout: CheckoutKey
    _: KW_ONLY
    etag: str = ""
    request_id: str = ""
    fingerprint: bytes = b""


@dataclass(frozen=True, slots=True)
class CompleteCheckout(CheckoutCall):
    """Sell the items. `order_reference` identifies the order at the caller."""

    order_reference: str


@dataclass(frozen=True, slots=True)
class CancelCheckout(CheckoutCall):
    """End a checkout that is OPEN or FAILED."""


class CheckoutView(NamedTuple):
    """A checkout and the lines that it shows: none if the cart got its items back."""

    checkout: Checkout
    lines: tuple[Line, ...]


class LoadedCheckout(NamedTuple):
    """One checkout before a call: its lines, and its cart while the checkout is OPEN, else None.

    The lines are the cart's while the checkout is OPEN. CompleteCheckout passes them to the checkout.
    """

    checkout: Checkout
    cart: Cart | None
    lines: tuple[Line, ...]


class CheckoutChange(NamedTuple):
    """The effect of a call or of time: the checkout and its lines in their new state.

    `cart` is the cart in its new state, None if it does not change. `passes`: the lines pass from the cart to the
    checkout. A value that is the same Python object as before is unchanged, and is not written.
    """

    checkout: Checkout
    lines: Sequence[Line]
    cart: Cart | None = None
    passes: bool = False

    @property
    def view(self) -> CheckoutView:
        """The checkout after the change, as callers see it."""
        is_thawed = self.cart is not None and self.cart.state is CartState.ACTIVE
        return CheckoutView(self.checkout, () if is_thawed else tuple(self.lines))
