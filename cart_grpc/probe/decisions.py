"""Checks of rules 1 to 4 of `cartgrpc.reservation.v1`: decisions, refusals and final states."""

from dataclasses import replace
from typing import Any, Final

from cart_grpc.probe.check import expiry_of, get_ttl, let_expire, release_then_hold, require, require_same
from cart_grpc.probe.contract import check
from cart_grpc.probe.findings import CheckFailed, NotTested
from cart_grpc.probe.session import LONG_TTL_US, Session, describe, is_held
from cart_grpc.protocol.reservation import Decision, Disposition, Intent, Observed, PermanentFailure, StaleRevision
from cart_grpc.reservation_api.api import Answer
from cart_grpc.units import to_seconds


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
    return await _another_body(session, sku=_another_sku(session))


@check("1", "HOLD 2 for 10 min, then for 20 min with the same revision")
async def another_ttl(session: Session) -> str:
    return await _another_body(session, ttl_us=2 * LONG_TTL_US)


@check("1", "HOLD 2, then the same message with other labels")
async def other_labels(session: Session) -> str:
    intent = session.new_hold()
    first = await session.prepare_hold(intent)
    require_same(await session.send(replace(intent, labels={"client": "cart-grpc-probe", "try": "2"})), first)
    await session.check_held(2)
    return f"{describe(first)} again"


def _another_sku(session: Session) -> str:
    return f"cart-grpc-probe-{session.new_id()}"


async def _another_body(session: Session, **changes: Any) -> str:
    intent = session.new_hold()
    first = await session.prepare_hold(intent)
    answer = await session.send(replace(intent, **changes))
    require(isinstance(answer, PermanentFailure), answer)
    require_same(await session.send(intent), first)
    await session.check_held(2)
    return describe(answer)


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


@check("1", "HOLD 2, then HOLD 2 with a revision above 2^40")
async def large_revision(session: Session) -> str:
    intent = session.new_hold()
    await session.prepare_hold(intent)
    answer = await session.send(replace(intent, revision=2**40 + 1))
    require(is_held(answer), answer)
    lower = await session.send(replace(intent, revision=2**40, quantity=1))
    require(isinstance(lower, StaleRevision), lower)
    return describe(answer)


@check("2", "RELEASE of an unknown id, then HOLD with a lower revision")
async def release_first(session: Session) -> str:
    return await release_then_hold(session, session.new_hold())


@check("3", "HOLD 2, then HOLD more than the stock")
async def refused_change(session: Session) -> str:
    intent = session.new_hold()
    await session.prepare_hold(intent)
    answer = await session.expect_rejected(replace(intent, revision=2, quantity=session.too_many))
    require(answer.granted_quantity == 2, answer)
    await session.check_held(2)
    return describe(answer)


@check("3", "HOLD 2 for 10 min, then HOLD more than the stock for 20 min")
async def refused_renewal(session: Session) -> str:
    intent = session.new_hold()
    first = await session.prepare_hold(intent)
    answer = await session.expect_rejected(
        replace(intent, revision=2, quantity=session.too_many, ttl_us=2 * LONG_TTL_US)
    )
    longer = expiry_of(answer) - expiry_of(first)
    require(longer > 0, f"{describe(answer)}, but not extended")
    return f"{describe(answer)}, extended by {to_seconds(longer):.0f} s"


@check("3", "HOLD 2, then HOLD 1 of another sku with the next revision")
async def changed_sku(session: Session) -> str:
    intent = session.new_hold()
    await session.prepare_hold(intent)
    answer = await session.send(replace(intent, revision=2, quantity=1, sku=_another_sku(session)))
    if not (isinstance(answer, Decision) and answer.state is Observed.REJECTED):
        raise CheckFailed(describe(answer))
    require(answer.granted_quantity == 2, answer)
    await session.check_held(2)
    return describe(answer)


@check("3", "HOLD more than the stock, then the same message again")
async def rejected(session: Session) -> str:
    intent = session.new_hold(session.too_many, revision=2)
    await session.expect_rejected(intent)
    return await _must_stay_rejected(session, intent)


@check("3", "HOLD 1 while another reservation has all units, and again after its release")
async def stays_rejected(session: Session) -> str:
    if session.available is None:
        raise NotTested("this check needs --stock")
    other = session.new_hold(session.available)
    await session.prepare_hold(other)
    intent = session.new_hold(1, revision=2)
    await session.expect_rejected(intent)
    await session.release(other.reservation_id)
    return await _must_stay_rejected(session, intent)


