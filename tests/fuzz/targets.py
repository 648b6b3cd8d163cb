"""The targets by name, and those about requests. Each takes any bytes, and raises only if it found a fault."""

import dataclasses
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from cartgrpc.v1 import cart_service_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.rpc import code_pb2

from cart_grpc.authentication.caller import USER_SCOPES, Caller
from cart_grpc.authentication.refusals import PermissionDenied
from cart_grpc.carts.calls import CreateCart, Limits
from cart_grpc.carts.refusals import CallRefused, InvalidArgument
from cart_grpc.names import CartKey, CheckoutKey, UserKey
from cart_grpc.rpc import admin_requests, checkout_requests, pages, requests, status
from cart_grpc.rpc.endpoint import Endpoint
from cart_grpc.rpc.methods import METHODS as ROWS
from cart_grpc.rpc.methods import Method
from cart_grpc.rpc.permissions import PERMISSIONS, check_of
from cart_grpc.rpc.receiving import MalformedRequest
from tests.fuzz import answers, identities
from tests.fuzz.requests import METHODS, change_bytes, draw_request, encoded_right
from tests.fuzz.tape import Tape
from tests.reservation_api.fuzz import LEAVES
from tests.rpc.refusal import MAX_METADATA
from tests.rpc.right import ADMIN, RESERVATION, USER, descriptor_of, request_of, right

LIMITS: Final = Limits()
UUID: Final = RESERVATION.partition("/")[2]
# What page tokens contain: times, slices, and ids.
NUMBERS: Final = (1_770_000_000_000_000, 0, 143, 2**15, 2**31, 2**63 - 1)
IDS: Final = (UUID, "alice", "default")
# How the service checks the request of each method. It returns the call, the page, or the key.
CHECKS: Final[Mapping[str, Callable[[Any], object]]] = {
    "AddItem": lambda request: requests.add_item(request, LIMITS),
    "BatchAddItems": lambda request: requests.batch_add_items(request, LIMITS),
    "UpdateItem": lambda request: requests.update_item(request, LIMITS),
    "RemoveItem": requests.remove_item,
    "ClearCart": requests.clear_cart,
    "CreateCart": lambda request: requests.create_cart(request, LIMITS),
    "UpdateCart": lambda request: requests.update_cart(request, LIMITS),
    "DeleteCart": requests.delete_cart,
    "GetCart": requests.get_cart,
    "WatchCart": requests.watch_cart,
    "ListCarts": pages.list_carts,
    "RetryReservation": requests.retry_reservation,
    "MergeCarts": requests.merge_carts,
    "ReplaceItems": lambda request: requests.replace_items(request, LIMITS),
    "BeginCheckout": checkout_requests.begin_checkout,
    "CompleteCheckout": checkout_requests.complete_checkout,
    "CancelCheckout": checkout_requests.cancel_checkout,
    "GetCheckout": checkout_requests.get_checkout,
    "ListCheckouts": checkout_requests.list_checkouts,
    f"{ADMIN}/ListReservations": admin_requests.list_reservations,
    f"{ADMIN}/GetReservation": admin_requests.reservation_id,
    f"{ADMIN}/RetryReservation": admin_requests.reservation_id,
    f"{ADMIN}/ReleaseReservation": admin_requests.release,
    f"{ADMIN}/GetReservationStats": lambda _: None,
    f"{ADMIN}/GetProcessStats": lambda _: None,
    f"{ADMIN}/PauseReservations": admin_requests.pause,
    f"{ADMIN}/ResumeReservations": lambda _: None,
    f"{ADMIN}/EraseUser": admin_requests.erase_user,
    f"{ADMIN}/ListCarts": admin_requests.list_carts,
    f"{ADMIN}/ListCheckouts": checkout_requests.list_checkouts_of_all,
    f"{ADMIN}/GetCheckout": checkout_requests.get_checkout,
    f"{ADMIN}/EndCheckout": checkout_requests.end_checkout,
}
# The methods with pages, and the hash of a page's query.
QUERIES: Final[Mapping[str, Callable[[Any], str]]] = {
    "ListCarts": pages._query,
    "ListCheckouts": checkout_requests._query,
    f"{ADMIN}/ListReservations": admin_requests._query,
    f"{ADMIN}/ListCarts": admin_requests._cart_query,
    f"{ADMIN}/ListCheckouts": checkout_requests._query,
}


