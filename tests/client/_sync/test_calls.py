# Made by `make sync-client` from the file of the same name in _async. Do not edit.
"""Each call of the client, at a real server."""

import pickle
from datetime import timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest
from cartgrpc.v1 import cart_pb2

from cart_grpc.client import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    FieldError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SyncCart,
    SyncCartClient,
)
from cart_grpc.client.money import money

RESERVED = cart_pb2.Reservation.STATE_RESERVED
REJECTED = cart_pb2.Reservation.STATE_REJECTED
DELETED = cart_pb2.Cart.STATE_DELETED


def test_an_item_is_added_and_reserved(cart: SyncCart) -> None:
    reply = cart.add(
        "beans", 2, options={"size": "1 kg"}, unit_price=money("12.34", "EUR"), labels={"gift": "yes"}, wait=20
    )
    assert reply.item.reservation.state == RESERVED
    assert reply.item.name == cart.item_name("beans", {"size": "1 kg"})
    found = cart.get()
    assert found.items[0].name == reply.item.name
    assert found.subtotal == money("24.68", "EUR")
    assert dict(found.items[0].labels) == {"gift": "yes"}


def test_items_are_added_together_set_and_removed(cart: SyncCart) -> None:
    items = [cart_pb2.Item(sku="cups", quantity=1, unit_price=money(3, "EUR")), cart_pb2.Item(sku="filters")]
    cups, filters = (cart.add_all(items)).items
    assert (cart.set(cups, quantity=5)).item.quantity == 5
    assert (cart.set(cups.name, labels={"a": "b"})).item.labels == {"a": "b"}
    without_price = (cart.set(cups.name.rpartition("/")[2], unit_price=None)).item
    assert not without_price.HasField("unit_price")
    assert (without_price.quantity, dict(without_price.labels)) == (5, {"a": "b"})
    assert (cart.set(cups, unit_price=money(4, "EUR"), labels={})).item.unit_price == money(4, "EUR")
    cart.remove(filters)
    assert [item.quantity for item in (cart.get()).items] == [5]
    assert not (cart.clear(wait=20)).cart.items
    deleted = (cart.delete()).cart
    assert deleted.state == DELETED


def test_a_rejected_item_can_be_tried_again(cart: SyncCart) -> None:
    item = (cart.add("rare", 4, wait=20)).item
    assert item.reservation.state == REJECTED
    assert (cart.retry(item, wait=20)).item.reservation.reason == item.reservation.reason


def test_a_cart_is_created_and_updated(cart: SyncCart) -> None:
    created = cart.create(currency_code="EUR", labels={"a": "b"}, ttl=timedelta(hours=1))
    assert (created.currency_code, dict(created.labels), created.ttl.seconds) == ("EUR", {"a": "b"}, 3600)
    with pytest.raises(AlreadyExists, match="CART_EXISTS"):
        cart.create()
    updated = cart.update(currency_code="", ttl=None)
    assert (updated.currency_code, dict(updated.labels)) == ("", {"a": "b"})
    assert updated.ttl.seconds != 3600
    assert not (cart.update(labels={}, ttl=7200)).labels


def test_all_pages_of_carts_are_listed(client: SyncCartClient) -> None:
    user = str(uuid4())
    for number in range(52):
        client.cart(user, f"{number:02}").create()
    found = [cart.name for cart in client.list_carts(user, order_by="name desc")]
    assert found == [f"users/{user}/carts/{number:02}" for number in reversed(range(52))]
    assert [cart for cart in client.list_carts(user, filter="state = EXPIRED")] == []


def test_a_request_id_of_the_caller_has_one_effect(cart: SyncCart) -> None:
    request_id = str(uuid4())
    first = cart.add("beans", request_id=request_id)
    assert cart.add("beans", request_id=request_id) == first
    with pytest.raises(InvalidArgument, match="REQUEST_ID_REUSED") as refused:
        cart.add("beans", 2, request_id=request_id)
    assert refused.value.request_id == request_id
    assert (cart.get()).items[0].quantity == 1


def test_a_refusal_has_its_reason_fields_and_metadata(cart: SyncCart) -> None:
    with pytest.raises(InvalidArgument) as refused:
        cart.add("", 0)
    error = refused.value
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "INVALID_FIELD"
    assert [field.field for field in error.fields] == ["item.sku", "item.quantity"]
    assert isinstance(error.fields[0], FieldError)
    assert error.metadata["field"] == "item.sku"
    assert error.retry_after is None
    assert str(error).startswith("INVALID_ARGUMENT/INVALID_FIELD: item.sku: ")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (copy.fields, copy.metadata, str(copy)) == (error.fields, error.metadata, str(error))


def test_each_kind_of_refusal_has_its_class(cart: SyncCart) -> None:
    with pytest.raises(NotFound, match="CART_NOT_FOUND") as missing:
        cart.get()
    assert missing.value.metadata["resource_name"] == cart.name
    item = (cart.add("beans", 90, unit_price=money(1, "EUR"))).item
    with pytest.raises(Aborted, match="ETAG_MISMATCH"):
        cart.set(item, quantity=1, etag='"5bd0c1ae-1f"')
    with pytest.raises(FailedPrecondition, match="CURRENCY_MISMATCH") as mismatch:
        cart.add("cups", unit_price=money(1, "USD"))
    assert [violation.subject for violation in mismatch.value.violations] == [cart.name]
    cart.set(item, quantity=1000)
    with pytest.raises(ResourceExhausted, match="LIMIT_EXCEEDED") as full:
        cart.add("beans", 90)
    assert full.value.metadata["quota"] == "quantity_per_item"
    assert len(full.value.violations) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"wait": -1}, "wait"),
        ({"wait": float("nan")}, "wait"),
        ({"quantity": 2**40}, "range"),
        ({"sku": "\ud800"}, "surrogates"),
    ],
)
def test_arguments_that_no_request_can_have_are_a_value_error(
    arguments: dict[str, Any], named: str, cart: SyncCart
) -> None:
    with pytest.raises(ValueError, match=named):
        cart.add(**({"sku": "beans"} | arguments))


def test_wrong_names_and_nothing_to_set_are_value_errors(client: SyncCartClient, cart: SyncCart) -> None:
    for user, cart_id in (("", "default"), ("a/b", "default"), ("alice", "-"), ("alice", "x" * 129)):
        with pytest.raises(ValueError, match="must be 1 to 128 characters"):
            client.cart(user, cart_id)
    with pytest.raises(ValueError, match="users/USER/carts/CART"):
        client.cart_by_name("carts/default")
    assert client.cart_by_name(cart.name).name == cart.name
    with pytest.raises(ValueError, match="to set"):
        cart.set("beans")
    with pytest.raises(ValueError, match="to set"):
        cart.update()


@pytest.mark.parametrize("address", ["", "localhost", "http://localhost:50051", "localhost:", "::1:50051"])
def test_an_address_without_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        SyncCartClient(address)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_timeout_that_is_no_time_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        SyncCartClient("localhost:50051", timeout=timeout)
