"""Checks of BatchApplyReservations, which is optional: an entry of a batch is decided as in a single call.

They compare batches with single calls, so that an API that breaks another rule does not fail this one, too.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from cart_grpc.probe.calls import breaks_contract
from cart_grpc.probe.check import require, require_same
from cart_grpc.probe.contract import check
from cart_grpc.probe.findings import CheckFailed, NotTested
from cart_grpc.probe.session import Session, describe, is_held
from cart_grpc.protocol.reservation import Decision, Disposition, Intent, Observed, PermanentFailure, StaleRevision
from cart_grpc.reservation_api.api import Answer, NoAnswerError
from cart_grpc.reservation_api.wire import MAX_BATCH

_COPIES: Final = 10
_SLOW_SECONDS: Final = 1.0


@check("batches", "HOLD 1 and HOLD 2 in a batch, then in single calls, then in a batch")
async def same_decisions(session: Session) -> str:
    await _require_stable_decisions(session)
    intents = [session.new_hold(1), session.new_hold(2)]
    decisions = _to_holds((await session.send_batch(intents)).in_order())
    singles = await session.send_all(intents)
    again = (await session.send_batch(intents[::-1])).in_order()[::-1]
    for first, answers in ((decisions, singles), (decisions, again)):
        for decision, answer in zip(first, answers, strict=True):
            require_same(answer, decision)
    await session.check_held(3)
    return f"{_describe_all(decisions)} each time"


@check("batches", "5 messages in single calls, and in a batch: only the first can be granted")
async def independent_entries(session: Session) -> str:
    messages = await _one_good_and_four_bad(session)
    try:
        singles = await session.send_all(messages)
    except NoAnswerError as error:
        if breaks_contract(error):
            raise NotTested(f"single calls break the contract, too: {error}") from None
        raise
    for granted in messages[:3]:
        await session.release(granted.reservation_id)
    entries = (await session.send_batch(await _one_good_and_four_bad(session))).in_order()
    for single, entry in zip(singles, entries, strict=True):
        same = _essence(single) == _essence(entry)
        require(same, f"a single call: {describe(single)}; in a batch: {describe(entry)}")
    return _describe_all(entries)


@check("batches", "HOLD 1 twice, then RELEASE of both in a batch")
async def releases(session: Session) -> str:
    intents = [session.new_hold(1), session.new_hold(1)]
    for intent in intents:
        await session.prepare_hold(intent)
    released = [replace(intent, revision=2, disposition=Disposition.RELEASE) for intent in intents]
    answers = (await session.send_batch(released)).in_order()
    for answer in answers:
        require(isinstance(answer, Decision) and answer.state is Observed.RELEASED, answer)
    await session.check_held(0)
    return _describe_all(answers)


@check("batches", f"{_COPIES} concurrent batches with the same HOLD 2")
async def concurrent_copies(session: Session) -> str:
    await _require_stable_decisions(session)
    intent = session.new_hold()
    batches = await asyncio.gather(*(session.send_batch([intent]) for _ in range(_COPIES)), return_exceptions=True)
    answers = []
    for batch in batches:
        if isinstance(batch, BaseException):
            raise batch
        answers += batch.in_order()
    [first, *_] = _to_holds(answers)
    for answer in answers:
        require_same(answer, first)
    await session.check_held(2)
    return f"{describe(first)} each time"


@check("batches", f"RELEASE of {MAX_BATCH} unknown ids in a batch")
async def full_batch(session: Session) -> str:
    intents = [_unknown_release(session) for _ in range(MAX_BATCH)]
    batch = await session.send_batch(intents)
    return f"{len(batch.answers)} results, such as {describe(batch.answers[0])}"


@check("batches", f"RELEASE of {_COPIES} unknown ids in single calls, and in a batch: slow ones delay no other")
async def streamed_results(session: Session) -> str:
    clock = asyncio.get_running_loop().time

    async def measure(intent: Intent) -> float:
        start = clock()
        await session.send(intent)
        return clock() - start

    batch = await session.send_batch([_unknown_release(session) for _ in range(_COPIES)])
    seconds = sorted(await asyncio.gather(*(measure(_unknown_release(session)) for _ in range(_COPIES))))
    fastest, usual, slowest = seconds[0], seconds[_COPIES // 2], seconds[-1]
    found = (
        f"single calls take {fastest:.2f} to {slowest:.2f} s; the first result of the batch arrives after "
        f"{batch.seconds_to_first:.2f} s"
    )
    if slowest - usual < _SLOW_SECONDS or usual > slowest / 5:
        raise NotTested(f"{found}: no entry is slow enough to see")
    require(batch.seconds_to_first < slowest / 2, found)
    return f"{found}, all in {batch.message_count} messages"


async def _require_stable_decisions(session: Session) -> None:
    """Raise NotTested unless single calls keep rule 1. Otherwise a batch would be blamed for it."""
    intent = session.new_hold(1)
    first = await session.prepare_hold(intent)
    try:
        require_same(await session.send(intent), first)
        await session.check_held(1)
    except CheckFailed as failure:
        raise NotTested(f"single calls differ, too: {failure}") from None
    await session.release(intent.reservation_id)


async def _one_good_and_four_bad(session: Session) -> list[Intent]:
    """Return a HOLD 1 and four messages that a working API refuses, each for another reason.

    The first three are about units that are held.
    """
    known, newer = session.new_hold(1), session.new_hold(1, revision=5)
    for intent in (known, newer):
        await session.prepare_hold(intent)
    return [
        session.new_hold(1),
        replace(known, quantity=2),
        replace(newer, revision=4),
        session.new_hold(session.too_many),
        session.new_hold(0),
    ]


def _unknown_release(session: Session) -> Intent:
    return replace(session.new_hold(1), disposition=Disposition.RELEASE)


def _to_holds(answers: Sequence[Answer]) -> list[Decision]:
    holds = []
    for answer in answers:
        if isinstance(answer, Decision) and answer.state is Observed.REJECTED:
            raise NotTested(f"this check needs a hold: {describe(answer)}")
        require(is_held(answer), answer)
        assert isinstance(answer, Decision)  # noqa: S101 - for mypy: is_held implies it
        holds.append(answer)
    return holds


def _essence(answer: Answer) -> object:
    """Return what must be the same in a single call and in a batch. Texts may contain an id."""
    match answer:
        case PermanentFailure():
            return "error"
        case StaleRevision(current):
            return current.revision, current.state, current.granted_quantity
        case _:
            return answer.state, answer.granted_quantity


def _describe_all(answers: Sequence[Answer]) -> str:
    return "; ".join(map(describe, answers))


BATCHES: Final = (
    same_decisions,
    independent_entries,
    releases,
    concurrent_copies,
    full_batch,
    streamed_results,
)
"""The checks of this module."""