def row_of(method: str) -> Method:
    """The row of a method in the methods table."""
    service = descriptor_of(method).containing_service.full_name
    return next(row for row in ROWS[service] if row.name == method.rpartition("/")[2])


def fuzz_request(data: bytes) -> None:
    """A request drawn from its descriptor becomes a call, or is refused with the field at fault."""
    tape = Tape(data)
    method = tape.choice(METHODS)
    check_request(method, draw_request(tape, method))


def fuzz_request_bytes(data: bytes) -> None:
    """Bytes are a request, or are refused. The first byte chooses the method."""
    check_request(METHODS[data[0] % len(METHODS) if data else 0], data[1:])


def check_request(method: str, sent: bytes) -> None:
    """Decode and check a request as the service does."""
    kind, row = type(request_of(method)), row_of(method)
    endpoint: Any = Endpoint
    try:
        request = endpoint(method, row, "", kind.FromString, None, None).decode(sent)
        is_allowed = alice_may(row, method, request)
        assert isinstance(row.user_of(request), str)
        call = CHECKS[method](request)
    except CallRefused as refusal:
        check_refusal(refusal, kind.DESCRIPTOR)
        return
    check_storable(call)
    # A key stands for a name that the caller sent, and for no other name.
    names = {text.partition("/items/")[0] for _, text in texts_in(request)}
    if isinstance(call, CreateCart):
        names.add(f"{request.parent}/carts/{request.cart_id}")
    keys = keys_of(call)
    assert {key.name for key in keys} <= names, call
    # A user with a token reaches only their own resources.
    assert not is_allowed or (keys and {key.user_id for key in keys} == {"alice"}), call


def alice_may(row: Method, method: str, request: Any) -> bool:
    """Whether the token of users/alice is enough for the request, which need not be valid."""
    scope = PERMISSIONS[descriptor_of(method).containing_service.full_name][row.name]
    try:
        check_of(row, scope)(Caller("alice", "", USER_SCOPES), request)
    except PermissionDenied:
        return False
    return True


def check_refusal(refusal: CallRefused, request: Descriptor) -> None:
    """The refusal has a known code, a reason, fields of the request, and fits into a caller's metadata."""
    assert isinstance(refusal, InvalidArgument), refusal
    sent = status.to_status(refusal)
    assert sent.code == code_pb2.INVALID_ARGUMENT
    assert re.fullmatch(r"[A-Z][A-Z0-9_]{0,62}", refusal.reason), refusal.reason
    for violation in refusal.violations:
        first = re.split(r"[.\[]", violation.field)[0]
        assert first in request.fields_by_name or (not first and isinstance(refusal, MalformedRequest)), violation
        assert violation.description
        assert re.fullmatch(r"[A-Z][A-Z0-9_]{0,62}", violation.reason), violation.reason
    metadata = status.encode(refusal).trailing_metadata or ()
    assert sum(len(key) + len(value) + 32 for key, value in metadata) < MAX_METADATA


def violations_of(refusal: CallRefused) -> set[tuple[str, str]]:
    """The fields at fault, and why."""
    return {(each.field, each.reason) for each in refusal.violations} if isinstance(refusal, InvalidArgument) else set()


def check_storable(value: object) -> None:
    """Both databases can store every text and every number in `value`, which may be nested."""
    if isinstance(value, str):
        assert "\0" not in value.encode().decode()
    elif isinstance(value, int):
        assert -(2**63) <= value < 2**63, value
    elif isinstance(value, Mapping):
        check_storable(tuple(value.items()))
    elif isinstance(value, tuple | list | frozenset):
        for each in value:
            check_storable(each)
    elif dataclasses.is_dataclass(value):
        check_storable(tuple(getattr(value, field.name) for field in dataclasses.fields(value)))
    else:
        assert value is None or isinstance(value, bytes), value


