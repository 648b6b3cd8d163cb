"""Whatever a Reservation API answers, a call ends with an answer or with NoAnswerError, within its bounds.

Every outcome can be recorded in both databases, and be shown to operators.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, select

from cart_grpc.protocol.reservation import Answer, Disposition, Intent, NoAnswer, Reservation
from cart_grpc.protocol.transitions import record_outcome
from cart_grpc.reservation_api.api import BatchesUnsupported, NoAnswerError, ReservationApi
from cart_grpc.reservation_api.transports import connect
from cart_grpc.rpc.admin_messages import reservation_message
from cart_grpc.store import schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.queries import WriteQueries
from cart_grpc.store.read.operator_reads import ReservationSnapshot, WorkState
from cart_grpc.store.rows import reservation_row, to_reservation
from tests.carts.examples import LATER, NOW, a_hold
from tests.reservation_api.fuzz import (
    check,
    draw_basic,
    draw_grpc,
    draw_grpc_batch,
    draw_http,
    draw_http_batch,
    draw_intent,
)
from tests.reservation_api.raw_http1 import raw_http1
from tests.reservation_api.raw_http2 import raw_http2
from tests.store.conftest import engine

__all__ = ["engine"]

# Answers of each kind. A batch has several.
CALLS = 250
NIGHTLY_CALLS = 20_000

# Makes the server answer the next call for these intents with an answer from the numbers.
Script = Callable[[random.Random, Sequence[Intent]], None]


@asynccontextmanager
async def fuzzed_grpc() -> AsyncIterator[tuple[str, Script]]:
    async with raw_http2() as raw:

        def script(rng: random.Random, intents: Sequence[Intent]) -> None:
            raw.make = draw_grpc(rng, intents[0]) if len(intents) == 1 else draw_grpc_batch(rng, intents)

        yield f"grpc://127.0.0.1:{raw.port}", script


@asynccontextmanager
async def fuzzed_http() -> AsyncIterator[tuple[str, Script]]:
    answers: list[Callable[[str], bytes]] = []

    async def answering(method: str, writer: Any) -> None:
        writer.write(answers[0](method))

    def script(rng: random.Random, intents: Sequence[Intent]) -> None:
        answers[:] = [lambda _: draw_http(rng, intents[0]) if len(intents) == 1 else draw_http_batch(rng, intents)]

    async with raw_http1(answering) as raw:
        yield raw.url, script


@asynccontextmanager
async def fuzzed_basic() -> AsyncIterator[tuple[str, Script]]:
    answers: list[Callable[[str], bytes]] = []

    async def answering(method: str, writer: Any) -> None:
        writer.write(answers[0](method))

    def script(rng: random.Random, intents: Sequence[Intent]) -> None:
        answers[:] = [lambda method: draw_basic(rng, intents[0], method)]

    async with raw_http1(answering) as raw:
        yield f"basic+{raw.url}", script


# How each kind of call is served, and the number of intents per call.
KINDS = {
    "grpc": (fuzzed_grpc, 1),
    "http": (fuzzed_http, 1),
    "basic": (fuzzed_basic, 1),
    "batches over grpc": (fuzzed_grpc, 10),
    "batches over http": (fuzzed_http, 10),
}


async def outcomes_of(api: ReservationApi, intents: Sequence[Intent]) -> list[tuple[Intent, Answer | NoAnswerError]]:
    """Call the API. Any other exception, and a call that does not end, fails the test."""
    outcomes: dict[int, Answer | NoAnswerError] = {}
    failure = NoAnswerError("NO_RESULT", "the batch has no result for this intent")
    try:
        async with asyncio.timeout(20):
            if len(intents) == 1:
                return [(intents[0], await api.apply(intents[0], timeout=1))]
            async for applied in api.apply_batch(intents, timeout=1):
                assert not outcomes.keys() & dict(applied).keys()
                outcomes |= dict(applied)
    except NoAnswerError as error:
        failure = error
    except BatchesUnsupported:
        assert not outcomes
    return [(intent, outcomes.get(position, failure)) for position, intent in enumerate(intents)]


async def run(kind: str, seed: int, count: int) -> list[tuple[Intent, Answer | NoAnswerError]]:
    """Make calls for `count` intents that are answered from `seed`, check each outcome, and return them."""
    rng, found = random.Random(seed), []
    serve, size = KINDS[kind]
    async with serve() as (url, script):
        api = connect(url)
        for number in range(count // size):
            intents = [draw_intent(rng) for _ in range(size)]
            script(rng, intents)
            for intent, outcome in await outcomes_of(api, intents):
                try:
                    check(intent, outcome)
                except AssertionError as error:
                    raise AssertionError(f"seed {seed}, call {number}: {outcome!r}") from error
                found.append((intent, outcome))
        await api.close()
    return found


@pytest.mark.one_shard
@pytest.mark.parametrize("kind", KINDS)
async def test_every_outcome_is_within_its_bounds_and_can_be_stored_and_shown(engine: Engine, kind: str) -> None:
    outcomes = await run(kind, 1 if engine.locks_users else 2, CALLS)
    kinds = {type(outcome).__name__ for _, outcome in outcomes}
    assert {"Decision", "PermanentFailure", "NoAnswerError"} <= kinds
    rows = [row_after(number, *each) for number, each in enumerate(outcomes)]
    queries = WriteQueries(engine.dialect, lock_users=engine.locks_users)

    def store(connection: Connection) -> list[Reservation]:
        queries.write(connection, {"reservations": [reservation_row(row) for row in rows]})
        return [to_reservation(row) for row in connection.execute(select(schema.reservations))]

    stored = {row.reservation_id: row for row in await engine.transact(store)}
    assert stored == {row.reservation_id: row for row in rows}
    for row in rows:
        record = reservation_message(ReservationSnapshot(row, None, WorkState.DUE, NOW))
        assert record.set_aside_reason == ""
        assert record.last_error.isprintable()


def row_after(number: int, intent: Intent, outcome: Answer | NoAnswerError) -> Reservation:
    """The row after the outcome was recorded."""
    row = a_hold(
        reservation_id=f"r-{number}",
        revision=intent.revision,
        intent_revision=intent.revision,
        disposition=intent.disposition,
        attempt_count=1,
        lease_epoch=1,
    )
    known = NoAnswer(outcome.code, outcome.message[:300]) if isinstance(outcome, NoAnswerError) else outcome
    after = record_outcome(row, 1, intent.revision, known, NOW, LATER)
    assert after.disposition is intent.disposition or after.disposition is Disposition.RELEASE
    return after


@pytest.mark.night
@pytest.mark.parametrize("seed", range(100, 105))
@pytest.mark.parametrize("kind", KINDS)
async def test_every_outcome_is_within_its_bounds_all_night(kind: str, seed: int) -> None:
    await run(kind, seed, NIGHTLY_CALLS)
