"""From checkouts to messages of `cartgrpc.v1`."""

from collections.abc import Sequence

from cartgrpc.v1 import cart_pb2

from cart_grpc.carts.model import Checkout, CheckoutState, Line
from cart_grpc.rpc.messages import item_message, set_time
from cart_grpc.store.read.checkout_reads import CheckoutSnapshot, CheckoutSummary


def checkout_message(checkout: Checkout, lines: Sequence[Line], now: int, *, reconciling: bool) -> cart_pb2.Checkout:
    """A checkout with its items as of `now`. `reconciling`: one of its reservations is, also one not in `lines`."""
    items = [item_message(line, checkout.currency_code, now) for line in lines]
    is_open = checkout.state is CheckoutState.OPEN
    is_at_work = checkout.state is CheckoutState.COMPLETING or (is_open and not checkout.is_ready)
    message = cart_pb2.Checkout(
        name=checkout.key.name,
        cart=checkout.cart.name,
        cart_uid=checkout.cart_uid,
        state=cart_pb2.Checkout.State.ValueType(checkout.state),
        ready=is_open and checkout.is_ready,
        items=items,
        item_count=checkout.item_count,
        total_quantity=checkout.total_quantity,
        order_reference=checkout.order_reference,
        reason=checkout.reason,
        etag=checkout.etag,
        reconciling=reconciling or is_at_work or any(item.reconciling for item in items),
    )
    if checkout.currency_code:
        amount = cart_pb2.Money(currency_code=checkout.currency_code, minor_units=checkout.subtotal)
        message.subtotal.CopyFrom(amount)
    set_time(message.create_time, checkout.create_time)
    set_time(message.update_time, checkout.update_time)
    set_time(message.expire_time, checkout.expire_time)
    return message


def summary_message(found: CheckoutSummary) -> cart_pb2.Checkout:
    """A checkout without its items."""
    return checkout_message(found.checkout, (), found.now, reconciling=found.reconciling)


def snapshot_message(found: CheckoutSnapshot) -> cart_pb2.Checkout:
    """A checkout with its items."""
    return checkout_message(found.checkout, found.lines, found.now, reconciling=found.reconciling)
