"""The methods table agrees with the protos, and a method without a matching row cannot be registered."""

from dataclasses import replace
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_admin_service_pb2, cart_service_pb2, cart_service_pb2_grpc
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from cart_grpc.rpc.methods import ADMIN_SERVICE, CART_SERVICE, METHODS, Method
from cart_grpc.rpc.pipeline import MethodMismatch
from tests.rpc.right import right
from tests.rpc.serving import pipeline_of

SERVICES = {
    CART_SERVICE: cart_service_pb2.DESCRIPTOR.services_by_name["CartService"],
    ADMIN_SERVICE: cart_admin_service_pb2.DESCRIPTOR.services_by_name["CartAdminService"],
}


EACH = [
    pytest.param(service, row, SERVICES[service].methods_by_name[row.name], id=f"{service}/{row.name}")
    for service, rows in METHODS.items()
    for row in rows
]


@pytest.mark.parametrize("service", SERVICES)
def test_every_method_has_exactly_one_row(service: str) -> None:
    assert sorted(row.name for row in METHODS[service]) == sorted(method.name for method in SERVICES[service].methods)


@pytest.mark.parametrize(("service", "row", "method"), EACH)
def test_a_row_agrees_with_its_method(service: str, row: Method, method: MethodDescriptor) -> None:
    fields = method.input_type.fields_by_name
    assert (row.takes_stream, row.streams) == (method.client_streaming, method.server_streaming)
    assert row.waits == ("max_wait" in fields)
    if service == CART_SERVICE:
        assert row.writes == ("request_id" in fields)
    else:
        assert row.writes == (not method.name.startswith(("Get", "List")))


@pytest.mark.parametrize(("service", "row", "method"), EACH)
def test_the_resources_of_a_row_are_text_fields_of_the_request(
    service: str, row: Method, method: MethodDescriptor
) -> None:
    for path in row.resources:
        *parents, last = path.split(".")
        message = method.input_type
        for parent in parents:
            inner = message.fields_by_name[parent].message_type
            assert inner is not None
            message = inner
        field = message.fields_by_name[last]
        assert (field.type, field.is_repeated) == (FieldDescriptor.TYPE_STRING, False)


@pytest.mark.parametrize("method", [row.name for row in METHODS[CART_SERVICE]])
def test_the_user_of_a_call_comes_from_the_request(method: str) -> None:
    row = next(row for row in METHODS[CART_SERVICE] if row.name == method)
    assert row.user_of(right(method)) == "alice"


def test_the_first_of_several_resources_names_the_user() -> None:
    row = Method("MergeCarts", ("name", "parent"))
    request = cart_service_pb2.GetCartRequest(name="users/alice/carts/default")
    assert row.user_of(request) == "alice"


@pytest.mark.parametrize("row", METHODS[ADMIN_SERVICE], ids=lambda row: row.name)
def test_an_operators_call_without_a_resource_has_no_user(row: Method) -> None:
    request = GetMessageClass(SERVICES[ADMIN_SERVICE].methods_by_name[row.name].input_type)()
    assert row.user_of(request) == ""


def register(rows: tuple[Method, ...]) -> None:
    servicer: Any = type("Servicer", (cart_service_pb2_grpc.CartServiceServicer,), {})()
    pipeline = pipeline_of(grpc.aio.server(), rows)
    cart_service_pb2_grpc.add_CartServiceServicer_to_server(servicer, pipeline)


async def test_a_method_without_a_row_prevents_registration() -> None:
    rows = METHODS[CART_SERVICE]
    with pytest.raises(MethodMismatch, match=f"^/{CART_SERVICE}/{rows[3].name} has no row in methods.py$"):
        register((*rows[:3], *rows[4:]))


async def test_a_row_without_a_method_prevents_registration() -> None:
    with pytest.raises(MethodMismatch, match=f"^/{CART_SERVICE} has no method Vanished, but methods.py has a row$"):
        register((*METHODS[CART_SERVICE], Method("Vanished")))


@pytest.mark.parametrize("wrong", [{"streams": True}, {"takes_stream": True}], ids=str)
async def test_a_row_that_is_wrong_about_streams_prevents_registration(wrong: dict[str, bool]) -> None:
    first, *others = METHODS[CART_SERVICE]
    with pytest.raises(MethodMismatch, match=f"^the row of /{CART_SERVICE}/{first.name} in methods.py is wrong"):
        register((replace(first, **wrong), *others))  # type: ignore[arg-type]


async def test_the_tables_rows_register_as_they_are() -> None:
    register(METHODS[CART_SERVICE])