def keys_of(value: object) -> list[UserKey | CartKey | CheckoutKey]:
    """The keys in a call, a page, or a key; not those at which a page begins."""
    if isinstance(value, UserKey | CartKey | CheckoutKey):
        return [value]
    if isinstance(value, tuple):
        return [key for each in value for key in keys_of(each)]
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if field.name != "after"]
        return [key for name in fields for key in keys_of(getattr(value, name))]
    return []


def texts_in(message: Message) -> Iterator[tuple[str, str]]:
    """All texts of a message, each with the name of its field."""
    for field, value in message.ListFields():
        values = value.values() if hasattr(value, "values") else value if field.is_repeated else (value,)
        for each in values:
            if isinstance(each, Message):
                yield from texts_in(each)
            elif isinstance(each, str):
                yield field.name, each


def draw_page(rng: random.Random, method: str) -> Any:
    """A request for a page, with a page token whose content fits the request, or nearly does."""
    request = right(method)
    if isinstance(request, cart_service_pb2.ListCartsRequest):
        request.order_by = rng.choice(("name", "create_time", "update_time desc"))
    elif hasattr(request, "states"):
        states = request.DESCRIPTOR.fields_by_name["states"].enum_type.values
        request.states[:] = [rng.choice(states[1:]).number]
    query = QUERIES[method](CHECKS[method](request))
    first = rng.choice((*NUMBERS, *NUMBERS, *IDS))
    content: list[Any] = [query, first, *(rng.choice(IDS) for _ in range(rng.choice((1, 1, 2))))]
    for _ in range(rng.choice((0, 0, 1, 2))):
        content[rng.randrange(len(content))] = rng.choice(LEAVES)
    token = pages.encode_token(content).encode()
    match rng.randrange(8):
        case 7:
            token = change_bytes(rng, token)
        case 6:
            token = rng.randbytes(16)
    request.page_token = token.decode(errors="ignore")
    return request


def fuzz_page_token(data: bytes) -> None:
    """A page token gives a position that can be stored and is written in the same way again, or it is refused."""
    tape = Tape(data)
    method = tape.choice(tuple(QUERIES))
    check_page_token(method, draw_page(tape, method))


def fuzz_page_token_text(data: bytes) -> None:
    """Any text is a page token, or is refused. The first byte chooses the method."""
    method = tuple(QUERIES)[data[0] % len(QUERIES) if data else 0]
    request = right(method)
    request.page_token = data[1:].decode(errors="ignore")
    check_page_token(method, request)


def check_page_token(method: str, request: Any) -> None:
    """Check a page token as the service does."""
    try:
        page: Any = CHECKS[method](request)
    except CallRefused as refusal:
        check_refusal(refusal, request.DESCRIPTOR)
        assert violations_of(refusal) == {("page_token", "INVALID_PAGE_TOKEN")}  # noqa: PT017 - it may also be accepted
        return
    assert (page.after is None) == (request.page_token == "")
    if page.after:
        check_storable(page.after)
        request.page_token = pages.encode_token([QUERIES[method](page), *page.after])
        again: Any = CHECKS[method](request)
        assert again == page


Target = Callable[[bytes], None]
TARGETS: Final[Mapping[str, Target]] = {
    "request": fuzz_request,
    "request-bytes": fuzz_request_bytes,
    "page-token": fuzz_page_token,
    "page-token-text": fuzz_page_token_text,
    **answers.TARGETS,
    **identities.TARGETS,
}
# Valid inputs to begin with, of the targets whose input is what a peer sends. A single byte chooses the kind.
SEEDS: Final[Mapping[str, Sequence[bytes]]] = {
    "request-bytes": [bytes([number]) + encoded_right(method, USER) for number, method in enumerate(METHODS)],
    "page-token-text": [
        bytes([number]) + pages.encode_token([QUERIES[method](CHECKS[method](right(method))), *position]).encode()
        for number, method in enumerate(QUERIES)
        for position in (["a", "b"], [1, UUID], [143, "alice", "default"])
    ],
    **answers.SEEDS,
    **identities.SEEDS,
}
