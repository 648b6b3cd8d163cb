"""Checks of rules 1 and 2 of `cartgrpc.reservation.v1`: decisions and their repetition."""

from dataclasses import replace
from typing import Any, Final

from cart_grpc.probe.check import release_then_hold, require, require_same, unknown_sku_of
from cart_grpc.probe.contract import check
from cart_grpc.probe.findings import NotTested
from cart_grpc.probe.session import LONG_TTL_US, Session, describe, is_held
from cart_grpc.protocol.reservation import Decision, Disposition, Observed, PermanentFailure, StaleRevision


@check("1", "HOLD 2")
async def hold(session: Session) -> str:
    answer = await session.send(session.new_hold())
    if isinstance(answer, PermanentFailure) or (isinstance(answer, Decision) and answer.state is Observed.REJECTED):
        raise NotTested(f"{describe(answer)}; choose a --sku with a few units")
    require(is_held(answer), answer)
    await session.check_held(2)
    return describe(answer)


@check("1", "HOLD 2, then the same message again")
async def same_message(session: Session) -> str:
    intent = session.new_hold()
    first = await session.prepare_hold(intent)
    require_same(await session.send(intent), first)
    await session.check_held(2)
    return f"{describe(first)} again"


@check("1", "HOLD 2, then HOLD 3 with the same revision")
async def another_quantity(session: Session) -> str:
    return await _another_body(session, quantity=3)


@check("1", "HOLD 2, then RELEASE with the same revision")
async def another_disposition(session: Session) -> str:
    return await _another_body(session, disposition=Disposition.RELEASE)


@check("1", "HOLD 2, then HOLD 2 of another sku with the same revision")
async def another_sku(session: Session) -> str:
    return await _another_body(session, sku=unknown_sku_of(session))


@check("1", "HOLD 2 for 10 min, then for 20 min with the same revision")
async def another_ttl(session: Session) -> str:
    return await _another_body(session, ttl_us=2 * LONG_TTL_US)


@check("1", "HOLD 2, RELEASE 2, then RELEASE 3 with the same revision")
async def another_ignored_field(session: Session) -> str:
    intent = session.new_hold()
    await session.prepare_hold(intent)
    release = replace(intent, revision=2, disposition=Disposition.RELEASE)
    first = await session.send(release)
    if not (isinstance(first, Decision) and first.state is Observed.RELEASED):
        raise NotTested(f"this check needs a release: {describe(first)}")
    answer = await session.send(replace(release, quantity=3))
    require(isinstance(answer, PermanentFailure), answer)
    return describe(answer)


@check("1", "HOLD 2, then the same message with other labels")
async def other_labels(session: Session) -> str:
    intent = session.new_hold()
    first = await session.prepare_hold(intent)
    require_same(await session.send(replace(intent, labels={"client": "cart-grpc-probe", "try": "2"})), first)
    await session.check_held(2)
    return f"{describe(first)} again"


@check("1", "HOLD 2 with revision 5, then HOLD 3 with revision 4")
async def lower_revision(session: Session) -> str:
    intent = session.new_hold(revision=5)
    first = await session.prepare_hold(intent)
    answer = await session.send(replace(intent, revision=4, quantity=3))
    require(isinstance(answer, StaleRevision) and answer.current.revision == 5, answer)
    require_same(await session.send(intent), first)
    await session.check_held(2)
    return describe(answer)


@check("1", "HOLD 3, then HOLD 1 and HOLD 2 with the next revisions")
async def resize(session: Session) -> str:
    intent = session.new_hold(3)
    await session.prepare_hold(intent)
    for revision, quantity in ((2, 1), (3, 2)):
        answer = await session.send(replace(intent, revision=revision, quantity=quantity))
        require(is_held(answer), answer)
        await session.check_held(quantity)
    return "HELD 1, HELD 2"


@check("1", "HOLD 2, then HOLD 2 with revision 2^52")
async def large_revision(session: Session) -> str:
    intent = session.new_hold()
    await session.prepare_hold(intent)
    answer = await session.send(replace(intent, revision=2**52))
    require(is_held(answer), answer)
    lower = await session.send(replace(intent, revision=2**52 - 1, quantity=1))
    require(isinstance(lower, StaleRevision), lower)
    return describe(answer)


@check("2", "RELEASE of an unknown id, then HOLD with a lower revision")
async def release_first(session: Session) -> str:
    return await release_then_hold(session, session.new_hold())


async def _another_body(session: Session, **changes: Any) -> str:
    intent = session.new_hold()
    first = await session.prepare_hold(intent)
    answer = await session.send(replace(intent, **changes))
    require(isinstance(answer, PermanentFailure), answer)
    require_same(await session.send(intent), first)
    await session.check_held(2)
    return describe(answer)


DECISIONS: Final = (
    hold,
    same_message,
    another_quantity,
    another_disposition,
    another_sku,
    another_ttl,
    another_ignored_field,
    other_labels,
    lower_revision,
    resize,
    large_revision,
    release_first,
)
