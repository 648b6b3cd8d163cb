"""One suite for both transports, over real sockets: against the simulator, and against invalid answers."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
from cartgrpc.reservation.v1 import reservation_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from cart_grpc.protocol.reservation import Decision, Disposition, Observed
from cart_grpc.reservation_api import wire
from cart_grpc.reservation_api.api import NoAnswerError, PermanentFailure, ReservationApi, StaleRevision, Style
from cart_grpc.reservation_api.grpc_api import GrpcReservationApi
from cart_grpc.reservation_api.http_api import HttpReservationApi
from cart_grpc.reservation_api.transports import connect
from cart_grpc.simulator.server import SimulatorConfig, SimulatorServer, make_simulator
from tests.intents import SECOND, START, Clock, Message, after, answered, hold
from tests.ports import free_port
from tests.reservation_api.hostile import HTTP_STATUSES, Hostile, Script
from tests.simulated_api import no_answer

Code = grpc.StatusCode


async def test_a_hold_is_granted_until_its_expire_time(api: ReservationApi, clock: Clock) -> None:
    intent = hold(3)
    answer = await api.apply(intent, timeout=5)
    assert answer == Decision(intent.reservation_id, 1, Observed.HELD, 3, clock.now + 600 * SECOND, "")


async def test_a_rejection_is_an_answer(api: ReservationApi) -> None:
    intent = hold(11)
    assert await api.apply(intent, timeout=5) == Decision(
        intent.reservation_id, 1, Observed.REJECTED, 0, None, "OUT_OF_STOCK"
    )


@pytest.mark.parametrize(
    ("disposition", "state", "granted"),
    [(Disposition.COMMIT, Observed.COMMITTED, 2), (Disposition.RELEASE, Observed.RELEASED, 0)],
)
async def test_a_hold_is_committed_or_released(
    api: ReservationApi, disposition: Disposition, state: Observed, granted: int
) -> None:
    first = hold(2)
    await api.apply(first, timeout=5)
    answer = await api.apply(after(first, disposition), timeout=5)
    assert answer == Decision(first.reservation_id, 2, state, granted, None, "")


async def test_a_lower_revision_is_answered_with_the_newer_decision(api: ReservationApi, clock: Clock) -> None:
    first = hold(2)
    newer = replace(first, revision=5, quantity=4)
    await api.apply(newer, timeout=5)
    current = Decision(first.reservation_id, 5, Observed.HELD, 4, clock.now + 600 * SECOND, "")
    assert await api.apply(first, timeout=5) == StaleRevision(current)


async def test_the_same_revision_with_another_body_is_refused(api: ReservationApi) -> None:
    first = hold(2)
    await api.apply(first, timeout=5)
    answer = await api.apply(replace(first, quantity=3), timeout=5)
    assert isinstance(answer, PermanentFailure)
    assert answer.reason == "REVISION_BODY_MISMATCH"


async def test_the_message_contains_every_field_of_the_intent(hostile: Hostile, hostile_api: ReservationApi) -> None:
    intent = hold(2, revision=2**32 + 7, ttl_us=1_500_001, labels={"größe": "XL", "": "\u2028"})
    hostile.script.reservation = answered(intent, Message.STATE_HELD, 2)
    await hostile_api.apply(intent, timeout=5)
    [received] = hostile.received
    assert received == Message(
        reservation_id=intent.reservation_id,
        revision=2**32 + 7,
        sku="espresso-beans",
        quantity=2,
        disposition=Message.DISPOSITION_HOLD,
        ttl=wire.to_duration(1_500_001),
        labels={"größe": "XL", "": "\u2028"},
    )


@pytest.mark.parametrize("state", list(Observed))
@pytest.mark.parametrize("disposition", list(Disposition))
async def test_only_a_state_that_can_answer_the_disposition_is_accepted(
    hostile: Hostile, hostile_api: ReservationApi, disposition: Disposition, state: Observed
) -> None:
    fitting = {
        Disposition.HOLD: {"HELD", "REJECTED", "EXPIRED", "RELEASED", "COMMITTED"},
        Disposition.COMMIT: {"COMMITTED", "REJECTED", "RELEASED"},
        Disposition.RELEASE: {"RELEASED", "COMMITTED"},
    }
    intent = hold(2, disposition=disposition)
    granted = 2 if state in (Observed.HELD, Observed.COMMITTED) else 0
    hostile.script.reservation = answered(intent, Message.State.ValueType(state), granted)
    if state.name in fitting[disposition]:
        answer = await hostile_api.apply(intent, timeout=5)
        assert isinstance(answer, Decision)
        assert (answer.state, answer.granted_quantity) == (state, granted)
    else:
        error = await no_answer(hostile_api, intent)
        assert (error.code, error.reached) == ("INVALID_ANSWER", True)


async def test_a_message_with_unknown_fields_or_numbers_is_the_same_message(
    api: ReservationApi, transport: str
) -> None:
    assert isinstance(api, GrpcReservationApi | HttpReservationApi)
    assert Style.UNKNOWN_FIELDS in api.styles
    assert (Style.JSON_NUMBERS in api.styles) is (transport == "http")
    for style in api.styles:
        intent = hold(2)
        answer = await api.apply_as(style, intent, timeout=5)
        assert isinstance(answer, Decision)
        assert await api.apply(intent, timeout=5) == answer


UNBELIEVABLE: dict[str, Callable[[Message], None]] = {
    "another id": lambda m: m.MergeFrom(Message(reservation_id="019a0b1c-2d3e-7f40-8a1b-2c3d4e5f6071")),
    "no id": lambda m: m.ClearField("reservation_id"),
    "a higher revision": lambda m: m.MergeFrom(Message(revision=m.revision + 1)),
    "no revision": lambda m: m.ClearField("revision"),
    "another sku": lambda m: m.MergeFrom(Message(sku="tea")),
    "no state": lambda m: m.ClearField("state"),
    "an unknown state": lambda m: m.MergeFrom(Message(state=Message.State.ValueType(77))),
    "too little granted": lambda m: m.MergeFrom(Message(granted_quantity=1)),
    "too much granted": lambda m: m.MergeFrom(Message(granted_quantity=2**31 - 1)),
    "a negative grant": lambda m: m.MergeFrom(Message(granted_quantity=-1)),
    "nothing granted": lambda m: m.ClearField("granted_quantity"),
    "no expire_time": lambda m: m.ClearField("expire_time"),
    "expire_time before 1970": lambda m: m.expire_time.CopyFrom(Timestamp(seconds=-1)),
    "released with a grant": lambda m: m.MergeFrom(Message(state=Message.STATE_RELEASED)),
    "expired with a grant": lambda m: m.MergeFrom(Message(state=Message.STATE_EXPIRED)),
    "a negative grant kept": lambda m: m.MergeFrom(Message(state=Message.STATE_REJECTED, granted_quantity=-3)),
}


@pytest.mark.parametrize("change", UNBELIEVABLE.values(), ids=UNBELIEVABLE)
async def test_an_answer_that_contradicts_itself_or_the_request_is_invalid(
    hostile: Hostile, hostile_api: ReservationApi, change: Callable[[Message], None]
) -> None:
    intent = hold(2)
    message = answered(intent, Message.STATE_HELD, 2)
    hostile.script.reservation = message
    assert isinstance(await hostile_api.apply(intent, timeout=5), Decision)
    change(message)
    error = await no_answer(hostile_api, intent)
    assert (error.code, error.reached, error.retry_after_us) == ("INVALID_ANSWER", True, None)


async def test_a_rejected_change_reports_the_quantity_still_held(hostile: Hostile, hostile_api: ReservationApi) -> None:
    intent = hold(5)
    hostile.script.reservation = answered(intent, Message.STATE_REJECTED, 3, reason="out of stock\n")
    answer = await hostile_api.apply(intent, timeout=5)
    assert answer == Decision(intent.reservation_id, 1, Observed.REJECTED, 3, START, "OUT_OF_STOCK")


REFUSALS = [
    Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.OUT_OF_RANGE, Code.ALREADY_EXISTS
]  # fmt: skip


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_permanent_error_is_an_answer(
    hostile: Hostile, hostile_api: ReservationApi, code: grpc.StatusCode
) -> None:
    hostile.script = Script(code=code, text="no\x00\n\x1b[31m " + "x" * 1000)
    answer = await hostile_api.apply(hold(), timeout=5)
    assert isinstance(answer, PermanentFailure)
    assert answer.reason == code.name
    assert answer.message.startswith("no [31m xxx")
    assert len(answer.message) == 500
    hostile.script.reason = "sku is discontinued!"
    answer = await hostile_api.apply(hold(), timeout=5)
    assert isinstance(answer, PermanentFailure)
    assert answer.reason == "SKU_IS_DISCONTINUED"


AMBIGUOUS = [
    Code.UNAVAILABLE, Code.INTERNAL, Code.UNKNOWN, Code.DATA_LOSS, Code.UNIMPLEMENTED, Code.PERMISSION_DENIED,
    Code.UNAUTHENTICATED, Code.DEADLINE_EXCEEDED,
]  # fmt: skip


@pytest.mark.parametrize("code", AMBIGUOUS)
async def test_any_other_error_is_no_answer(
    hostile: Hostile, hostile_api: ReservationApi, transport: str, code: grpc.StatusCode
) -> None:
    hostile.script = Script(code=code)
    error = await no_answer(hostile_api, hold())
    assert error.code == (code.name if transport == "grpc" else f"HTTP_{HTTP_STATUSES[code]}")
    assert (error.reached, error.retry_after_us) == (False, None)
    assert len(hostile.received) == 1


@pytest.mark.parametrize(("code", "reached"), [(Code.RESOURCE_EXHAUSTED, True), (Code.UNAVAILABLE, False)])
@pytest.mark.parametrize(("seconds", "expected"), [(7, 7 * SECOND), (0, None), (10**8, 86_400 * SECOND)])
async def test_the_retry_delay_of_the_api_is_reported(
    hostile: Hostile,
    hostile_api: ReservationApi,
    code: grpc.StatusCode,
    reached: bool,
    seconds: int,
    expected: int | None,
) -> None:
    hostile.script = Script(code=code, retry_after=seconds)
    error = await no_answer(hostile_api, hold())
    assert (error.retry_after_us, error.reached) == (expected, reached)


async def test_aborted_is_accepted_only_with_a_newer_reservation(hostile: Hostile, hostile_api: ReservationApi) -> None:
    intent = hold(2, revision=4)
    newer = replace(intent, revision=9, quantity=7)
    hostile.script = Script(code=Code.ABORTED, current=answered(newer, Message.STATE_HELD, 7), reason="OVERTAKEN")
    answer = await hostile_api.apply(intent, timeout=5)
    assert answer == StaleRevision(Decision(intent.reservation_id, 9, Observed.HELD, 7, START, ""))
    hostile.script.current = answered(intent, Message.STATE_HELD, 2)
    assert (await no_answer(hostile_api, intent)).code == "INVALID_ANSWER"
    hostile.script.current = answered(hold(7, revision=9), Message.STATE_HELD, 7)
    assert (await no_answer(hostile_api, intent)).code == "INVALID_ANSWER"
    for beyond in (wire.MAX_REVISION + 1, 2**63 - 2):
        hostile.script.current = answered(replace(newer, revision=beyond), Message.STATE_HELD, 7)
        error = await no_answer(hostile_api, intent)
        assert (error.code, error.reached) == ("INVALID_ANSWER", True)
    hostile.script.current = answered(replace(newer, revision=wire.MAX_REVISION), Message.STATE_HELD, 7)
    assert isinstance(await hostile_api.apply(intent, timeout=5), StaleRevision)
    hostile.script.current = None
    error = await no_answer(hostile_api, intent)
    assert error.reached


@pytest.mark.parametrize("raw", [b"", b"<html>", b"\xff" * 100, b"null", b"[]", b'{"reservation": 3}', b"[" * 60_000])
async def test_bytes_that_are_not_a_message_are_no_answer(
    hostile: Hostile, hostile_api: ReservationApi, raw: bytes
) -> None:
    hostile.script = Script(raw=raw)
    assert (await no_answer(hostile_api, hold())).code == "INVALID_ANSWER"


async def test_an_answer_over_the_size_limit_is_not_read(
    hostile: Hostile, hostile_api: ReservationApi, transport: str
) -> None:
    hostile.script = Script(raw=b" " * (wire.MAX_ANSWER_BYTES + 10))
    error = await no_answer(hostile_api, hold())
    assert error.code == ("RESOURCE_EXHAUSTED" if transport == "grpc" else "INVALID_ANSWER")
    assert error.reached


async def test_the_call_ends_at_its_deadline(hostile: Hostile, hostile_api: ReservationApi) -> None:
    hostile.script = Script(hangs=True)
    error = await no_answer(hostile_api, hold(), timeout=0.05)
    assert (error.code, error.reached) == ("DEADLINE_EXCEEDED", False)


async def test_a_call_without_time_left_is_no_answer(hostile_api: ReservationApi) -> None:
    assert (await no_answer(hostile_api, hold(), timeout=0)).code == "DEADLINE_EXCEEDED"


async def test_a_cancelled_caller_is_cancelled(hostile: Hostile, hostile_api: ReservationApi) -> None:
    hostile.script = Script(hangs=True)
    task = asyncio.ensure_future(hostile_api.apply(hold(), timeout=60))
    await hostile.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_closing_ends_calls_in_flight_without_an_answer(hostile: Hostile, hostile_api: ReservationApi) -> None:
    hostile.script = Script(hangs=True)
    task = asyncio.ensure_future(no_answer(hostile_api, hold(), timeout=60))
    await hostile.arrived.wait()
    await hostile_api.close()
    assert not (await task).reached
    assert not (await no_answer(hostile_api, hold())).reached


async def test_an_intent_that_does_not_fit_into_a_message_is_no_answer(hostile_api: ReservationApi) -> None:
    error = await no_answer(hostile_api, hold(2**31))
    assert (error.code, error.reached) == ("INTERNAL", True)


async def test_a_client_reaches_an_api_that_has_come_back(transport: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    api = connect(f"{transport}://{address}")
    assert (await no_answer(api, hold())).code == "UNAVAILABLE"
    server = SimulatorServer(make_simulator(SimulatorConfig()))
    await server.start(address if transport == "grpc" else None, address if transport == "http" else None)
    answer: Any = None
    async with asyncio.timeout(10):
        while answer is None:
            try:
                answer = await api.apply(hold(), timeout=1)
            except NoAnswerError:
                continue
    assert answer.state is Observed.HELD
    await api.close()
    await server.stop(0)


async def test_known_reservations_can_be_read_and_unknown_ones_are_missing(api: ReservationApi) -> None:
    assert isinstance(api, GrpcReservationApi | HttpReservationApi)
    first, unknown = hold(2), hold(1).reservation_id
    decided = await api.apply(first, timeout=5)
    assert await api.find(first.reservation_id, timeout=5) == decided
    assert await api.find(unknown, timeout=5) is None
    assert await api.look_up([unknown, first.reservation_id], timeout=5) == ([decided], [unknown])


async def test_a_read_that_the_server_does_not_implement_is_no_answer(
    hostile_api: ReservationApi, transport: str
) -> None:
    assert isinstance(hostile_api, GrpcReservationApi | HttpReservationApi)
    with pytest.raises(NoAnswerError) as found:
        await hostile_api.find(hold().reservation_id, timeout=5)
    with pytest.raises(NoAnswerError) as looked_up:
        await hostile_api.look_up([hold().reservation_id], timeout=5)
    codes = ("UNIMPLEMENTED", "UNIMPLEMENTED") if transport == "grpc" else ("HTTP_405", "HTTP_404")
    assert (found.value.code, looked_up.value.code) == codes


def test_a_look_up_that_omits_an_id_is_invalid() -> None:
    intent = hold(2)
    response = reservation_pb2.LookupReservationsResponse(found=[answered(intent, Message.STATE_HELD, 2)])
    assert wire.to_looked_up(response, [intent.reservation_id])[1] == []
    with pytest.raises(NoAnswerError, match="INVALID_ANSWER"):
        wire.to_looked_up(response, [intent.reservation_id, hold().reservation_id])
