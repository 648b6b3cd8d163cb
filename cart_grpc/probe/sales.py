"""Checks of rule 4 of `cartgrpc.reservation.v1`: final states, and sales."""

from dataclasses import replace
from typing import Final

from cart_grpc.probe.check import get_ttl, let_expire, require, unknown_sku_of
from cart_grpc.probe.contract import check
from cart_grpc.probe.findings import NotTested
from cart_grpc.probe.session import Session, describe
from cart_grpc.protocol.reservation import Decision, Disposition, Intent, Observed
from cart_grpc.reservation_api.api import Answer


@check("3", "HOLD 2, then COMMIT 2 of another sku")
async def committed_sku(session: Session) -> str:
    _require_commit_option(session)
    intent = session.new_hold()
    await session.prepare_hold(intent)
    sku = unknown_sku_of(session)
    answer = await session.send(replace(intent, revision=2, sku=sku, disposition=Disposition.COMMIT))
    if _is_sold(answer, 2):
        session.keep_sold(intent)
    require(isinstance(answer, Decision) and answer.state is Observed.REJECTED and answer.granted_quantity == 2, answer)
    await session.check_held(2)
    await session.send(replace(intent, revision=3, disposition=Disposition.RELEASE))
    return describe(answer)


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


@check("4", "HOLD 1, COMMIT 2, then HOLD 3 and RELEASE with higher revisions")
async def committed_absorbs(session: Session) -> str:
    _require_commit_option(session)
    intent = session.new_hold(1)
    await session.prepare_hold(intent)
    commit = replace(intent, revision=2, quantity=2, disposition=Disposition.COMMIT)
    await _sell(session, commit)
    for higher in (
        replace(intent, revision=3, quantity=3),
        replace(intent, revision=4, disposition=Disposition.RELEASE),
    ):
        answer = await session.send(higher)
        require(_is_sold(answer, 2), f"then {higher.disposition.name}: {describe(answer)}")
    await session.check_held(0)
    return "COMMITTED 2 each time"


@check("4", "HOLD 2, then COMMIT 1")
async def smaller_commit(session: Session) -> str:
    _require_commit_option(session)
    intent = session.new_hold(2)
    await session.prepare_hold(intent)
    answer = await _sell(session, replace(intent, revision=2, quantity=1, disposition=Disposition.COMMIT))
    await session.check_held(0)
    return describe(answer)


@check("4", "COMMIT 1 of an unknown id")
async def commit_without_a_hold(session: Session) -> str:
    _require_commit_option(session)
    answer = await _sell(session, replace(session.new_hold(1), disposition=Disposition.COMMIT))
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
    if _is_sold(answer, 1):
        session.keep_sold(intent)
    else:
        rejected = isinstance(answer, Decision) and answer.state is Observed.REJECTED
        require(rejected and session.available is None, answer)
    return describe(answer)


async def _sell(session: Session, commit: Intent) -> Answer:
    answer = await session.send(commit)
    if isinstance(answer, Decision) and answer.state is Observed.COMMITTED:
        session.keep_sold(replace(commit, quantity=answer.granted_quantity))
    require(_is_sold(answer, commit.quantity), answer)
    return answer


def _is_sold(answer: Answer, quantity: int) -> bool:
    return isinstance(answer, Decision) and answer.state is Observed.COMMITTED and answer.granted_quantity == quantity


def _require_commit_option(session: Session) -> None:
    if not session.config.commit:
        raise NotTested("this check needs --commit: it cannot undo a sale")


SALES: Final = (
    committed_sku,
    released_absorbs,
    committed_absorbs,
    smaller_commit,
    commit_without_a_hold,
    larger_commit,
    late_commit,
)
