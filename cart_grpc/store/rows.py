"""Between rows and values, one pair of functions a table."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row

from cart_grpc.carts.model import Cart, CartState, Item
from cart_grpc.carts.names import CartKey
from cart_grpc.carts.reservation import Disposition, Observed, Reservation

Values = dict[str, Any]


def cart_values(cart: Cart) -> Values:
    return {
        "slice": cart.key.slice,
        "user_id": cart.key.user_id,
        "cart_id": cart.key.cart_id,
        "uid": cart.uid,
        "state": int(cart.state),
        "labels": _pack(cart.labels),
        "currency_code": cart.currency_code,
        "ttl": cart.ttl,
        "expire_time": cart.expire_time,
        "item_count": cart.item_count,
        "total_quantity": cart.total_quantity,
        "subtotal": cart.subtotal,
        "revision": cart.revision,
        "etag_revision": cart.etag_revision,
        "create_time": cart.create_time,
        "update_time": cart.update_time,
    }


def to_cart(row: Row[Any]) -> Cart:
    return Cart(
        key=CartKey(row.slice, row.user_id, row.cart_id),
        uid=row.uid,
        state=CartState(row.state),
        labels=_unpack(row.labels),
        currency_code=row.currency_code,
        ttl=row.ttl,
        item_count=row.item_count,
        total_quantity=row.total_quantity,
        subtotal=row.subtotal,
        revision=row.revision,
        etag_revision=row.etag_revision,
        create_time=row.create_time,
        update_time=row.update_time,
    )


def item_values(item: Item) -> Values:
    return {
        "slice": item.cart.slice,
        "user_id": item.cart.user_id,
        "cart_id": item.cart.cart_id,
        "item_id": item.item_id,
        "uid": item.uid,
        "sku": item.sku,
        "options": _pack(item.options),
        "quantity": item.quantity,
        "unit_price": item.unit_price,
        "labels": _pack(item.labels),
        "reservation_id": item.reservation_id,
        "create_time": item.create_time,
        "update_time": item.update_time,
    }


def to_item(row: Row[Any]) -> Item:
    return Item(
        cart=CartKey(row.slice, row.user_id, row.cart_id),
        item_id=row.item_id,
        uid=row.uid,
        sku=row.sku,
        options=_unpack(row.options),
        quantity=row.quantity,
        unit_price=row.unit_price,
        labels=_unpack(row.labels),
        reservation_id=row.reservation_id,
        create_time=row.create_time,
        update_time=row.update_time,
    )


def reservation_values(reservation: Reservation) -> Values:
    return {
        "slice": reservation.cart.slice,
        "reservation_id": reservation.reservation_id,
        "user_id": reservation.cart.user_id,
        "cart_id": reservation.cart.cart_id,
        "item_id": reservation.item_id,
        "sku": reservation.sku,
        "quantity": reservation.quantity,
        "disposition": int(reservation.disposition),
        "ttl": reservation.ttl,
        "labels": _pack(reservation.labels),
        "revision": reservation.revision,
        "intent_revision": reservation.intent_revision,
        "least_quantity": reservation.least_quantity,
        "create_time": reservation.create_time,
        "state": int(reservation.state),
        "granted_quantity": reservation.granted_quantity,
        "expire_time": reservation.expire_time,
        "observed_revision": reservation.observed_revision,
        "reason": reservation.reason,
        "refused_reason": reservation.refused_reason,
        "waiting": reservation.waiting,
        "due_at": reservation.due_at,
        "attempt": reservation.attempt,
        "lease_epoch": reservation.lease_epoch,
        "lease_until": reservation.lease_until,
        "last_error": reservation.last_error,
        "finish_time": reservation.finish_time,
        "uncertain_until": reservation.uncertain_until,
    }


def to_reservation(row: Row[Any]) -> Reservation:
    return Reservation(
        reservation_id=row.reservation_id,
        cart=CartKey(row.slice, row.user_id, row.cart_id),
        item_id=row.item_id,
        sku=row.sku,
        quantity=row.quantity,
        disposition=Disposition(row.disposition),
        ttl=row.ttl,
        labels=_unpack(row.labels),
        revision=row.revision,
        intent_revision=row.intent_revision,
        least_quantity=row.least_quantity,
        create_time=row.create_time,
        state=Observed(row.state),
        granted_quantity=row.granted_quantity,
        expire_time=row.expire_time,
        observed_revision=row.observed_revision,
        reason=row.reason,
        refused_reason=row.refused_reason,
        waiting=bool(row.waiting),
        due_at=row.due_at,
        attempt=row.attempt,
        lease_epoch=row.lease_epoch,
        lease_until=row.lease_until,
        last_error=row.last_error,
        finish_time=row.finish_time,
        uncertain_until=row.uncertain_until,
    )


def _pack(entries: Mapping[str, str]) -> str:
    return json.dumps(dict(entries), sort_keys=True, separators=(",", ":"), ensure_ascii=False) if entries else "{}"


def _unpack(text: str) -> Mapping[str, str]:
    entries: dict[str, str] = {} if text == "{}" else json.loads(text)
    return entries
