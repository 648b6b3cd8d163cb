"""Several reservations in one call, over both transports: against the simulator, and against invalid answers."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

import grpc
import pytest
from cartgrpc.reservation.v1 import reservation_pb2
from google.protobuf.duration_pb2 import Duration

from cart_grpc.protocol.reservation import Answer, Decision, Disposition, Intent, Observed, StaleRevision
from cart_grpc.reservation_api import wire
from cart_grpc.reservation_api.api import BatchesUnsupported, NoAnswerError, ReservationApi
from cart_grpc.reservation_api.transports import connect
from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.simulator import Simulator
from tests.gate import Gate
from tests.intents import SECOND, START, Message, after, answered, hold, new_id
from tests.reservation_api.hostile import HTTP_STATUSES, Hostile, Script, hostile_grpc
from tests.reservation_api.test_transports import AMBIGUOUS, REFUSALS, UNBELIEVABLE

Code = grpc.StatusCode
Result = reservation_pb2.ReservationResult
Error = reservation_pb2.ReservationError
Response = reservation_pb2.BatchApplyReservationsResponse


async def apply_all(
    api: ReservationApi, intents: Sequence[Intent], *, timeout: float = 5
) -> tuple[dict[int, Answer | NoAnswerError], NoAnswerError | None]:
    """Apply a batch. Returns the outcome of each position, and the error of the whole call or None."""
    outcomes: dict[int, Answer | NoAnswerError] = {}
    try:
        async for applied in api.apply_batch(intents, timeout=timeout):
            assert applied
            assert not outcomes.keys() & {position for position, _ in applied}
            outcomes |= dict(applied)
    except NoAnswerError as error:
        return outcomes, error
    return outcomes, None


def result(intent: Intent, message: Message | None = None) -> Result:
    """A result of a batch: HELD, or `message`."""
    reservation = message or answered(intent, Message.STATE_HELD, intent.quantity)
    return Result(reservation_id=intent.reservation_id, reservation=reservation)


def failed(intent: Intent, code: int, **details: object) -> Result:
    """A result of a batch that is an error."""
    return Result(reservation_id=intent.reservation_id, error=Error(code=code, **details))  # type: ignore[arg-type]


async def test_each_entry_of_a_batch_is_decided_as_a_single_call_would_be(
    api: ReservationApi, simulator: Simulator
) -> None:
    other = hold(1)
    await api.apply(after(other, Disposition.RELEASE), timeout=5)
    intents = [hold(2), hold(11), hold(0), hold(3, reservation_id="x"), other, hold(2)]
    outcomes, error = await apply_all(api, intents)
    singles = {position: await api.apply(intent, timeout=5) for position, intent in enumerate(intents)}
    assert error is None
    assert outcomes == singles
    states = [getattr(outcome, "state", outcome) for outcome in outcomes.values()]
    assert states.count(Observed.HELD) == 2
    assert isinstance(outcomes[4], StaleRevision)
    assert simulator.levels("espresso-beans").held == 4


async def test_a_repeated_batch_gets_the_same_decisions(api: ReservationApi, simulator: Simulator) -> None:
    intents = [hold(2), hold(11), hold(3)]
    first = await apply_all(api, intents)
    assert await apply_all(api, intents[::-1]) == ({2 - each: first[0][each] for each in first[0]}, None)
    assert simulator.levels("espresso-beans").held == 5
    releases = [after(intent, Disposition.RELEASE) for intent in intents]
    outcomes, _ = await apply_all(api, releases)
    assert {getattr(outcome, "state", None) for outcome in outcomes.values()} == {Observed.RELEASED}
    assert simulator.levels("espresso-beans").held == 0


async def test_a_full_batch_is_answered_at_once(api: ReservationApi, simulator: Simulator) -> None:
    intents = [hold(1) for _ in range(api.max_batch)]
    [applied] = [applied async for applied in api.apply_batch(intents, timeout=5)]
    assert sorted(position for position, _ in applied) == list(range(100))
    assert simulator.call_count == 100


async def test_an_empty_batch_sends_nothing(api: ReservationApi, simulator: Simulator) -> None:
    assert await apply_all(api, []) == ({}, None)
    assert simulator.call_count == 0


async def test_an_answer_does_not_wait_for_a_slower_one(api: ReservationApi, simulator: Simulator, gate: Gate) -> None:
    simulator.faults = Faults(slow=0.5, slow_latency_us=SECOND)
    intents = [hold(1) for _ in range(10)]
    async with aclosing(api.apply_batch(intents, timeout=60)) as messages:
        first = await anext(messages)
        assert 0 < len(first) < 10
        gate.open()
        rest = [applied for message in [message async for message in messages] for applied in message]
    assert sorted(position for position, _ in [*first, *rest]) == list(range(10))


async def test_at_the_deadline_the_outcomes_so_far_stand(api: ReservationApi, simulator: Simulator) -> None:
    simulator.faults = Faults(slow=0.5, slow_latency_us=SECOND)
    outcomes, error = await apply_all(api, [hold(1) for _ in range(10)], timeout=1)
    assert error is not None
    assert (error.code, error.reached) == ("DEADLINE_EXCEEDED", False)
    assert 0 < len(outcomes) < 10


async def test_the_deadline_does_not_cancel_a_caller_that_works_on_an_outcome(
    api: ReservationApi, simulator: Simulator
) -> None:
    simulator.faults = Faults(slow=0.5, slow_latency_us=SECOND)
    messages = api.apply_batch([hold(1) for _ in range(10)], timeout=1)
    assert await anext(messages)
    await asyncio.sleep(1.1)
    with pytest.raises(NoAnswerError, match="DEADLINE_EXCEEDED"):
        await anext(messages)


async def test_a_batch_without_time_left_is_no_answer(api: ReservationApi, simulator: Simulator) -> None:
    outcomes, error = await apply_all(api, [hold()], timeout=0)
    assert error is not None
    assert (outcomes, error.code) == ({}, "DEADLINE_EXCEEDED")


async def test_a_lost_entry_has_no_outcome(api: ReservationApi, simulator: Simulator) -> None:
    simulator.faults = Faults(lost_before_effect=0.3, lost_after_effect=0.3)
    outcomes, error = await apply_all(api, [hold(1) for _ in range(10)])
    assert error is None
    assert 0 < len(outcomes) < 10
    assert len(outcomes) < simulator.levels("espresso-beans").held < 10


async def test_an_api_without_batches_is_recognised(api: ReservationApi, simulator: Simulator) -> None:
    simulator.faults = Faults(no_batches=True)
    with pytest.raises(BatchesUnsupported):
        await apply_all(api, [hold(), hold()])
    assert simulator.levels("espresso-beans").held == 0
    assert isinstance(await api.apply(hold(), timeout=5), Decision)


async def test_an_api_that_is_down_is_no_answer(api: ReservationApi, simulator: Simulator, transport: str) -> None:
    simulator.faults = Faults(down=True)
    outcomes, error = await apply_all(api, [hold(), hold()])
    assert error is not None
    assert (outcomes, error.code) == ({}, "UNAVAILABLE" if transport == "grpc" else "HTTP_503")
    assert error.reached is False


async def test_an_intent_that_does_not_fit_into_a_message_fails_alone(api: ReservationApi) -> None:
    outcomes, error = await apply_all(api, [hold(2**31), hold(1)])
    assert error is None
    assert isinstance(outcomes[0], NoAnswerError)
    assert (outcomes[0].code, outcomes[0].reached) == ("INTERNAL", True)
    assert isinstance(outcomes[1], Decision)
    [(alone, error)] = [await apply_all(api, [hold(2**31)])]
    assert (list(alone), error) == ([0], None)


async def test_the_message_contains_every_intent(hostile: Hostile, hostile_api: ReservationApi) -> None:
    intents = [hold(2, revision=2**32 + 7, ttl_us=1_500_001), hold(3, labels={"größe": "XL"})]
    hostile.script = Script(messages=[Response(results=map(result, intents))])
    await apply_all(hostile_api, intents)
    assert hostile.received == [wire.to_message(intent) for intent in intents]


@pytest.mark.parametrize("change", UNBELIEVABLE.values(), ids=UNBELIEVABLE)
async def test_an_invalid_result_harms_no_other(
    hostile: Hostile, hostile_api: ReservationApi, change: Callable[[Message], None]
) -> None:
    intents = [hold(2) for _ in range(3)]
    messages = [answered(intent, Message.STATE_HELD, 2) for intent in intents]
    change(messages[1])
    hostile.script = Script(messages=[Response(results=map(result, intents, messages))])
    outcomes, error = await apply_all(hostile_api, intents)
    assert error is None
    assert [isinstance(outcomes[position], Decision) for position in range(3)] == [True, False, True]
    invalid = outcomes[1]
    assert isinstance(invalid, NoAnswerError)
    assert (invalid.code, invalid.reached) == ("INVALID_ANSWER", True)


@pytest.mark.parametrize("code", [*REFUSALS, *AMBIGUOUS, Code.RESOURCE_EXHAUSTED, Code.ABORTED, Code.CANCELLED])
async def test_an_error_of_an_entry_means_the_same_as_that_of_a_single_call(code: grpc.StatusCode) -> None:
    """Over gRPC, because HTTP reports its status instead of the code."""
    async with hostile_grpc() as hostile:
        api = connect(hostile.url)
        intent = hold()
        text = "no\x00\n\x1b[31m " + "x" * 1000
        for reason, retry_after in (("", None), ("sku is discontinued!", 7), ("NO", 0)):
            hostile.script = Script(code=code, text=text, reason=reason, retry_after=retry_after)
            delay = None if retry_after is None else Duration(seconds=retry_after)
            details = {"reason": reason, "message": text, "retry_delay": delay}
            entry = failed(intent, code.value[0], **details)
            single = await outcome_of(api, intent)
            hostile.script = Script(messages=[Response(results=[entry])])
            outcomes, error = await apply_all(api, [intent])
            assert error is None
            assert described(outcomes[0]) == described(single)
        await api.close()


@pytest.mark.parametrize("code", [0, -1, 17, 2**31 - 1])
async def test_an_error_with_an_impossible_code_is_no_answer(
    hostile: Hostile, hostile_api: ReservationApi, code: int
) -> None:
    intent = hold()
    hostile.script = Script(
        messages=[Response(results=[failed(intent, code, reason="NO", retry_delay=Duration(seconds=-5))])]
    )
    outcomes, error = await apply_all(hostile_api, [intent])
    assert error is None
    assert isinstance(outcomes[0], NoAnswerError)
    assert outcomes[0].code == ("UNKNOWN" if code else "INVALID_ANSWER")
    assert outcomes[0].retry_after_us is None


async def test_aborted_is_accepted_only_with_a_newer_reservation(hostile: Hostile, hostile_api: ReservationApi) -> None:
    intents = [hold(2, revision=4) for _ in range(5)]
    newer = [replace(intent, revision=9, quantity=7) for intent in intents]
    newer[1] = intents[1]
    newer[2] = replace(newer[2], reservation_id=new_id())
    newer[3] = replace(newer[3], revision=wire.MAX_REVISION + 1)
    results = [
        failed(intent, 10, current=answered(current, Message.STATE_HELD, current.quantity))
        for intent, current in zip(intents, newer, strict=True)
    ]
    results[4].error.ClearField("current")
    hostile.script = Script(messages=[Response(results=results)])
    outcomes, error = await apply_all(hostile_api, intents)
    assert error is None
    assert outcomes[0] == StaleRevision(Decision(intents[0].reservation_id, 9, Observed.HELD, 7, START, ""))
    codes = [getattr(outcomes[position], "code", None) for position in range(1, 5)]
    assert codes == ["INVALID_ANSWER"] * 3 + ["ABORTED"]


async def test_results_that_were_not_asked_for_change_nothing(hostile: Hostile, hostile_api: ReservationApi) -> None:
    intents, stranger = [hold(2), hold(2)], hold(2)
    rejected = answered(intents[0], Message.STATE_REJECTED, reason="SECOND")
    hostile.script = Script(
        messages=[
            Response(results=[result(stranger), result(intents[0]), result(intents[0], rejected), Result()]),
            Response(results=[result(intents[0], rejected), failed(intents[0], 3)]),
            Response(),
            Response(results=[result(replace(stranger, reservation_id=""))]),
            Response(results=[failed(intents[1], 14), result(intents[1])]),
        ]
    )
    outcomes, error = await apply_all(hostile_api, intents)
    assert error is None
    assert isinstance(outcomes[0], Decision)
    assert outcomes[0].state is Observed.HELD
    assert isinstance(outcomes[1], NoAnswerError)
    assert set(outcomes) == {0, 1}


async def test_a_result_without_decision_and_error_is_no_answer(hostile: Hostile, hostile_api: ReservationApi) -> None:
    intents = [hold(2), hold(2)]
    hostile.script = Script(
        messages=[Response(results=[Result(reservation_id=intents[0].reservation_id), result(intents[1])])]
    )
    outcomes, _ = await apply_all(hostile_api, intents)
    assert isinstance(outcomes[0], NoAnswerError)
    assert (outcomes[0].code, isinstance(outcomes[1], Decision)) == ("INVALID_ANSWER", True)


GARBAGE = {
    "a web page": b"<html>",
    "bytes": b"\xff" * 100,
    "deep": b"[" * 60_000,
    "a long message": b" " * (wire.MAX_BATCH_MESSAGE_BYTES + 1),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
async def test_a_message_that_does_not_parse_harms_no_earlier_one(
    hostile: Hostile, hostile_api: ReservationApi, garbage: bytes
) -> None:
    intents = [hold(2) for _ in range(3)]
    one, two, three = (Response(results=[result(intent)]) for intent in intents)
    hostile.script = Script(messages=[one, two, garbage, three])
    outcomes, error = await apply_all(hostile_api, intents)
    assert set(outcomes) <= {0, 1}
    assert len(outcomes) == 2
    assert error is not None
    assert (error.code in ("INVALID_ANSWER", "RESOURCE_EXHAUSTED"), error.reached) == (True, True)


async def test_an_answer_is_read_up_to_a_limit(hostile: Hostile, hostile_api: ReservationApi) -> None:
    intents = [hold(2), hold(2)]
    first, last = (Response(results=[result(intent)]) for intent in intents)
    short = Response(results=[failed(hold(), 14)])
    long = Response(results=[failed(hold(), 14, message="x" * (wire.MAX_BATCH_MESSAGE_BYTES - 1000))])
    for stranger, few, many in ((short, 150, 250), (long, 1, 3)):
        hostile.script = Script(messages=[first, *[stranger] * few, last])
        outcomes, error = await apply_all(hostile_api, intents)
        assert (sorted(outcomes), error) == ([0, 1], None)
        hostile.script = Script(messages=[first, *[stranger] * many, last], hangs=True)
        outcomes, error = await apply_all(hostile_api, intents, timeout=60)
        assert list(outcomes) == [0]
        assert error is not None
        assert error.code == "INVALID_ANSWER"


async def test_each_lane_has_connections_of_its_own() -> None:
    async with hostile_grpc() as hostile:
        hostile.script = Script(messages=[Response()])
        api = connect(hostile.url)
        for _ in range(2):
            for changes in ({}, {"disposition": Disposition.RELEASE}, {"checkout_id": "of a checkout"}):
                await apply_all(api, [hold(**changes)])
        await api.close()
    first, again = hostile.peers[:3], hostile.peers[3:]
    assert first == again
    assert len(set(first)) == 3


async def test_a_call_that_does_not_end_after_the_last_result_delays_nobody(
    hostile: Hostile, hostile_api: ReservationApi
) -> None:
    intents = [hold(2), hold(2)]
    hostile.script = Script(messages=[Response(results=map(result, intents))], hangs=True)
    async with asyncio.timeout(30):
        outcomes, error = await apply_all(hostile_api, intents, timeout=600)
    assert (set(outcomes), error) == ({0, 1}, None)


@pytest.mark.parametrize("code", list(HTTP_STATUSES))
async def test_a_refusal_of_the_whole_batch_leads_to_single_calls_and_any_other_error_is_no_answer(
    hostile: Hostile, hostile_api: ReservationApi, transport: str, code: grpc.StatusCode
) -> None:
    hostile.script = Script(code=code, retry_after=7)
    # HTTP has no other status for ABORTED than for refusals.
    refusals = {*REFUSALS, Code.UNIMPLEMENTED, Code.PERMISSION_DENIED, Code.UNAUTHENTICATED}
    if code in refusals or (transport == "http" and code is Code.ABORTED):
        with pytest.raises(BatchesUnsupported):
            await apply_all(hostile_api, [hold(), hold()])
        return
    outcomes, error = await apply_all(hostile_api, [hold(), hold()])
    assert error is not None
    assert outcomes == {}
    assert error.code == (code.name if transport == "grpc" else f"HTTP_{HTTP_STATUSES[code]}")
    assert error.retry_after_us == 7 * SECOND
    assert error.reached is (code in (Code.RESOURCE_EXHAUSTED, Code.ABORTED))


async def test_an_error_after_some_results_leaves_them_valid(hostile: Hostile, hostile_api: ReservationApi) -> None:
    intents = [hold(2), hold(2)]
    for code in (Code.UNAVAILABLE, Code.UNIMPLEMENTED, Code.INVALID_ARGUMENT):
        hostile.script = Script(messages=[Response(results=[result(intents[0])])], code=code)
        outcomes, error = await apply_all(hostile_api, intents)
        assert isinstance(outcomes[0], Decision)
        assert len(outcomes) == 1
        assert error is not None


async def test_a_call_that_ends_without_results_has_no_answers(hostile: Hostile, hostile_api: ReservationApi) -> None:
    hostile.script = Script(messages=[Response()])
    assert await apply_all(hostile_api, [hold(), hold()]) == ({}, None)


async def test_closing_the_generator_ends_the_call(hostile: Hostile, hostile_api: ReservationApi) -> None:
    intents = [hold(2), hold(2)]
    hostile.script = Script(messages=[Response(results=[result(intents[0])])], hangs=True)
    async with aclosing(hostile_api.apply_batch(intents, timeout=600)) as messages:
        await anext(messages)
    async with asyncio.timeout(30):
        await hostile.left.wait()


async def test_a_cancelled_caller_is_cancelled(hostile: Hostile, hostile_api: ReservationApi) -> None:
    hostile.script = Script(hangs=True)
    task = asyncio.ensure_future(apply_all(hostile_api, [hold()], timeout=60))
    await hostile.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_closing_the_client_ends_batches_in_flight_without_an_answer(
    hostile: Hostile, hostile_api: ReservationApi
) -> None:
    hostile.script = Script(hangs=True)
    task = asyncio.ensure_future(apply_all(hostile_api, [hold()], timeout=60))
    await hostile.arrived.wait()
    await hostile_api.close()
    outcomes, error = await task
    assert error is not None
    assert (outcomes, error.reached) == ({}, False)


async def outcome_of(api: ReservationApi, intent: Intent) -> Answer | NoAnswerError:
    """The outcome of a single call."""
    try:
        return await api.apply(intent, timeout=5)
    except NoAnswerError as error:
        return error


def described(outcome: Answer | NoAnswerError) -> object:
    """All that matters about an outcome: exceptions are equal only to themselves."""
    if isinstance(outcome, NoAnswerError):
        return outcome.code, outcome.message, outcome.retry_after_us, outcome.reached
    return outcome
