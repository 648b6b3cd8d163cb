"""Values as messages of `cartgrpc.v1`."""

from collections.abc import Sequence

from cartgrpc.v1 import cart_pb2

from cart_grpc.carts.model import Cart, Item, Line
from cart_grpc.carts.progress import Progress, ProgressState, progress
from cart_grpc.protocol.reservation import Reservation


def item_message(cart: Cart, line: Line, now: int) -> cart_pb2.Item:
    """An item of `cart` with its reservation as of `now`, in microseconds."""
    return line_message(line, cart.currency_code, now)


def line_message(line: Line, currency_code: str, now: int) -> cart_pb2.Item:
    """An item with its reservation as of `now`, in microseconds. What has expired is being asked for again."""
    item, seen = line.item, progress(line, now)
    message = cart_pb2.Item(
        name=item.name,
        uid=item.uid,
        sku=item.sku,
        options=item.options,
        quantity=item.quantity,
        labels=item.labels,
        reconciling=line.reservation.reconciling or seen.state is ProgressState.EXPIRED,
        reservation=_reservation_message(item, line.reservation, seen),
    )
    if item.unit_price is not None:
        message.unit_price.CopyFrom(_money(currency_code, item.unit_price))
    message.create_time.FromMicroseconds(item.create_time)
    message.update_time.FromMicroseconds(item.update_time)
    return message


def _reservation_message(item: Item, row: Reservation, seen: Progress) -> cart_pb2.Reservation:
    message = cart_pb2.Reservation(
        state=cart_pb2.Reservation.State.ValueType(seen.state),
        reservation_id=row.reservation_id,
        requested_quantity=item.quantity,
        reserved_quantity=seen.reserved_quantity,
        attempt_count=row.attempt_count,
        reason=seen.reason,
        message=seen.message,
    )
    if seen.expire_time is not None:
        message.expire_time.FromMicroseconds(seen.expire_time)
    if row.due_time is not None and row.lease_expire_time is None:
        message.next_attempt_time.FromMicroseconds(row.due_time)
    return message


def cart_message(cart: Cart, lines: Sequence[Line], now: int, *, reconciling: bool) -> cart_pb2.Cart:
    """A cart with its items as of `now`, in microseconds; `reconciling` says so of what is not among the items."""
    items = [item_message(cart, line, now) for line in lines]
    message = cart_pb2.Cart(
        name=cart.key.name,
        uid=cart.uid,
        state=cart_pb2.Cart.State.ValueType(cart.state),
        items=items,
        item_count=cart.item_count,
        total_quantity=cart.total_quantity,
        currency_code=cart.currency_code,
        labels=cart.labels,
        etag=cart.etag,
        revision=cart.revision,
        reconciling=reconciling or any(item.reconciling for item in items),
    )
    if cart.currency_code:
        message.subtotal.CopyFrom(_money(cart.currency_code, cart.subtotal))
    message.create_time.FromMicroseconds(cart.create_time)
    message.update_time.FromMicroseconds(cart.update_time)
    if cart.ttl_us is not None:
        message.ttl.FromMicroseconds(cart.ttl_us)
    if cart.expire_time is not None:
        message.expire_time.FromMicroseconds(cart.expire_time)
    return message


def _money(currency_code: str, minor_units: int) -> cart_pb2.Money:
    return cart_pb2.Money(currency_code=currency_code, minor_units=minor_units)
