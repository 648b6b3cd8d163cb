"""The refusals of calls about checkouts. The tree of all refusals is in `refusals`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from cart_grpc.carts.model import Checkout, Money
from cart_grpc.carts.refusals import FailedPrecondition, NotFound


class CartFrozen(FailedPrecondition):
    """A checkout of the cart is OPEN, so nothing else may change the cart. `expire_time` is in microseconds."""

    reason = "CART_FROZEN"

    def __init__(self, name: str, checkout: str, expire_time: int) -> None:
        end = _format_time(expire_time)
        message = f"{name} is CHECKING_OUT and cannot be changed until {checkout} ends, at {end} at the latest"
        super().__init__(name, message, {"checkout": checkout, "expire_time": end})


class CartEmpty(FailedPrecondition):
    """A cart without items cannot be checked out."""

    reason = "CART_EMPTY"

    def __init__(self, name: str) -> None:
        super().__init__(name, f"{name} has no items", {})


class Unreserved(NamedTuple):
    """An item that is not RESERVED: its name, the state of its reservation, and why."""

    item: str
    state: str
    message: str


class NotReserved(FailedPrecondition):
    """At least one item of the cart is not RESERVED. `items` has at least one entry."""

    reason = "NOT_RESERVED"

    def __init__(self, name: str, items: Sequence[Unreserved]) -> None:
        others = f" (one of {len(items)} such items)" if len(items) > 1 else ""
        message = f"{items[0].item} is {items[0].state}, not RESERVED{others}"
        super().__init__(name, message, {"item": items[0].item, "state": items[0].state, "count": str(len(items))})
        self.violations = tuple(
            (each.item, f"{each.item} is {each.state}" + (f": {each.message}" if each.message else ""))
            for each in items
        )


class SubtotalMismatch(FailedPrecondition):
    """The cart has another subtotal than the caller expects. Amounts are in the smallest unit of the currency."""

    reason = "SUBTOTAL_MISMATCH"

    def __init__(self, name: str, expected: Money, actual: Money) -> None:
        message = (
            f"{name} has a subtotal of {actual.minor_units} {actual.currency_code or '(no currency)'} in the smallest "
            f"unit; the request expects {expected.minor_units} {expected.currency_code}"
        )
        metadata = {
            "subtotal": str(actual.minor_units),
            "currency_code": actual.currency_code,
            "expected_subtotal": str(expected.minor_units),
            "expected_currency_code": expected.currency_code,
        }
        super().__init__(name, message, metadata)


class CheckoutNotFound(NotFound):
    """There is no such checkout, or it ended and was purged."""

    reason = "CHECKOUT_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__("cartgrpc.v1.Checkout", name)


class CheckoutNotReady(FailedPrecondition):
    """At least one hold is not known to outlast the window, or has ended. Wait until the checkout is `ready`."""

    reason = "CHECKOUT_NOT_READY"

    def __init__(self, name: str) -> None:
        super().__init__(name, f"{name} is not ready: at least one hold is not known to outlast the window", {})


class CheckoutExpired(FailedPrecondition):
    """The window of the checkout has ended."""

    reason = "CHECKOUT_EXPIRED"

    def __init__(self, checkout: Checkout) -> None:
        name, end = checkout.key.name, _format_time(checkout.expire_time)
        super().__init__(name, f"the window of {name} ended at {end}", {"expire_time": end})


class CheckoutClosed(FailedPrecondition):
    """The checkout was cancelled."""

    reason = "CHECKOUT_CLOSED"

    def __init__(self, checkout: Checkout) -> None:
        name, state, why = checkout.key.name, checkout.state.name, checkout.reason
        message = f"{name} is {state}" + (f" because of {why}" if why else "") + " and cannot be completed"
        super().__init__(name, message, {"state": state, "checkout_reason": why})


class CheckoutCompleted(FailedPrecondition):
    """The sale is decided: the checkout is COMPLETING or COMPLETED."""

    reason = "CHECKOUT_COMPLETED"

    def __init__(self, checkout: Checkout) -> None:
        name, state = checkout.key.name, checkout.state.name
        super().__init__(name, f"{name} is {state} and cannot be cancelled", {"state": state})


class OrderReferenceMismatch(FailedPrecondition):
    """The checkout was completed with another order_reference."""

    reason = "ORDER_REFERENCE_MISMATCH"

    def __init__(self, name: str, completed_with: str, sent: str) -> None:
        message = f"{name} was completed with the order_reference {completed_with!r}, not with {sent!r}"
        super().__init__(name, message, {"order_reference": completed_with, "sent_order_reference": sent})


class UserErasing(FailedPrecondition):
    """An operator is erasing the user, so nothing new can begin."""

    reason = "USER_ERASING"

    def __init__(self, name: str) -> None:
        super().__init__(name, f"{name} is being erased; the user's carts cannot be changed meanwhile", {})


def _format_time(time: int) -> str:
    return datetime.fromtimestamp(time / 1_000_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
