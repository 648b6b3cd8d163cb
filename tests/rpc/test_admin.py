"""The operators' port: its replies, its refusals, and that callers do not reach it."""

import base64
import itertools
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_admin_service_pb2 as pb
from cartgrpc.v1 import cart_admin_service_pb2_grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2

from cart_grpc.carts.model import Checkout, CheckoutState
from cart_grpc.names import CheckoutKey, user_key
from cart_grpc.rpc.methods import ADMIN_SERVICE as NAME
from cart_grpc.rpc.methods import CART_SERVICE
from cart_grpc.rpc.pages import decode_token, encode_token
from cart_grpc.store.rows import CHECKOUTS as CHECKOUTS_TABLE
from tests.rpc.conftest import quiet_settings
from tests.rpc.refusal import call, refuse
from tests.rpc.right import ADMIN, ADMIN_SERVICE, CHECKOUT, RESERVATION, RIGHT_OF_OPERATORS, request_of, right
from tests.rpc.test_health import check_health
from tests.rpc.test_pipeline import (
    COUNTS,
    GARBAGE,
    assert_malformed,
    assert_statuses_are_intended,
    call_bytes,
    in_first_text,
)
from tests.rpc.test_refusals import (
    CONTROL,
    GARBAGE_TOKENS,
    INT32,
    INT64,
    Row,
    assert_named,
    by_field,
    readable_fields,
    row,
)
from tests.service.conftest import Replica, running_replica

METHODS = list(RIGHT_OF_OPERATORS)
NAMED = [f"{ADMIN}/{name}" for name in ("GetReservation", "RetryReservation", "ReleaseReservation")]
LIST, CARTS, CHECKOUTS, RELEASE, PAUSE, END = (
    f"{ADMIN}/{name}"
    for name in (
        "ListReservations", "ListCarts", "ListCheckouts", "ReleaseReservation", "PauseReservations", "EndCheckout"
    )
)  # fmt: skip
LISTS = (LIST, CARTS, CHECKOUTS)
BAD_NAMES = [
    "", "reservations", "reservations/", "reservations/x", "reservations/-", f"/{RESERVATION}", f"{RESERVATION}/",
    f"{RESERVATION}\n", RESERVATION.upper(), RESERVATION.replace("-", ""), RESERVATION.removeprefix("reservations/"),
    RESERVATION.replace("reservations", "carts"), RESERVATION[:-1], f"{RESERVATION}0", RESERVATION.replace("0", "g"),
    RESERVATION.replace("0", "٠"), "\0", "x" * 60_000,
]  # fmt: skip


def rows() -> Iterator[Row]:
    for method in NAMED:
        yield from (row(method, "name", "INVALID_NAME", bad) for bad in BAD_NAMES)
    for method in (RELEASE, PAUSE, END):
        yield from (row(method, "reason", "INVALID_LENGTH", bad) for bad in ("", "r" * 257))
        yield from (row(method, "reason", "CONTROL_CHARACTER", f"a{control}b") for control in CONTROL)
    for number in (-1, INT32[0]):
        yield row(LIST, "min_attempt_count", "OUT_OF_RANGE", number)
        yield from (row(method, "page_size", "OUT_OF_RANGE", number) for method in LISTS)
    for seconds, nanos in ((-1, 0), (0, -1), (315_360_000, 1), *((extreme, 0) for extreme in INT64), (0, INT32[1])):
        for method in LISTS:
            yield row(method, "min_age", "OUT_OF_RANGE", Duration(seconds=seconds, nanos=nanos))
    for method, states in ((LIST, [0]), (LIST, [11]), (LIST, [-1]), (LIST, [1, INT32[1]]), (CARTS, [0]), (CARTS, [7]),
                           (CHECKOUTS, [0]), (CHECKOUTS, [7])):  # fmt: skip
        label = f"{method}-states-{states}"
        yield Row(method, "states", "INVALID_STATE", lambda request, bad=states: request.states.extend(bad), label)  # type: ignore[misc]
    for method in (LIST, CARTS):
        yield row(method, "sku", "INVALID_LENGTH", "s" * 129)
        yield from (row(method, "sku", "CONTROL_CHARACTER", f"a{control}b") for control in CONTROL)
    for bad in ("a b", "é", "a\0", "a/b", "%", "a" * 129):
        yield row(CARTS, "user_prefix", "INVALID_ID", bad)
    for bad in ("users/", "users/a/carts/", "users/a/b/c", "carts/a", "users/a\n"):
        yield row(LIST, "parent", "INVALID_NAME", bad)
        yield row(f"{ADMIN}/EraseUser", "name", "INVALID_NAME", bad)


