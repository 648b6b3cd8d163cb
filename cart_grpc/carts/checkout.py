"""The rules of checkouts: pure functions from the loaded rows, a call and the time to the change.

Begin freezes a cart and extends the holds that end too early. `evaluate` applies the answers about the
holds, and later about the commits. Complete decides the sale: from then on nothing gives the items back to the cart.
Thawing makes the cart ACTIVE again. A rule raises CallRefused, and has no side effects.
"""

from collections.abc import Sequence
from typing import Final

from cart_grpc.carts.calls import Given, LoadedCart
from cart_grpc.carts.checkout_calls import BeginCheckout, CheckoutChange, CompleteCheckout, LoadedCheckout
from cart_grpc.carts.checkout_refusals import (
    CartEmpty,
    CheckoutClosed,
    CheckoutCompleted,
    CheckoutExpired,
    CheckoutNotReady,
    NotReserved,
    OrderReferenceMismatch,
    SubtotalMismatch,
    Unreserved,
)
from cart_grpc.carts.model import Cart, CartState, Checkout, CheckoutState, Line, Money
from cart_grpc.carts.progress import ProgressState, progress
from cart_grpc.carts.refusals import CartClosed, CartNotFound, EtagMismatch
from cart_grpc.carts.sizes import CHECKOUT_ROOM
from cart_grpc.carts.totals import recount, touch
from cart_grpc.protocol.reservation import Disposition, Observed, Reservation
from cart_grpc.protocol.transitions import commit, extend, force_commit, release

# How long a hold should last beyond the window: a COMMIT needs time, too.
MARGIN_US: Final = 60_000_000
HOLD_LOST: Final = "HOLD_LOST"
HOLD_TOO_SHORT: Final = "HOLD_TOO_SHORT"
ENDED_BY_OPERATOR: Final = "ENDED_BY_OPERATOR"


def begin_checkout(loaded: LoadedCart, call: BeginCheckout, given: Given) -> CheckoutChange:
    """Freeze the cart, or return its running checkout. The etag is checked only if the call would change something."""
    cart, lines = loaded.cart, tuple(loaded.lines.values())
    if cart is None:
        raise CartNotFound(loaded.key.name)
    running = loaded.checkout if cart.state is CartState.CHECKING_OUT else None
    if running is None:
        _check_etag(cart.key.name, call.etag, cart.etag)
        if cart.state is not CartState.ACTIVE:
            raise CartClosed(cart.key.name, cart.state.name)
        if not lines:
            raise CartEmpty(cart.key.name)
    _check_subtotal(cart, call.expected_subtotal)
    if running is not None:
        return CheckoutChange(running, lines)
    _check_reserved(cart, lines, given.now)
    return _freeze(cart, lines, call, given)


def _freeze(cart: Cart, lines: Sequence[Line], call: BeginCheckout, given: Given) -> CheckoutChange:
    key = cart.key.checkout(given.new_id())
    checkout = Checkout(
        key=key,
        cart_id=cart.key.cart_id,
        cart_uid=cart.uid,
        state=CheckoutState.OPEN,
        is_ready=False,
        currency_code=cart.currency_code,
        subtotal=cart.subtotal,
        item_count=cart.item_count,
        total_quantity=cart.total_quantity,
        order_reference="",
        reason="",
        byte_size=CHECKOUT_ROOM + len(key.name) + len(cart.key.name),
        hold_ttl_us=given.limits.hold_ttl_us,
        etag_revision=1,
        create_time=given.now,
        update_time=given.now,
        expire_time=given.now + call.window_us,
    )
    joined = [line._replace(reservation=_join(line, checkout, given.now)) for line in lines]
    checkout = checkout._replace(is_ready=_all_outlast(checkout, joined))
    frozen = cart._replace(state=CartState.CHECKING_OUT, checkout_id=key.checkout_id)
    return CheckoutChange(checkout, joined, touch(frozen, given.now))


def _join(line: Line, checkout: Checkout, now: int) -> Reservation:
    """The line's reservation as part of the checkout, extended if it ends too early.

    A renewal that is under way for a hold that lasts long enough goes on. Its record knows nothing of the checkout. If
    it says that the hold is lost, Complete refuses, and the sweeper thaws the cart.
    """
    row, end = line.reservation, checkout.expire_time + MARGIN_US
    if not _is_held(line, end):
        row = extend(row, end - now, now)
    return row._replace(checkout_id=checkout.key.checkout_id)


def evaluate(loaded: LoadedCheckout, now: int) -> CheckoutChange | None:
    """The change that the reservations or the time make necessary, None if there is none."""
    match loaded.checkout.state:
        case CheckoutState.OPEN:
            return _evaluate_open(loaded, now)
        case CheckoutState.COMPLETING:
            return _evaluate_completing(loaded, now)
    return None


