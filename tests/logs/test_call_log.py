"""One line for each call that is refused, fails or is slow, and none for others."""

import asyncio
from contextlib import suppress
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_service_pb2 as pb

from cart_grpc.authentication.refusals import PermissionDenied, TokenMissing
from cart_grpc.carts import refusals
from cart_grpc.carts.refusals import CallRefused, FieldViolation, InvalidArgument
from cart_grpc.logs import events, output
from cart_grpc.logs.limits import LINES_PER_WINDOW
from cart_grpc.logs.log import Log
from cart_grpc.rpc.call_log import CALL, in_max_wait
from cart_grpc.rpc.endpoint import CallLog, Observers
from tests.logs.lines import parse, started
from tests.rpc.serving import Servicer, serving
from tests.waiting import until

GET = "/cartgrpc.v1.CartService/GetCart"
TRACE = "0af7651916cd43dd8448eb211c80319c"
QUICK, SLOW, ALL = CallLog(3600), CallLog(0), CallLog(3600, all_calls=True)
log = Log("cart_grpc.example")
OURS = ("cart_grpc.rpc.call_log", "cart_grpc.logs.output", "cart_grpc.example")


async def answer(_request: Any, _context: Any) -> Any:
    return pb.GetCartResponse()


def refusing(error: BaseException) -> Servicer:
    async def servicer(_request: Any, _context: Any) -> Any:
        raise error

    return servicer


async def lines_of(servicer: Servicer, config: CallLog, calls: int = 1, metadata: Any = ()) -> list[dict[str, Any]]:
    """The lines that calls of GetCart leave in the log."""
    with started("json") as written:
        async with serving(servicer, observers=Observers(call_log=config)) as server:
            request = pb.AddItemRequest(parent="users/alice/carts/default", request_id="r-1")
            for _ in range(calls):
                with suppress(grpc.aio.AioRpcError):
                    await server.stub.AddItem(request, metadata=metadata, timeout=20)
        output.report_suppressed(is_last=True)
    return ours(written.getvalue())


def ours(written: str) -> list[dict[str, Any]]:
    """The lines of this test. Servers that other tests share may log that they wait for their database."""
    return [line for line in parse(written) if line["logger"] in OURS]


REFUSALS: list[tuple[CallRefused, str, str, dict[str, object]]] = [
    (
        InvalidArgument([FieldViolation("item.quantity", "OUT_OF_RANGE", "must be 1 to 9, not 10")]),
        "call_refused", "INVALID_ARGUMENT", {"field": "item.quantity", "violation": "OUT_OF_RANGE"},
    ),
    (
        InvalidArgument([FieldViolation("item.labels[hunter2]", "INVALID_LENGTH", "too long")]),
        "call_refused", "INVALID_ARGUMENT", {"field": "item.labels[...]"},
    ),
    (
        InvalidArgument([FieldViolation("items[3].sku", "INVALID_ID", "wrong")]),
        "call_refused", "INVALID_ARGUMENT", {"field": "items[3].sku"},
    ),
    (TokenMissing(), "call_refused", "UNAUTHENTICATED", {"reason": "TOKEN_MISSING"}),
    (PermissionDenied("carts.act-as", "parent"), "call_refused", "PERMISSION_DENIED", {"field": "parent"}),
    (refusals.CartNotFound("users/hunter2/carts/x"), "call_refused", "NOT_FOUND", {"reason": "CART_NOT_FOUND"}),
    (refusals.EtagMismatch("n", "hunter2", "b"), "call_refused", "ABORTED", {"reason": "ETAG_MISMATCH"}),
    (refusals.TooManyCalls("user", 8), "call_refused", "RESOURCE_EXHAUSTED", {"holder": "user", "limit": "8"}),
    (refusals.ShuttingDown(), "call_refused", "UNAVAILABLE", {"reason": "SHUTTING_DOWN"}),
    (refusals.Overloaded(), "call_failed", "RESOURCE_EXHAUSTED", {"reason": "OVERLOADED"}),
    (refusals.DatabaseUnavailable(), "call_failed", "UNAVAILABLE", {"reason": "DATABASE_UNAVAILABLE"}),
    (refusals.CallTimeout(10), "call_failed", "DEADLINE_EXCEEDED", {"reason": "CALL_TIMEOUT"}),
]  # fmt: skip