def further_rows() -> Iterator[Row]:
    for method in (END, f"{ADMIN}/GetCheckout"):
        yield from (row(method, "name", "INVALID_NAME", bad) for bad in ("", RESERVATION, f"{CHECKOUT}/", "\0"))
    for method in LISTS:
        yield from (row(method, "page_token", "INVALID_PAGE_TOKEN", text) for text in GARBAGE_TOKENS)
    yield row(CHECKOUTS, "order_reference", "INVALID_LENGTH", "o" * 129)
    yield row(CHECKOUTS, "order_reference", "CONTROL_CHARACTER", "a\0b")


TABLE = [*rows(), *further_rows()]


@pytest.fixture(scope="session")
async def admin(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Replica]:
    """The operators' port of a server without a reconciler. It has the reservation that the valid requests name."""
    file = tmp_path_factory.mktemp("admin") / "cart.db"
    settings = quiet_settings(f"sqlite:///{file}").with_changes(admin_listen="127.0.0.1:0")
    async with running_replica(settings, reconcile=False) as replica:
        await replica.add()
        name_the_reservation(file)
        insert_the_checkout(file)
        for sku in ("filters", "kettle"):
            await replica.add(sku)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{replica.admin_port}") as channel:
            stub: Any = cart_admin_service_pb2_grpc.CartAdminServiceStub(channel)
            yield Replica(stub, channel, replica.port)


def name_the_reservation(file: Path) -> None:
    name = (RESERVATION.removeprefix("reservations/"),)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE reservations SET reservation_id = ?", name)
        connection.execute("UPDATE items SET reservation_id = ?", name)
        connection.commit()


