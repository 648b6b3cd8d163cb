"""The gRPC service config says of each method how long it may take, and whether it may be repeated."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2, cart_service_pb2_grpc

from cart_grpc.client.retries import FIRST_SECONDS, MAX_SECONDS
from cart_grpc.client.service_config import load, retry_policy, to_seconds
from cart_grpc.rpc.fields import MAX_WAIT_SECONDS
from cart_grpc.rpc.methods import ADMIN_SERVICE, CART_SERVICE, METHODS, Method
from cart_grpc.settings import Settings
from tests.client.scripted import Scripted, refusal
from tests.client.shop import Shop, meanwhile

ROWS = [(service, method) for service in (CART_SERVICE, ADMIN_SERVICE) for method in METHODS[service]]
IDS = [f"{service}/{method.name}" for service, method in ROWS]


@contextmanager
def plain_client(address: str) -> Iterator[Any]:
    """Yield the generated client on a channel that has the service config and nothing else."""
    options = [("grpc.service_config", json.dumps(load())), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options=options) as channel:
        yield cart_service_pb2_grpc.CartServiceStub(channel)


def test_each_method_is_there_once() -> None:
    named = Counter((name["service"], name["method"]) for entry in load()["methodConfig"] for name in entry["name"])
    assert named == Counter((service, method.name) for service, method in ROWS)


@pytest.mark.parametrize(("service", "method"), ROWS, ids=IDS)
def test_grpc_may_repeat_reads_only(service: str, method: Method) -> None:
    codes = retry_policy(service, method.name).get("retryableStatusCodes", [])
    assert codes == ([] if method.writes else ["UNAVAILABLE"])


@pytest.mark.parametrize(("service", "method"), ROWS, ids=IDS)
def test_a_call_may_take_as_long_as_the_server_lets_it(service: str, method: Method) -> None:
    [entry] = [
        entry for entry in load()["methodConfig"] if {"service": service, "method": method.name} in entry["name"]
    ]
    if method.streams:
        assert "timeout" not in entry
    else:
        waits = MAX_WAIT_SECONDS if method.waits else 0
        assert to_seconds(entry["timeout"]) == Settings.model_fields["call_timeout"].default + waits


def test_the_python_client_backs_off_as_the_config_says() -> None:
    policies = [retry_policy(CART_SERVICE, method.name) for method in METHODS[CART_SERVICE] if not method.writes]
    assert all(policy == policies[0] for policy in policies)
    assert tuple(to_seconds(policies[0][key]) for key in ("initialBackoff", "maxBackoff")) == (
        FIRST_SECONDS,
        MAX_SECONDS,
    )


def test_grpc_repeats_a_read_as_the_config_says(scripted: Scripted) -> None:
    found = cart_service_pb2.GetCartResponse(cart=cart_pb2.Cart(revision=3))
    scripted.script = [refusal(grpc.StatusCode.UNAVAILABLE), found]
    with plain_client(scripted.address) as stub:
        assert stub.GetCart(cart_service_pb2.GetCartRequest()) == found
    assert len(scripted.attempts) == 2


def test_a_lost_reply_is_not_a_second_add_without_a_request_id(own_shop: Shop) -> None:
    name = "users/alice/carts/default"
    add = cart_service_pb2.AddItemRequest(parent=name, item=cart_pb2.Item(sku="beans", quantity=2))
    with plain_client(own_shop.address) as stub:
        stub.AddItem(add)
        own_shop.die_before_next_reply()
        with meanwhile(own_shop.start_when_dead), pytest.raises(grpc.RpcError) as caught:
            # A repetition would wait for the server.
            stub.AddItem(add, wait_for_ready=True)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert stub.GetCart(cart_service_pb2.GetCartRequest(name=name), wait_for_ready=True).cart.items[0].quantity == 4