@check("3", "HOLD 1 of a sku that should be unknown")
async def unknown_sku(session: Session) -> str:
    answer = await session.send(replace(session.new_hold(1), sku=_another_sku(session)))
    return f"{describe(answer)}: the API accepts any sku" if is_held(answer) else describe(answer)


@check("4", "HOLD 2, RELEASE, then HOLD 2 and RELEASE with higher revisions")
async def released_absorbs(session: Session) -> str:
    intent = session.new_hold()
    await session.prepare_hold(intent)
    for revision, disposition in ((2, Disposition.RELEASE), (3, Disposition.HOLD), (4, Disposition.RELEASE)):
        answer = await session.send(replace(intent, revision=revision, disposition=disposition))
        require(
            isinstance(answer, Decision) and answer.state is Observed.RELEASED,
            f"revision {revision}: {describe(answer)}",
        )
    await session.check_held(0)
    return "RELEASED each time"


@check("4", "HOLD 1, COMMIT, then HOLD 2 and RELEASE with higher revisions")
async def committed_absorbs(session: Session) -> str:
    _require_commit_option(session)
    intent = session.new_hold(1)
    await session.prepare_hold(intent)
    answer = await session.send(replace(intent, revision=2, disposition=Disposition.COMMIT))
    require(_is_sold(answer), answer)
    session.keep_sold(intent)
    for higher in (
        replace(intent, revision=3, quantity=2),
        replace(intent, revision=4, disposition=Disposition.RELEASE),
    ):
        answer = await session.send(higher)
        require(_is_sold(answer), f"then {higher.disposition.name}: {describe(answer)}")
    await session.check_held(0)
    return "COMMITTED 1 each time"


@check("4", "HOLD 2, then COMMIT 1")
async def smaller_commit(session: Session) -> str:
    _require_commit_option(session)
    intent = session.new_hold(2)
    await session.prepare_hold(intent)
    commit = replace(intent, revision=2, quantity=1, disposition=Disposition.COMMIT)
    answer = await session.send(commit)
    require(_is_sold(answer), answer)
    session.keep_sold(commit)
    await session.check_held(0)
    return describe(answer)


@check("4", "HOLD 1, then COMMIT more than the stock")
async def larger_commit(session: Session) -> str:
    _require_commit_option(session)
    if session.available is None:
        raise NotTested("this check needs --stock")
    intent = session.new_hold(1)
    await session.prepare_hold(intent)
    commit = replace(intent, revision=2, quantity=session.too_many, disposition=Disposition.COMMIT)
    answer = await session.expect_rejected(commit)
    require(answer.granted_quantity == 1, answer)
    await session.check_held(1)
    return describe(answer)


@check("4", "HOLD 1, then COMMIT after it expired")
async def late_commit(session: Session) -> str:
    _require_commit_option(session)
    intent = session.new_hold(1, ttl_us=get_ttl(session))
    await let_expire(session, intent)
    answer = await session.send(replace(intent, revision=2, disposition=Disposition.COMMIT))
    if _is_sold(answer):
        session.keep_sold(intent)
    else:
        rejected = isinstance(answer, Decision) and answer.state is Observed.REJECTED
        require(rejected and session.available is None, answer)
    return describe(answer)


def _is_sold(answer: Answer) -> bool:
    return isinstance(answer, Decision) and answer.state is Observed.COMMITTED and answer.granted_quantity == 1


async def _must_stay_rejected(session: Session, intent: Intent) -> str:
    again = await session.send(intent)
    require(isinstance(again, Decision) and again.state is Observed.REJECTED, f"REJECTED, then {describe(again)}")
    lower = await session.send(replace(intent, revision=intent.revision - 1, quantity=1))
    require(isinstance(lower, StaleRevision), f"REJECTED, then for a lower revision {describe(lower)}")
    await session.check_held(0)
    return f"{describe(again)} again"


def _require_commit_option(session: Session) -> None:
    if not session.config.commit:
        raise NotTested("this check needs --commit: it cannot undo a sale")


DECISIONS: Final = (
    hold,
    same_message,
    another_quantity,
    another_disposition,
    another_sku,
    another_ttl,
    other_labels,
    lower_revision,
    resize,
    large_revision,
    release_first,
    refused_change,
    refused_renewal,
    changed_sku,
    rejected,
    stays_rejected,
    unknown_sku,
    released_absorbs,
    committed_absorbs,
    smaller_commit,
    larger_commit,
    late_commit,
)