def _evaluate_open(loaded: LoadedCheckout, now: int) -> CheckoutChange | None:
    checkout, lines = loaded.checkout, loaded.lines
    if checkout.expire_time <= now:
        return thaw(loaded, CheckoutState.EXPIRED, "", now)
    if reason := _find_reason_to_thaw(checkout, lines, now):
        return thaw(loaded, CheckoutState.CANCELLED, reason, now)
    if not checkout.is_ready and _all_outlast(checkout, lines):
        return CheckoutChange(checkout._replace(is_ready=True), lines)
    return None


def _find_reason_to_thaw(checkout: Checkout, lines: Sequence[Line], now: int) -> str:
    """HOLD_LOST, HOLD_TOO_SHORT, or "" while an answer may still come or every hold outlasts the window."""
    if any(_is_lost(checkout, line, now) for line in lines):
        return HOLD_LOST
    is_short = any(line.reservation.settled and not _is_held(line, checkout.expire_time) for line in lines)
    return HOLD_TOO_SHORT if is_short else ""


def _is_lost(checkout: Checkout, line: Line, now: int) -> bool:
    row = line.reservation
    is_in_checkout = row.checkout_id == checkout.key.checkout_id and not row.is_closed
    return not is_in_checkout or (row.settled and not _is_held(line, now))


def _is_held(line: Line, time: int) -> bool:
    """Whether the whole quantity is known to be held at `time`."""
    return progress(line, time).state is ProgressState.RESERVED


def _all_outlast(checkout: Checkout, lines: Sequence[Line]) -> bool:
    return all(_is_held(line, checkout.expire_time) for line in lines)


def _evaluate_completing(loaded: LoadedCheckout, now: int) -> CheckoutChange | None:
    checkout, rows = loaded.checkout, [line.reservation for line in loaded.lines]
    unsold = [row for row in rows if row.state is not Observed.COMMITTED]
    if any(not row.settled for row in unsold):
        return None
    state = CheckoutState.FAILED if unsold else CheckoutState.COMPLETED
    return CheckoutChange(checkout._replace(state=state, update_time=now), loaded.lines)


def thaw(loaded: LoadedCheckout, state: CheckoutState, reason: str, now: int) -> CheckoutChange:
    """End an OPEN checkout as `state`: its cart is ACTIVE again, and its holds get their normal ttl back."""
    ended = loaded.checkout._replace(state=state, is_ready=False, reason=reason, update_time=now)
    lines = [line._replace(reservation=_give_back(line.reservation, ended, now)) for line in loaded.lines]
    cart = loaded.cart
    if cart is not None:
        cart = touch(cart._replace(state=CartState.ACTIVE, checkout_id=""), now)
    return CheckoutChange(ended, lines, cart)


def _give_back(row: Reservation, checkout: Checkout, now: int) -> Reservation:
    if row.checkout_id != checkout.key.checkout_id:
        return row
    row, ttl_us = row._replace(checkout_id=""), checkout.hold_ttl_us
    if row.settled or row.is_closed:
        return row._replace(ttl_us=ttl_us)
    # The revision may have been sent already, and its ttl is part of the message. A row that is set aside may have no
    # revision left.
    is_as_before = row.ttl_us == ttl_us or bool(row.set_aside_reason)
    return row if is_as_before else extend(row, ttl_us, now)


def complete_checkout(loaded: LoadedCheckout, call: CompleteCheckout, given: Given) -> CheckoutChange:
    """Sell the items. The etag is checked only if the call would change something."""
    checkout = loaded.checkout
    match checkout.state:
        case CheckoutState.OPEN:
            _check_can_complete(loaded, given.now)
        case CheckoutState.EXPIRED:
            raise CheckoutExpired(checkout)
        case CheckoutState.CANCELLED:
            raise CheckoutClosed(checkout)
        case _ if checkout.order_reference != call.order_reference:
            raise OrderReferenceMismatch(checkout.key.name, checkout.order_reference, call.order_reference)
        case CheckoutState.COMPLETING | CheckoutState.COMPLETED:
            return CheckoutChange(checkout, loaded.lines)
    _check_etag(checkout.key.name, call.etag, checkout.etag)
    completing = _by_caller(checkout)._replace(
        state=CheckoutState.COMPLETING, order_reference=call.order_reference, update_time=given.now
    )
    if loaded.cart is not None:
        return _sell(loaded.cart, loaded.lines, completing, given.now)
    return CheckoutChange(completing, [_ask_again(line, completing, given) for line in loaded.lines])


