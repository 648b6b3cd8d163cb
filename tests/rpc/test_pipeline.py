"""Every unary call ends with an intended status, whatever the request contains and whichever bug it meets."""

import asyncio
import logging
import random
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.rpc import error_details_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cart_grpc.carts.refusals import CartNotFound, DatabaseUnavailable, OutcomeUnknown, Overloaded, ShuttingDown
from cart_grpc.rpc import fields, layers
from cart_grpc.rpc.deadlines import Deadlines
from cart_grpc.rpc.methods import CART_SERVICE
from tests.deadlines import growing
from tests.rpc.refusal import MAX_METADATA, Refusal, call, refuse, to_refusal
from tests.rpc.right import NEED_A_SALE, descriptor_of, path_of, request_of, right
from tests.rpc.serving import Servicer, serving
from tests.service.conftest import Replica

DESCRIPTOR = cart_service_pb2.DESCRIPTOR.services_by_name["CartService"]
METHODS = [method.name for method in DESCRIPTOR.methods]
SECRET = "postgresql://cart:hunter2@db/cart"
CART = "users/alice/carts/default"
GET = cart_service_pb2.GetCartRequest(name=CART)


async def call_bytes(channel: grpc.aio.Channel, path: str, data: bytes) -> bytes:
    """Call with exactly these bytes as the request message. Of a stream, return the first message."""
    if path.endswith("/WatchCart"):
        watch: Any = channel.unary_stream(path)
        call = watch(data, timeout=20)
        first: bytes = await call.read()
        call.cancel()
        return first
    method: Any = channel.unary_unary(path)
    answer: bytes = await method(data, timeout=20)
    return answer


async def refuse_bytes(channel: grpc.aio.Channel, path: str, data: bytes) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call_bytes(channel, path, data)
    return to_refusal(caught.value)


