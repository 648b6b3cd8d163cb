"""The effect of each call about checkouts on the model.

A call with max_wait shows the checkout as it is at the end of the wait, so its reply is compared less closely.
"""

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from cartgrpc.v1 import cart_pb2

from tests.state_machine.calls import Rule, check_etag
from tests.state_machine.carts import SOLD_OUT, Cart, Checkout, Refused, price_of

if TYPE_CHECKING:
    from tests.state_machine.model import Model


def begin_checkout(model: "Model", request: Any, reply: Any) -> None:
    cart = model.carts.get(request.name)
    if cart is None:
        raise Refused("CART_NOT_FOUND")
    running = model.checkouts[cart.checkout] if cart.state == "CHECKING_OUT" else None
    if not running:
        check_etag(cart, request.etag)
        if cart.state != "ACTIVE":
            raise Refused("CART_CLOSED")
        if not cart.lines:
            raise Refused("CART_EMPTY")
    if request.HasField("expected_subtotal") and price_of(request, "expected_subtotal") != (
        cart.currency,
        cart.subtotal,
    ):
        raise Refused("SUBTOTAL_MISMATCH")
    if not running:
        _check_reserved(cart, reply)
    seen = _shown(request, reply)
    if not running:
        assert seen.name not in model.checkouts, f"{seen.name} has begun twice"
        running = Checkout(seen.name, cart.name, deepcopy(cart.lines), cart.currency, cart.subtotal)
        model.checkouts[seen.name] = running
        cart.state, cart.checkout, cart.etag = "CHECKING_OUT", seen.name, ""
    running.check(seen, is_waiting=request.HasField("max_wait"))


def _check_reserved(cart: Cart, reply: Any) -> None:
    """Refuse a cart with an item that is not reserved. Unless the cart has settled, only the reply can tell."""
    is_settled = cart.settled_etag and cart.settled_etag == cart.etag
    if any(line.sku == SOLD_OUT for line in cart.lines.values()) or (reply == "NOT_RESERVED" and not is_settled):
        raise Refused("NOT_RESERVED")


def complete_checkout(model: "Model", request: Any, reply: Any) -> None:
    checkout = _get_checkout(model, request.name)
    if checkout.state == "CANCELLED":
        raise Refused("CHECKOUT_CLOSED")
    if checkout.state == "COMPLETED":
        if checkout.order_reference != request.order_reference:
            raise Refused("ORDER_REFERENCE_MISMATCH")
    else:
        # Unless a reply has shown that it is ready, only this reply can tell.
        if reply == "CHECKOUT_NOT_READY" and not checkout.is_ready:
            raise Refused("CHECKOUT_NOT_READY")
        check_etag(checkout, request.etag)
        checkout.state, checkout.order_reference, checkout.etag = "COMPLETED", request.order_reference, ""
        cart = model.carts[checkout.cart]
        cart.state, cart.etag = "CHECKED_OUT", ""
        cart.lines.clear()
    checkout.check(_shown(request, reply), is_waiting=request.HasField("max_wait"))


def cancel_checkout(model: "Model", request: Any, reply: Any) -> None:
    checkout = _get_checkout(model, request.name)
    if checkout.state == "COMPLETED":
        raise Refused("CHECKOUT_COMPLETED")
    if checkout.state == "OPEN":
        check_etag(checkout, request.etag)
        checkout.state, checkout.etag = "CANCELLED", ""
        cart = model.carts[checkout.cart]
        cart.state, cart.checkout, cart.etag = "ACTIVE", "", ""
    checkout.check(_shown(request, reply), is_waiting=request.HasField("max_wait"))


def get_checkout(model: "Model", request: Any, reply: Any) -> None:
    _get_checkout(model, request.name).check(_shown(request, reply))


def list_checkouts(model: "Model", request: Any, reply: Any) -> None:
    assert not isinstance(reply, str), f"ListCheckouts was refused: {reply}"
    mine = {name: one for name, one in model.checkouts.items() if name.startswith(f"{request.parent}/checkouts/")}
    assert sorted(one.name for one in reply.checkouts) == sorted(mine)
    times = [one.create_time.ToMicroseconds() for one in reply.checkouts]
    assert times == sorted(times, reverse=True)
    for seen in reply.checkouts:
        assert not seen.items
        mine[seen.name].check_totals(seen)
        mine[seen.name].check_state(seen)


def _get_checkout(model: "Model", name: str) -> Checkout:
    if name not in model.checkouts:
        raise Refused("CHECKOUT_NOT_FOUND")
    return model.checkouts[name]


def _shown(request: Any, reply: Any) -> cart_pb2.Checkout:
    assert not isinstance(reply, str), f"{request} was refused: {reply}"
    seen: cart_pb2.Checkout = reply.checkout
    return seen


RULES: dict[str, Rule] = {
    "BeginCheckout": begin_checkout,
    "CompleteCheckout": complete_checkout,
    "CancelCheckout": cancel_checkout,
    "GetCheckout": get_checkout,
    "ListCheckouts": list_checkouts,
}