def insert_the_checkout(file: Path) -> None:
    """Insert the checkout that the valid requests name, CANCELLED."""
    user = user_key("alice")
    key = CheckoutKey(*user, CHECKOUT.rpartition("/")[2])
    row = CHECKOUTS_TABLE.to_row(
        Checkout(key, "default", "uid", CheckoutState.CANCELLED, False, "", 0, 1, 1, "order-17", "", 1, 1, 1, 1, 1, 1)
    )
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(f"INSERT INTO checkouts VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608
        connection.commit()


def test_every_method_has_a_valid_request_and_every_field_a_row() -> None:
    assert {f"{ADMIN}/{method.name}" for method in ADMIN_SERVICE.methods} == set(METHODS)
    read = {
        (f"{ADMIN}/{method.name}", path)
        for method in ADMIN_SERVICE.methods
        for path in readable_fields(method.input_type)
    }
    booleans = {(RELEASE, "force"), (END, "force"), (f"{ADMIN}/EraseUser", "progress_only")}
    assert read - booleans == {(one.method, one.field) for one in TABLE}


@pytest.mark.parametrize("rows", by_field(TABLE))
async def test_an_invalid_field_is_named(admin: Replica, rows: Sequence[Row]) -> None:
    await assert_named(admin, rows)


@pytest.mark.parametrize("method", METHODS)
async def test_the_valid_requests_succeed(admin: Replica, method: str) -> None:
    await call(admin, method.removeprefix(f"{ADMIN}/"), right(method))


@pytest.mark.parametrize("method", NAMED)
async def test_an_unknown_reservation_is_not_found(admin: Replica, method: str) -> None:
    request = right(method)
    request.name = RESERVATION.replace("0", "1")
    refusal = await refuse(admin, method.removeprefix(f"{ADMIN}/"), request)
    assert (refusal.code, refusal.info.reason) == ("NOT_FOUND", "RESERVATION_NOT_FOUND")
    assert refusal.detail(error_details_pb2.ResourceInfo).resource_name == request.name


@pytest.mark.parametrize("method", [method for method in METHODS if RIGHT_OF_OPERATORS[method]])
async def test_garbage_bytes_are_refused_as_malformed(admin: Replica, method: str) -> None:
    for data in GARBAGE.values():
        if not data.startswith(b"\x0a"):
            await assert_malformed(admin, method, data)


@pytest.mark.parametrize("method", [*NAMED, PAUSE])
async def test_text_that_is_not_utf_8_is_malformed(admin: Replica, method: str) -> None:
    await assert_malformed(admin, method, in_first_text(request_of(method).DESCRIPTOR, b"\xc3\x28"))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("method", METHODS)
async def test_no_request_causes_an_internal_or_unknown_error(admin: Replica, method: str, count: int) -> None:
    await assert_statuses_are_intended(admin, method, count)


@pytest.mark.parametrize(
    "change",
    [
        {"states": [pb.ReservationRecord.STATE_DUE]},
        {"min_attempt_count": 1},
        {"min_age": Duration(seconds=1)},
        {"parent": "users/alice"},
        {"parent": "users/alice/carts/default"},
        {"sku": "kettle"},
    ],
    ids=str,
)
async def test_a_page_token_is_valid_only_for_its_own_filter(admin: Replica, change: dict[str, Any]) -> None:
    token = await forged(admin)
    refusal = await refuse(admin, "ListReservations", pb.ListReservationsRequest(page_token=token, **change))
    assert refusal.violations == {"page_token": "INVALID_PAGE_TOKEN"}


@pytest.mark.parametrize(
    "change", [{"states": [1]}, {"user_prefix": "al"}, {"min_age": Duration(seconds=1)}, {"sku": "kettle"}], ids=str
)
async def test_a_page_token_of_carts_is_valid_only_for_its_own_filter(admin: Replica, change: dict[str, Any]) -> None:
    first = await call(admin, "ListCarts", pb.CartAdminServiceListCartsRequest(page_size=1))
    request = pb.CartAdminServiceListCartsRequest(page_token=first.next_page_token, **change)
    assert (await refuse(admin, "ListCarts", request)).violations == {"page_token": "INVALID_PAGE_TOKEN"}


async def test_a_page_token_of_carts_names_a_cart_in_its_own_slice(admin: Replica) -> None:
    first = await call(admin, "ListCarts", pb.CartAdminServiceListCartsRequest(page_size=1))
    query, slice_, *key = decode_token(first.next_page_token)
    for parts in ([query, slice_ + 1, *key], [query, str(slice_), *key], [query, slice_, "a b", "x"], [query, slice_]):
        request = pb.CartAdminServiceListCartsRequest(page_token=encode_token(parts))
        assert (await refuse(admin, "ListCarts", request)).violations == {"page_token": "INVALID_PAGE_TOKEN"}


@pytest.mark.parametrize("parts", [[0, "x"], ["1", None], [True, None], [2**63, None], [-1, None], [1.5, None], [0]])
async def test_a_tampered_page_token_is_refused(admin: Replica, parts: list[Any]) -> None:
    reservation_id = RESERVATION.removeprefix("reservations/")
    token = await forged(admin, *(reservation_id if part is None else part for part in parts))
    refusal = await refuse(admin, "ListReservations", pb.ListReservationsRequest(page_token=token))
    assert refusal.violations == {"page_token": "INVALID_PAGE_TOKEN"}


async def forged(admin: Replica, *parts: Any) -> str:
    """The token of the second page of the unfiltered list; with `parts`, it contains these instead."""
    token = (await call(admin, "ListReservations", pb.ListReservationsRequest(page_size=1))).next_page_token
    content = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    forged = json.dumps([content[0], *(parts or content[1:])])
    return base64.urlsafe_b64encode(forged.encode()).decode().rstrip("=")


async def test_each_port_serves_only_its_own_service(admin: Replica) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{admin.port}") as callers:
        for channel, method in itertools.chain(
            ((callers, f"/{NAME}/{method.name}") for method in ADMIN_SERVICE.methods),
            [(admin.channel, f"/{CART_SERVICE}/ListCarts")],
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call_bytes(channel, method, b"")
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED, method


async def test_without_an_admin_address_there_is_no_admin_port(validator: Replica) -> None:
    assert validator.admin_port == 0


async def test_the_admin_port_serves_health(admin: Replica) -> None:
    for service in ("", NAME):
        assert (await check_health(admin, service)).status == health_pb2.HealthCheckResponse.SERVING
