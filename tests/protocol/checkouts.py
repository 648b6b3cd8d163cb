"""The steps of a checkout: the product's own rules, with the items of the model as the lines of its cart."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from cart_grpc.carts import checkout as rules
from cart_grpc.carts.calls import Given, Limits, LoadedCart
from cart_grpc.carts.checkout_calls import (
    MIN_WINDOW_US,
    BeginCheckout,
    CheckoutChange,
    CompleteCheckout,
    LoadedCheckout,
)
from cart_grpc.carts.model import Cart, CartState, Checkout, CheckoutState, Line
from cart_grpc.carts.refusals import CallRefused
from tests.carts.examples import KEY
from tests.protocol import invariants
from tests.protocol.states import LASTING, TICK

CHECKOUT_ID = "checkout"
GIVEN = Given(Limits(hold_ttl_us=TICK), now=0, new_id=lambda: CHECKOUT_ID)


class CheckoutStep(NamedTuple):
    """A change of a checkout: what happens, its effect, and the invariant that it breaks, if any."""

    verb: str
    is_fair: bool
    change: CheckoutChange | None
    violation: str | None = None


def steps(
    checkout: Checkout | None, lines: Sequence[Line], *, most: int, window: bool, operators: bool
) -> Iterator[CheckoutStep]:
    """All changes of the checkout.

    `most`: it begins up to this revision, and is completed again one revision later at most. `window`: it is longer
    than a hold, else it ends within a tick. `operators`: they end checkouts.
    """
    latest = max(line.reservation.revision for line in lines)
    if checkout is None:
        if latest <= most and all(line.item.quantity for line in lines):
            yield from _change("begin checkout", False, lambda: _begin(lines, window=window))
        return
    cart = cart_of(lines, checkout) if checkout.state is CheckoutState.OPEN else None
    loaded = LoadedCheckout(checkout, cart, tuple(lines))
    yield from _change("the sweeper ends", True, lambda: rules.evaluate(loaded, 0))
    if checkout.state is CheckoutState.OPEN and checkout.expire_time:
        # It ends sooner or later, at any time.
        yield CheckoutStep("the window ends", True, CheckoutChange(checkout._replace(expire_time=0), lines))
    if checkout.state in (CheckoutState.OPEN, CheckoutState.FAILED):
        yield from _change("cancel checkout", True, lambda: rules.cancel_checkout(loaded, "", 0))
    if checkout.state is CheckoutState.OPEN or (checkout.state is CheckoutState.FAILED and latest <= most + 1):
        call = CompleteCheckout(checkout.key, order_reference="order")
        is_late = checkout.state is CheckoutState.OPEN and checkout.expire_time <= 0
        for step in _change("complete checkout", False, lambda: rules.complete_checkout(loaded, call, GIVEN)):
            yield step._replace(violation=invariants.SOLD_LATE if is_late else step.violation)
    if operators:
        yield from _change("an operator ends", False, lambda: rules.end_checkout(loaded, force=False, now=0))


def _change(verb: str, is_fair: bool, change: Callable[[], CheckoutChange | None]) -> Iterator[CheckoutStep]:
    try:
        after = change()
    except CallRefused:
        return
    except ValueError:
        yield CheckoutStep(verb, is_fair, None, invariants.FORBIDDEN)
        return
    if after:
        yield CheckoutStep(f"{verb}: {after.checkout.state.name}", is_fair, after)


def _begin(lines: Sequence[Line], *, window: bool) -> CheckoutChange:
    named = {str(number): line for number, line in enumerate(lines)}
    call = BeginCheckout(KEY, window_us=LASTING if window else MIN_WINDOW_US)
    return rules.begin_checkout(LoadedCart(KEY, cart_of(lines), named, frozenset()), call, GIVEN)


def cart_of(lines: Sequence[Line], checkout: Checkout | None = None) -> Cart:
    """The cart of the lines."""
    return Cart(
        key=KEY,
        uid="uid",
        state=CartState.CHECKING_OUT if checkout else CartState.ACTIVE,
        labels={},
        currency_code="",
        owns_currency=False,
        ttl_us=None,
        item_count=len(lines),
        priced_count=0,
        total_quantity=sum(line.item.quantity for line in lines),
        subtotal=0,
        byte_size=100_000,
        revision=1,
        etag_revision=1,
        create_time=0,
        update_time=0,
        checkout_id=CHECKOUT_ID if checkout else "",
    )


def normalized(change: CheckoutChange) -> Checkout | None:
    """The checkout without what the model does not depend on. None if its cart is ACTIVE again."""
    if change.cart and change.cart.state is CartState.ACTIVE:
        return None
    return change.checkout._replace(byte_size=0, etag_revision=1, create_time=0, update_time=0)


def aged(checkout: Checkout | None) -> Checkout | None:
    """The checkout after one tick."""
    if checkout is None or checkout.expire_time >= LASTING:
        return checkout
    return checkout._replace(expire_time=max(checkout.expire_time - TICK, 0))
