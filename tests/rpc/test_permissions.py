"""Each method needs one scope, and every name in its request is checked."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_service_pb2_grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from grpc_health.v1 import health_pb2_grpc

from cart_grpc.authentication.caller import CARTS_ACT_AS, CARTS_READ, CARTS_WRITE
from cart_grpc.rpc.deadlines import Deadlines
from cart_grpc.rpc.endpoint import Guards
from cart_grpc.rpc.health import Health
from cart_grpc.rpc.methods import ADMIN_SERVICE, CART_SERVICE, HEALTH_AND_REFLECTION, METHODS, Method
from cart_grpc.rpc.permissions import PERMISSIONS, PUBLIC
from cart_grpc.rpc.pipeline import MethodMismatch, Pipeline
from cart_grpc.rpc.receiving import Receiver
from cart_grpc.rpc.reflection import add_reflection
from tests.rpc.protected import AUDITOR, JOBS, LONER, OPERATOR, READER, WEB, Shop, lacking_scope, open_shop
from tests.rpc.right import ADMIN, RIGHT, RIGHT_OF_OPERATORS, descriptor_of, right
from tests.rpc.serving import permissions_of, pipeline_of, streams_with

ROWS = {row.name: row for row in METHODS[CART_SERVICE]}
NOWHERE = "users/nobody"


def test_the_permissions_table_has_the_services_of_the_methods_table() -> None:
    assert PERMISSIONS.keys() == METHODS.keys() | HEALTH_AND_REFLECTION.keys()


@pytest.mark.parametrize(
    ("service", "row"), [(service, row) for service, rows in METHODS.items() for row in rows], ids=str
)
def test_a_method_that_writes_needs_a_scope_to_write_and_any_other_a_scope_to_read(service: str, row: Method) -> None:
    kind = "admin" if service == ADMIN_SERVICE else "carts"
    assert PERMISSIONS[service][row.name] == f"{kind}.{'write' if row.writes else 'read'}"


def register(permissions: dict[str, dict[str, str]]) -> None:
    servicer: Any = type("Servicer", (cart_service_pb2_grpc.CartServiceServicer,), {})()
    pipeline = pipeline_of(grpc.aio.server(), METHODS[CART_SERVICE], permissions=permissions)
    cart_service_pb2_grpc.add_CartServiceServicer_to_server(servicer, pipeline)


async def test_a_method_without_a_rule_prevents_registration() -> None:
    permissions = permissions_of(METHODS[CART_SERVICE])
    del permissions[CART_SERVICE]["GetCart"]
    with pytest.raises(MethodMismatch, match=f"the same methods of /{CART_SERVICE}: GetCart$"):
        register(permissions)


async def test_a_rule_without_a_method_prevents_registration() -> None:
    permissions = permissions_of(METHODS[CART_SERVICE])
    permissions[CART_SERVICE]["Vanished"] = PUBLIC
    with pytest.raises(MethodMismatch, match=f"the same methods of /{CART_SERVICE}: Vanished$"):
        register(permissions)


@pytest.mark.parametrize("service", HEALTH_AND_REFLECTION)
async def test_a_method_of_health_or_reflection_without_a_rule_prevents_registration(service: str) -> None:
    permissions = {name: rules for name, rules in PERMISSIONS.items() if name != service}
    guards = Guards(Deadlines(10), Receiver(10), streams_with())
    pipeline: Any = Pipeline(grpc.aio.server(), HEALTH_AND_REFLECTION, permissions, guards)
    with pytest.raises(MethodMismatch, match=f"the same methods of /{service}: "):
        add_all(pipeline)


def add_all(pipeline: Any) -> None:
    health_pb2_grpc.add_HealthServicer_to_server(Health(""), pipeline)
    add_reflection(pipeline, ())


# Names in messages that several methods use. These methods do not read them: see the test with another user's values.
UNREAD = {
    "AddItem": {"item.name"},
    "BatchAddItems": {"requests.parent", "requests.item.name"},
    "CreateCart": {"cart.name", "cart.items.name"},
    "UpdateCart": {"cart.items.name"},
    "ReplaceItems": {"items.name"},
}
# Text that names no resource, or an output, which no method reads. A new field must be added here, or to the resources.
OTHER_TEXTS = frozenset(
    {"request_id", "etag", "page_token", "filter", "order_by", "cart_id", "order_reference", "sku", "currency_code"}
    | {"paths", "key", "value", "uid", "reservation_id", "reason", "message", "checkout", "merged_into"}
)


def text_fields(message: Descriptor, path: str = "") -> Iterator[str]:
    """The paths of the text fields of a message, at any depth."""
    for field in message.fields:
        if field.message_type:
            yield from text_fields(field.message_type, f"{path}{field.name}.")
        elif field.type == FieldDescriptor.TYPE_STRING:
            yield f"{path}{field.name}"


@pytest.mark.parametrize("method", RIGHT)
def test_every_field_that_names_a_resource_is_among_the_resources_of_its_method(method: str) -> None:
    texts = text_fields(descriptor_of(method).input_type)
    names = {path for path in texts if path.rpartition(".")[2] not in OTHER_TEXTS}
    assert names - UNREAD.get(method, set()) == set(ROWS[method].resources)


@pytest.fixture(scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    async with open_shop(tmp_path_factory.mktemp("permissions")) as shop:
        yield shop


@pytest.mark.parametrize("method", RIGHT)
async def test_a_users_token_with_scopes_allows_just_the_methods_of_these_scopes(shop: Shop, method: str) -> None:
    needed = PERMISSIONS[CART_SERVICE][method]
    for scope in (CARTS_READ, CARTS_WRITE):
        alice = await shop.user("alice", scope=scope)
        assert await lacking_scope(alice, method, right(method)) == ("" if scope == needed else needed)


@pytest.mark.parametrize("method", RIGHT)
async def test_a_service_without_act_as_may_name_no_user(shop: Shop, method: str) -> None:
    request = right(method, NOWHERE)
    assert await lacking_scope(await shop.service(LONER), method, request) == CARTS_ACT_AS


@pytest.mark.parametrize("method", RIGHT)
async def test_a_service_with_act_as_may_name_every_user_within_its_scopes(shop: Shop, method: str) -> None:
    needed, request = PERMISSIONS[CART_SERVICE][method], right(method, NOWHERE)
    assert await lacking_scope(await shop.service(WEB), method, request) == ""
    assert await lacking_scope(await shop.service(READER), method, request) == ("" if needed == CARTS_READ else needed)
    assert await lacking_scope(await shop.service(JOBS), method, request) == ("" if needed == CARTS_WRITE else needed)


@pytest.mark.parametrize("method", RIGHT)
async def test_services_of_operators_and_unknown_services_may_call_no_method_of_callers(
    shop: Shop, method: str
) -> None:
    for name in (OPERATOR, AUDITOR, "stranger.example"):
        denied = await lacking_scope(await shop.service(name), method, right(method, NOWHERE))
        assert denied == PERMISSIONS[CART_SERVICE][method]


@pytest.mark.parametrize("method", RIGHT_OF_OPERATORS)
async def test_a_method_of_operators_needs_a_scope_of_operators_and_names_any_user(shop: Shop, method: str) -> None:
    needed = PERMISSIONS[ADMIN_SERVICE][method.removeprefix(f"{ADMIN}/")]
    lacking = {OPERATOR: "", AUDITOR: "" if needed == "admin.read" else needed, WEB: needed}
    for name, scope in lacking.items():
        operator = await shop.service(name, port="operators")
        assert await lacking_scope(operator, method, right(method)) == scope
