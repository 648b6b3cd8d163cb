"""The gRPC service config says of each method how long it may take, and whether it may be repeated."""

import json
from collections import Counter

import grpc
import pytest
from cartgrpc.v1 import cart_admin_service_pb2, cart_service_pb2, cart_service_pb2_grpc
from google.protobuf.descriptor import MethodDescriptor

from cart_grpc.client.retries import FIRST_SECONDS, MAX_SECONDS
from cart_grpc.client.service_config import load, retry_policy, to_seconds
from cart_grpc.rpc.fields import MAX_WAIT_SECONDS
from cart_grpc.rpc.methods import ADMIN_SERVICE, CART_SERVICE, METHODS, Method
from cart_grpc.settings import Settings
from tests.client.scripted import Scripted, added, refusal

ROWS = [(service, method) for service in (CART_SERVICE, ADMIN_SERVICE) for method in METHODS[service]]
IDS = [f"{service}/{method.name}" for service, method in ROWS]
DESCRIPTORS = {
    each.full_name: each
    for module in (cart_service_pb2, cart_admin_service_pb2)
    for each in module.DESCRIPTOR.services_by_name.values()
}


def described(service: str, method: Method) -> MethodDescriptor:
    found: MethodDescriptor = DESCRIPTORS[service].methods_by_name[method.name]
    return found


def test_each_method_is_there_once() -> None:
    named = Counter((name["service"], name["method"]) for entry in load()["methodConfig"] for name in entry["name"])
    assert named == Counter((service, method.name) for service, method in ROWS)


@pytest.mark.parametrize(("service", "method"), ROWS, ids=IDS)
def test_only_calls_that_are_safe_to_repeat_are_repeated(service: str, method: Method) -> None:
    is_safe = not method.writes or "request_id" in described(service, method).input_type.fields_by_name
    codes = retry_policy(service, method.name).get("retryableStatusCodes", [])
    assert codes == (["UNAVAILABLE"] if is_safe else [])


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
    policies = [retry_policy(CART_SERVICE, method.name) for method in METHODS[CART_SERVICE]]
    assert all(policy == policies[0] for policy in policies)
    assert tuple(to_seconds(policies[0][key]) for key in ("initialBackoff", "maxBackoff")) == (
        FIRST_SECONDS,
        MAX_SECONDS,
    )


def test_grpc_repeats_a_call_as_the_config_says(scripted: Scripted) -> None:
    scripted.script = [refusal(grpc.StatusCode.UNAVAILABLE), added(3)]
    options = [("grpc.service_config", json.dumps(load())), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(scripted.address, options=options) as channel:
        stub = cart_service_pb2_grpc.CartServiceStub(channel)
        assert stub.AddItem(cart_service_pb2.AddItemRequest(request_id="one")).item.quantity == 3
    assert [attempt.request.request_id for attempt in scripted.attempts] == ["one", "one"]
    assert scripted.attempts[0].seconds_left > 60