GARBAGE = {
    "random bytes": b"\xff\xfe\xfd\xfc\xfb",
    "a length beyond the end": b"\x0a\x7fabc",
    "a number without an end": b"\x0a" + b"\xff" * 20,
    "field number zero": b"\x02\x00",
    "an unknown wire type": b"\x0f\x00",
    "a group without an end": b"\xc3\x3e",
    "an end without a group": b"\xc4\x3e",
    "groups in groups, 101 deep": b"\xc3\x3e" * 101 + b"\xc4\x3e" * 101,
    "text that is not UTF-8": b"\x0a\x02\xc3\x28",
    "half a surrogate pair": b"\x0a\x03\xed\xa0\x80",
    "an overlong zero": b"\x0a\x02\xc0\x80",
    "JSON": b'{"name": "users/alice/carts/default"}',
    "an HTTP request": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("method", METHODS)
async def test_garbage_bytes_are_refused_as_malformed(validator: Replica, method: str) -> None:
    for kind, data in GARBAGE.items():
        if kind in ("text that is not UTF-8", "half a surrogate pair", "an overlong zero"):
            data = in_first_text(DESCRIPTOR.methods_by_name[method].input_type, data[2:])  # noqa: PLW2901
        await assert_malformed(validator, method, data)


async def assert_malformed(replica: Replica, method: str, data: bytes) -> None:
    """Assert that these bytes are refused as malformed."""
    refusal = await refuse_bytes(replica.channel, path_of(method), data)
    assert (refusal.code, refusal.info.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert list(refusal.violations.values()) == ["MALFORMED_REQUEST"]
    assert refusal.info.metadata["violation"] == "MALFORMED_REQUEST"


def in_first_text(message: Descriptor, text: bytes) -> bytes:
    """A message with `text` in its first text field, at any depth."""
    first = next(one for one in message.fields if one.number == 1)
    if first.type == FieldDescriptor.TYPE_STRING:
        return b"\x0a" + bytes([len(text)]) + text
    assert first.message_type is not None
    inner = in_first_text(first.message_type, text)
    return b"\x0a" + bytes([len(inner)]) + inner


@pytest.mark.parametrize("text", [b"{}", b' \n{"name": "users/alice/carts/default"}', b'{"a|b": "|}"}'])
async def test_a_request_in_json_is_refused_with_the_encoding_to_use(validator: Replica, text: bytes) -> None:
    refusal = await refuse_bytes(validator.channel, f"/{CART_SERVICE}/GetCart", text)
    assert list(refusal.violations.values()) == ["MALFORMED_REQUEST"]
    assert refusal.message == (
        "the request message is JSON; this server speaks only protobuf: send application/grpc+proto"
    )


async def test_unknown_groups_nested_100_deep_are_ignored(validator: Replica) -> None:
    data = (
        b"\xc3\x3e" * 99
        + b"\xc4\x3e" * 99
        + cart_service_pb2.ListCartsRequest(parent="users/alice").SerializeToString()
    )
    await call_bytes(validator.channel, f"/{CART_SERVICE}/ListCarts", data)


async def test_fields_of_a_later_version_are_ignored(validator: Replica) -> None:
    data = cart_service_pb2.ListCartsRequest(parent="users/alice").SerializeToString() + b"\xc2\x3e\x03abc"
    await call_bytes(validator.channel, f"/{CART_SERVICE}/ListCarts", data)


@pytest.mark.parametrize(
    "path", [f"/{CART_SERVICE}/Nonsense", "/cartgrpc.v1.Nonsense/GetCart", "/cart.v2.CartService/GetCart", "/x"]
)
async def test_an_unknown_method_is_unimplemented(validator: Replica, path: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call_bytes(validator.channel, path, b"\xff")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_above_four_megabytes_is_refused_and_the_connection_stays_usable(validator: Replica) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call_bytes(validator.channel, f"/{CART_SERVICE}/GetCart", b"\x0a" * (4 * 1024 * 1024 + 1))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    await call(validator, "ListCarts", cart_service_pb2.ListCartsRequest(parent="users/alice"))


def raising(error: BaseException) -> Servicer:
    async def servicer(_request: Any, _context: Any) -> Any:
        raise error

    return servicer


def chained() -> Exception:
    error = RuntimeError("no cart")
    error.__cause__ = ValueError(SECRET)
    return error


BUGS: dict[str, BaseException] = {
    "ValueError": ValueError(SECRET),
    "KeyError": KeyError(SECRET),
    "a stray CancelledError": asyncio.CancelledError(SECRET),
    "a TimeoutError of its own": TimeoutError(SECRET),
    "an exception with a cause": chained(),
    "an exception group": ExceptionGroup(SECRET, [ValueError(SECRET)]),
    "StopAsyncIteration": StopAsyncIteration(SECRET),
    "RecursionError": RecursionError(SECRET),
    "an exception with line ends": ValueError(f"{SECRET}\r\nx: y"),
}


@pytest.mark.parametrize("kind", list(BUGS))
async def test_a_bug_reaches_the_caller_as_an_id_and_the_log_has_the_exception(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(raising(BUGS[kind])) as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(server, "GetCart", GET)
    refusal = to_refusal(caught.value)
    error_id = refusal.info.metadata["error_id"]
    assert len(error_id) == 16
    assert (refusal.code, refusal.info.reason) == ("INTERNAL", "INTERNAL")
    assert refusal.message == f"internal error {error_id}"
    assert dict(refusal.info.metadata) == {"error_id": error_id}
    assert not refusal.details
    seen = f"{caught.value!r} {caught.value.trailing_metadata()} {caught.value.initial_metadata()}"
    assert "hunter2" not in seen
    assert type(BUGS[kind]).__name__ not in seen
    logged = [record for record in caplog.records if error_id in record.getMessage()]
    assert [record.levelno for record in logged] == [logging.ERROR]
    assert "GetCart" in logged[0].getMessage()
    assert "hunter2" in caplog.text


async def test_every_bug_gets_its_own_id() -> None:
    async with serving(raising(ValueError(SECRET))) as server:
        messages = {(await refuse(server, "GetCart", GET)).message for _ in range(5)}
    assert len(messages) == 5


@pytest.mark.parametrize("answer", [None, "a text"], ids=repr)
async def test_a_reply_that_is_not_a_message_is_reported_as_a_bug(
    answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    async def servicer(_request: Any, _context: Any) -> Any:
        return answer

    async with serving(servicer) as server:
        refusal = await refuse(server, "GetCart", GET)
    assert refusal.code == "INTERNAL"
    assert refusal.info.metadata["error_id"] in caplog.text


@pytest.mark.parametrize(
    ("error", "code", "retry_milliseconds"),
    [
        (CartNotFound(CART), "NOT_FOUND", None),
        (Overloaded(), "RESOURCE_EXHAUSTED", 500),
        (DatabaseUnavailable(), "UNAVAILABLE", 1000),
        (OutcomeUnknown(), "UNAVAILABLE", 1000),
        (ShuttingDown(), "UNAVAILABLE", 1000),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_a_refusal_reaches_the_caller_with_its_reason_and_its_retry_delay(
    error: Any, code: str, retry_milliseconds: int | None
) -> None:
    async with serving(raising(error)) as server:
        refusal = await refuse(server, "GetCart", GET)
    assert (refusal.code, refusal.info.reason, refusal.message) == (code, error.reason, error.message)
    if retry_milliseconds is not None:
        assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == retry_milliseconds


async def test_a_status_that_a_servicer_aborts_with_passes_unchanged_and_unlogged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def servicer(_request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "said so", (("x-more", "yes"),))

    async with serving(servicer) as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(server, "GetCart", GET)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.ALREADY_EXISTS, "said so")
    assert ("x-more", "yes") in list(caught.value.trailing_metadata() or ())
    assert not caplog.records


class Hanging:
    """A servicer that never replies; it records how it ended."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.error: BaseException | None = None

    async def __call__(self, _request: Any, _context: Any) -> Any:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.ended.set()


async def test_the_callers_deadline_cancels_the_servicer(caplog: pytest.LogCaptureFixture) -> None:
    hanging = Hanging()
    async with serving(hanging) as server:
        deadlines = growing(0.2)
        while True:
            seconds = next(deadlines)
            pending: Any = server.stub.GetCart(GET, timeout=seconds)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await pending
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            if hanging.started.is_set():
                break
        async with asyncio.timeout(10):
            await hanging.ended.wait()
    assert isinstance(hanging.error, asyncio.CancelledError)
    assert not caplog.records


async def test_a_cancelled_call_cancels_the_servicer_and_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    hanging = Hanging()
    async with serving(hanging) as server:
        pending: Any = server.stub.GetCart(GET)
        asking = asyncio.ensure_future(pending)
        async with asyncio.timeout(10):
            await hanging.started.wait()
            pending.cancel()
            await hanging.ended.wait()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert isinstance(hanging.error, asyncio.CancelledError)
    assert not caplog.records


async def test_the_server_ends_a_call_that_exceeds_the_timeout(caplog: pytest.LogCaptureFixture) -> None:
    deadlines = growing(0.1)
    while True:
        seconds = next(deadlines)
        hanging = Hanging()
        async with serving(hanging, timeout=seconds) as server:
            refusal = await refuse(server, "GetCart", GET)
        assert (refusal.code, refusal.info.reason) == ("DEADLINE_EXCEEDED", "CALL_TIMEOUT")
        assert refusal.info.metadata["timeout"] == f"{seconds:g}s"
        if hanging.started.is_set():
            break
    assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 1000
    assert hanging.ended.is_set()
    assert not caplog.records


async def test_each_call_has_its_own_timeout() -> None:
    loop, timeout = asyncio.get_running_loop(), 0.4
    took = []

    async def hang(server: Replica, after: float) -> None:
        await asyncio.sleep(after)
        began = loop.time()
        assert (await refuse(server, "GetCart", GET)).info.reason == "CALL_TIMEOUT"
        took.append(loop.time() - began)

    async with serving(Hanging(), timeout) as server:
        await asyncio.gather(*(hang(server, after) for after in (0, 0.1, 0.3)))
    assert all(timeout <= seconds < timeout + 5 for seconds in took)


@pytest.mark.parametrize("is_extended", [False, True], ids=["the common time-out", "max_wait"])
async def test_a_call_that_its_caller_cancels_at_its_timeout_stays_cancelled(is_extended: bool) -> None:
    deadlines = Deadlines(0 if not is_extended else 60)
    work = asyncio.Event().wait()
    call = asyncio.create_task(deadlines.run(deadlines.extend(work, 0) if is_extended else work))
    await asyncio.sleep(0)
    if not is_extended:
        deadlines._end_overdue()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not {*deadlines._due, *deadlines._ended}


async def test_a_reply_that_is_bytes_is_sent_unchanged() -> None:
    async def servicer(_request: Any, _context: Any) -> Any:
        return cart_service_pb2.GetCartResponse(cart=cart_pb2.Cart(name=CART)).SerializeToString()

    async with serving(servicer) as server:
        assert (await call(server, "GetCart", GET)).cart.name == CART


async def check_extension(request: cart_service_pb2.AddItemRequest, extension: float) -> None:
    """A call ends at the time-out plus `extension` seconds, if its request arrives within the time-out."""
    deadlines = growing(0.1)
    while True:
        timeout = next(deadlines)
        hanging = Hanging()
        async with serving(hanging, timeout=timeout) as server:
            refusal = await refuse(server, "AddItem", request)
        assert refusal.info.reason == "CALL_TIMEOUT"
        if hanging.started.is_set():
            break
    assert refusal.info.metadata["timeout"] == f"{timeout + extension:g}s"


@pytest.mark.parametrize(("seconds", "nanos", "extension"), [(1, 0, 1.0), (0, 900_000_000, 0.9), (1, 500_000_000, 1.5)])
async def test_max_wait_extends_the_timeout(seconds: int, nanos: int, extension: float) -> None:
    request = cart_service_pb2.AddItemRequest(parent=CART)
    request.max_wait.seconds, request.max_wait.nanos = seconds, nanos
    await check_extension(request, extension)


@pytest.mark.parametrize(("seconds", "nanos"), [(-5, 0), (0, -5), (-(2**63), 0), (0, -(2**31))])
async def test_a_negative_max_wait_does_not_shorten_the_timeout(seconds: int, nanos: int) -> None:
    request = cart_service_pb2.AddItemRequest(parent=CART)
    request.max_wait.seconds, request.max_wait.nanos = seconds, nanos

    async def servicer(_request: Any, _context: Any) -> Any:
        return cart_service_pb2.AddItemResponse(revision=7)

    async with serving(servicer, timeout=5) as server:
        assert (await call(server, "AddItem", request)).revision == 7


async def test_max_wait_extends_the_timeout_by_at_most_its_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MAX_WAIT_SECONDS", 1)
    request = cart_service_pb2.AddItemRequest(parent=CART)
    request.max_wait.seconds, request.max_wait.nanos = 2**63 - 1, 2**31 - 1
    await check_extension(request, 1.0)


NAMES = [
    CART,
    "users/alice",
    "users/alice/carts/other",
    f"{CART}/items/{'0' * 32}",
    "users/-",
    "users/a/carts/b/items/c",
    "espresso-beans",
    "EUR",
    "default",
    '"1"',
    "state = ACTIVE",
    "name desc",
    "quantity",
    "*",
    "",
    "W251bGwsMSwyXQ",
]
TEXTS = st.sampled_from(NAMES) | st.text(st.characters(codec="utf-8"), max_size=200)
NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32: st.sampled_from([0, 1, -1, 2, 100, 2**31 - 1, -(2**31)]) | st.integers(-5, 2000),
    FieldDescriptor.CPPTYPE_INT64: st.sampled_from([0, 1, -1, 60, 2**63 - 1, -(2**63)])
    | st.integers(-(2**63), 2**63 - 1),
}


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Any value of the field's type."""
    if field.message_type is not None:
        return messages(field.message_type)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return TEXTS
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.enum_type is not None:
        return st.integers(-1, 9)
    return NUMBERS[field.cpp_type]


def messages(message: Descriptor) -> st.SearchStrategy[dict[str, Any]]:
    """Any arguments for the message's constructor."""
    return st.fixed_dictionaries({}, optional={one.name: field_of(one) for one in message.fields})


def field_of(one: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Any value of a field: repeated, a map or a single value."""
    if one.message_type is not None and one.message_type.GetOptions().map_entry:
        return st.dictionaries(TEXTS, TEXTS, max_size=3)
    return st.lists(values(one), max_size=3) if one.is_repeated else values(one)


Graft = tuple[tuple[str, ...], Any]


def leaves(message: Descriptor, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldDescriptor]]:
    """The fields of a message and of the messages in it, except inside repeated fields."""
    for one in message.fields:
        if one.message_type is not None and not one.is_repeated:
            yield from leaves(one.message_type, (*path, one.name))
        else:
            yield (*path, one.name), one


def grafts(message: Descriptor) -> st.SearchStrategy[list[Graft]]:
    """One or two fields, anywhere in a message, each with any value of its type."""
    single = [st.tuples(st.just(path), field_of(one)) for path, one in leaves(message)]
    return st.lists(st.one_of(single), min_size=1, max_size=2)


def in_bytes(method: str, drawn: dict[str, Any] | list[Graft], seed: int) -> bytes:
    """An encoded request: random fields, or a valid request with a field or two and sometimes a few bytes changed."""
    rng = random.Random(seed)
    if isinstance(drawn, dict):
        request, content = request_of(method), drawn
    else:
        request, content = right(method), {}
        for path, value in drawn:
            target = content
            for part in path[:-1]:
                target = target.setdefault(part, {})
            target[path[-1]] = value
    request.MergeFrom(type(request)(**content))
    if "max_wait" in request.DESCRIPTOR.fields_by_name and 0 < request.max_wait.seconds <= fields.MAX_WAIT_SECONDS:
        # Without a reconciler, the call would wait until max_wait runs out.
        request.max_wait.seconds = 0
    data = bytearray(request.SerializeToString())
    for _ in range(rng.randrange(1, 4) if seed % 4 == 0 else 0):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(3):
            case 0:
                data[at : at + 1] = rng.randbytes(1)
            case 1:
                del data[at : at + rng.randrange(1, 5)]
            case _:
                data[at:at] = data[at : at + rng.randrange(1, 9)]
    return bytes(data)


# How many random requests of each method are sent.
COUNTS = [40, pytest.param(3_000, marks=pytest.mark.night)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("method", METHODS)
async def test_no_request_causes_an_internal_or_unknown_error(validator: Replica, method: str, count: int) -> None:
    await validator.add()
    await assert_statuses_are_intended(validator, method, count)


async def assert_statuses_are_intended(replica: Replica, method: str, count: int) -> None:
    """Send a valid request and `count` that are nearly valid or random. Assert that every status is an intended one."""
    request = descriptor_of(method).input_type
    planted = grafts(request) if request.fields else st.just([])

    @settings(max_examples=count // 10, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(st.tuples(planted | planted | messages(request), st.integers(0, 2**16)), min_size=10, max_size=10))
    def collect(drawn: list[tuple[dict[str, Any] | list[Graft], int]]) -> None:
        wire.extend(in_bytes(method, *one) for one in drawn)

    wire = [right(method).SerializeToString()]
    collect()
    assert len(wire) > count
    outcomes = await asyncio.gather(*(outcome(replica, method, data) for data in wire))
    wrong = {
        data: seen
        for data, seen in zip(wire, outcomes, strict=True)
        if seen != "OK" and not seen.startswith("intended")
    }
    assert not wrong
    # There are both successes and refusals.
    assert "OK" in outcomes or method in NEED_A_SALE
    assert not request.fields or any(seen.startswith("intended") for seen in outcomes)


EXPECTED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


async def outcome(replica: Replica, method: str, data: bytes) -> str:
    """Call, and describe the status."""
    try:
        await call_bytes(replica.channel, path_of(method), data)
    except grpc.aio.AioRpcError as error:
        size = sum(len(key) + len(value) + 32 for key, value in error.trailing_metadata() or ())
        is_rich = any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())
        is_intended = error.code() in EXPECTED and size < MAX_METADATA and is_rich
        return f"{'intended: ' if is_intended else ''}{error.code()}, {size} bytes: {error.details()}"
    return "OK"