@pytest.mark.parametrize(("refusal", "event", "code", "fields"), REFUSALS, ids=lambda value: type(value).__name__)
async def test_a_refused_call_is_one_line_with_its_code_and_its_cause(
    refusal: CallRefused, event: str, code: str, fields: dict[str, object]
) -> None:
    [line] = await lines_of(refusing(refusal), QUICK)
    assert (line["event"], line["code"]) == (event, code)
    assert line["level"] == ("INFO" if event == "call_refused" else "WARNING")
    assert line["method"] == line["message"] == GET.replace("GetCart", "AddItem")
    assert (line["user"], line["request_id"], line["peer"]) == ("alice", "r-1", "ipv4:127.0.0.1")
    assert fields.items() <= line.items()
    assert "hunter2" not in str(line)


async def test_an_ordinary_call_has_a_line_only_if_all_are_wanted() -> None:
    assert await lines_of(answer, QUICK) == []
    [line] = await lines_of(answer, ALL)
    assert (line["event"], line["code"]) == ("call_ended", "OK")


async def test_a_slow_call_is_one_line() -> None:
    [line] = await lines_of(answer, SLOW)
    assert (line["event"], line["level"], line["code"]) == ("call_slow", "WARNING", "OK")
    [line] = await lines_of(answer, CallLog(0, all_calls=True))
    assert line["event"] == "call_slow"


async def test_the_time_in_max_wait_does_not_make_a_call_slow() -> None:
    seen: list[float] = []

    async def servicer(_request: Any, _context: Any) -> Any:
        with in_max_wait():
            await asyncio.sleep(0.05)
        call = CALL.get()
        assert call
        seen.append(call.waited_seconds)
        call.waited_seconds = 3600.0
        return pb.GetCartResponse()

    assert await lines_of(servicer, CallLog(0)) == []
    assert seen[0] > 0


async def test_a_bug_is_one_line_with_its_traceback_and_the_id_that_the_caller_gets() -> None:
    [line] = await lines_of(refusing(ValueError("a bug")), QUICK)
    assert (line["event"], line["level"]) == ("internal_error", "ERROR")
    assert line["error_id"] in line["message"]
    assert line["request_id"] == "r-1"
    assert "ValueError: a bug" in line["exception"]


@pytest.mark.parametrize(
    ("header", "trace_id"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        ("hunter2", None),
    ],
)
async def test_a_line_has_the_id_of_the_callers_trace(header: str, trace_id: str | None) -> None:
    [line] = await lines_of(refusing(TokenMissing()), QUICK, metadata=(("traceparent", header),))
    assert line.get("trace_id") == trace_id
    assert "hunter2" not in str(line)


async def test_every_line_of_a_call_has_its_request_id_and_those_of_other_tasks_do_not() -> None:
    async def background() -> None:
        log(events.WRITES_FAILING, "another task")

    async def servicer(_request: Any, _context: Any) -> Any:
        log(events.OPERATOR_RESUMED, "this call")
        await asyncio.create_task(background())
        return pb.GetCartResponse()

    of_call, of_others = await lines_of(servicer, QUICK)
    assert of_call["request_id"] == "r-1"
    assert "request_id" not in of_others


async def test_a_flood_of_refused_calls_is_a_few_lines_and_their_number() -> None:
    *lines, last = await lines_of(refusing(refusals.Overloaded()), QUICK, calls=200)
    assert 1 <= len([line for line in lines if line["event"] == "call_failed"]) < 3 * LINES_PER_WINDOW
    assert last["event"] == "lines_suppressed"
    assert (last["of_event"], last["reason"]) == ("call_failed", "OVERLOADED")
    written = sum(line.get("suppressed", 1) for line in [*lines, last])
    assert written == 200


async def test_a_call_that_its_caller_gave_up_is_no_line() -> None:
    began = asyncio.Event()

    async def servicer(_request: Any, _context: Any) -> Any:
        began.set()
        await asyncio.sleep(3600)

    async def give_up(config: CallLog) -> list[dict[str, Any]]:
        began.clear()
        with started("json") as written:
            async with serving(servicer, observers=Observers(call_log=config)) as server:
                call = server.stub.GetCart(pb.GetCartRequest())
                asyncio.get_running_loop().call_soon(lambda: None)
                waiting = asyncio.ensure_future(call)
                await began.wait()
                waiting.cancel()
                await asyncio.wait([waiting])
                await until(lambda: config is QUICK or "CANCELLED" in written.getvalue())
        return ours(written.getvalue())

    assert await give_up(QUICK) == []
    [line] = await give_up(ALL)
    assert (line["event"], line["code"]) == ("call_ended", "CANCELLED")