def _check_can_complete(loaded: LoadedCheckout, now: int) -> None:
    checkout = loaded.checkout
    if checkout.expire_time <= now:
        raise CheckoutExpired(checkout)
    is_held = not any(_is_lost(checkout, line, now) or not _is_held(line, now) for line in loaded.lines)
    if loaded.cart is None or not checkout.is_ready or not is_held:
        raise CheckoutNotReady(checkout.key.name)


def _sell(cart: Cart, lines: Sequence[Line], checkout: Checkout, now: int) -> CheckoutChange:
    """Pass the lines from the cart to the checkout. Their bytes pass with them."""
    size = cart.byte_size
    for line in lines:
        cart = recount(cart, line, None)
    sold = [line._replace(reservation=commit(line.reservation, now)) for line in lines]
    checkout = checkout._replace(is_ready=False, byte_size=checkout.byte_size + size - cart.byte_size)
    return CheckoutChange(checkout, sold, touch(cart._replace(state=CartState.CHECKED_OUT), now), passes=True)


def _ask_again(line: Line, checkout: Checkout, given: Given) -> Line:
    """The line with a commit that is due, unless it is sold already. A closed reservation is replaced by a new one."""
    row = line.reservation
    if row.state is Observed.COMMITTED:
        return line
    if not row.is_closed:
        return line._replace(reservation=commit(row, given.now))
    again = Reservation(
        reservation_id=given.new_id(),
        cart=row.cart,
        item_id=row.item_id,
        sku=row.sku,
        quantity=line.item.quantity,
        disposition=Disposition.COMMIT,
        ttl_us=checkout.hold_ttl_us,
        revision=1,
        intent_revision=1,
        reserved_cap=line.item.quantity,
        create_time=given.now,
        due_time=given.now,
        checkout_id=checkout.key.checkout_id,
    )
    return Line(line.item._replace(reservation_id=again.reservation_id), again)


def cancel_checkout(loaded: LoadedCheckout, etag: str, now: int) -> CheckoutChange:
    """End an OPEN or FAILED checkout for a caller. The etag is checked only if the call would change something."""
    checkout = loaded.checkout
    if checkout.state in (CheckoutState.OPEN, CheckoutState.FAILED):
        _check_etag(checkout.key.name, etag, checkout.etag)
        loaded = loaded._replace(checkout=_by_caller(checkout))
    return _cancel(loaded, "", now)


def end_checkout(loaded: LoadedCheckout, *, force: bool, now: int) -> CheckoutChange:
    """End a checkout for an operator. `force` counts each commit without an answer as sold."""
    checkout = loaded.checkout
    if checkout.state is not CheckoutState.COMPLETING or not force:
        return _cancel(loaded, ENDED_BY_OPERATOR, now)
    lines = [
        line._replace(reservation=force_commit(line.reservation, now))
        if line.reservation.disposition is Disposition.COMMIT
        else line
        for line in loaded.lines
    ]
    is_sold = all(line.reservation.state is Observed.COMMITTED for line in lines)
    state = CheckoutState.COMPLETED if is_sold else CheckoutState.FAILED
    return CheckoutChange(checkout._replace(state=state, reason=ENDED_BY_OPERATOR, update_time=now), lines)


def _cancel(loaded: LoadedCheckout, reason: str, now: int) -> CheckoutChange:
    checkout = loaded.checkout
    match checkout.state:
        case CheckoutState.OPEN:
            return thaw(loaded, CheckoutState.CANCELLED, reason, now)
        case CheckoutState.FAILED:
            lines = [
                line
                if line.reservation.state is Observed.COMMITTED
                else line._replace(reservation=release(line.reservation, now))
                for line in loaded.lines
            ]
            cancelled = checkout._replace(state=CheckoutState.CANCELLED, reason=reason, update_time=now)
            return CheckoutChange(cancelled, lines)
        case CheckoutState.COMPLETING | CheckoutState.COMPLETED:
            raise CheckoutCompleted(checkout)
    return CheckoutChange(checkout, loaded.lines)


def _by_caller(checkout: Checkout) -> Checkout:
    return checkout._replace(etag_revision=checkout.etag_revision + 1)


def _check_etag(name: str, sent: str, current: str) -> None:
    if sent and sent != current:
        raise EtagMismatch(name, sent, current)


def _check_subtotal(cart: Cart, expected: Money | None) -> None:
    actual = Money(cart.currency_code, cart.subtotal)
    if expected is not None and expected != actual:
        raise SubtotalMismatch(cart.key.name, expected, actual)


def _check_reserved(cart: Cart, lines: Sequence[Line], now: int) -> None:
    seen = [(line.item.name, progress(line, now)) for line in lines]
    missing = [
        Unreserved(name, at.state.name, at.message) for name, at in seen if at.state is not ProgressState.RESERVED
    ]
    if missing:
        raise NotReserved(cart.key.name, missing)
