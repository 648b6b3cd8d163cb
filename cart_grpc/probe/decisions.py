"""Rules 1 to 4 of `cartgrpc.reservation.v1`: what is decided, what is refused, what absorbs."""

from dataclasses import replace
from typing import Any, Final

from cart_grpc.probe.calls import SECOND
from cart_grpc.probe.check import expires, let_run_out, must, must_be_same, must_take_nothing, ttl
from cart_grpc.probe.contract import check
from cart_grpc.probe.findings import NotTested
from cart_grpc.probe.session import LONG, Session, is_held, say
from cart_grpc.protocol.reservation import Decision, Disposition, Intent, Observed, PermanentFailure, StaleRevision
from cart_grpc.reservation_api.api import Answer


@check("1", "HOLD 2")
async def hold(session: Session) -> str:
    answer = await session.ask(session.hold())
    if isinstance(answer, PermanentFailure) or (isinstance(answer, Decision) and answer.state is Observed.REJECTED):
        raise NotTested(f"{say(answer)}; --sku should name one of which there are a few")
    must(is_held(answer), answer)
    await session.count(2)
    return say(answer)


@check("1", "HOLD 2, and the same message again")
async def same_message(session: Session) -> str:
    intent = session.hold()
    first = await session.held(intent)
    must_be_same(await session.ask(intent), first)
    await session.count(2)
    return f"{say(first)} again"


@check("1", "HOLD 2, and under the same revision HOLD 3")
async def another_quantity(session: Session) -> str:
    return await _another_body(session, quantity=3)


@check("1", "HOLD 2, and under the same revision RELEASE")
async def another_disposition(session: Session) -> str:
    return await _another_body(session, disposition=Disposition.RELEASE)


async def _another_body(session: Session, **changes: Any) -> str:
    intent = session.hold()
    first = await session.held(intent)
    answer = await session.ask(replace(intent, **changes))
    must(isinstance(answer, PermanentFailure), answer)
    must_be_same(await session.ask(intent), first)
    await session.count(2)
    return say(answer)


@check("1", "HOLD 2 as revision 5, then HOLD 3 as revision 4")
async def lower_revision(session: Session) -> str:
    intent = session.hold(revision=5)
    first = await session.held(intent)
    answer = await session.ask(replace(intent, revision=4, quantity=3))
    must(isinstance(answer, StaleRevision) and answer.current.revision == 5, answer)
    must_be_same(await session.ask(intent), first)
    await session.count(2)
    return say(answer)


@check("1", "HOLD 3, then HOLD 1 and HOLD 2, each as the next revision")
async def resize(session: Session) -> str:
    intent = session.hold(3)
    await session.held(intent)
    for revision, quantity in ((2, 1), (3, 2)):
        answer = await session.ask(replace(intent, revision=revision, quantity=quantity))
        must(is_held(answer), answer)
        await session.count(quantity)
    return "HELD 1, HELD 2"


@check("1", "HOLD 2, then HOLD 2 as a revision above 2^40")
async def large_revision(session: Session) -> str:
    intent = session.hold()
    await session.held(intent)
    answer = await session.ask(replace(intent, revision=2**40 + 1))
    must(is_held(answer), answer)
    lower = await session.ask(replace(intent, revision=2**40, quantity=1))
    must(isinstance(lower, StaleRevision), lower)
    return say(answer)


@check("2", "RELEASE of an id never seen, then a HOLD of a lower revision")
async def release_first(session: Session) -> str:
    return await must_take_nothing(session, session.hold())


@check("3", "HOLD 2, then more than there is")
async def refused_change(session: Session) -> str:
    intent = session.hold()
    await session.held(intent)
    answer = await session.refused(replace(intent, revision=2, quantity=session.too_many))
    must(answer.granted_quantity == 2, answer)
    await session.count(2)
    return say(answer)


@check("3", "HOLD 2 for 10 min, then more than there is for 20 min")
async def refused_renewal(session: Session) -> str:
    intent = session.hold()
    first = await session.held(intent)
    answer = await session.refused(replace(intent, revision=2, quantity=session.too_many, ttl_us=2 * LONG))
    longer = expires(answer) - expires(first)
    must(longer > 0, f"{say(answer)}, for no longer than before")
    return f"{say(answer)}, {longer / SECOND:.0f} s longer"


@check("3", "HOLD of more than there is, and the same message again")
async def rejected(session: Session) -> str:
    intent = session.hold(session.too_many, revision=2)
    await session.refused(intent)
    return await _must_stay_rejected(session, intent)


@check("3", "HOLD of what another has, and again when that is given back")
async def rejected_for_good(session: Session) -> str:
    if session.free is None:
        raise NotTested("--stock would say how many there are")
    other = session.hold(session.free)
    await session.held(other)
    intent = session.hold(1, revision=2)
    await session.refused(intent)
    await session.give_back(other.reservation_id)
    return await _must_stay_rejected(session, intent)


@check("3", "HOLD 1 of a sku that should not be known")
async def unknown_sku(session: Session) -> str:
    answer = await session.ask(replace(session.hold(1), sku=f"cart-grpc-probe-{session.new_id()}"))
    return f"{say(answer)}: every sku is known" if is_held(answer) else say(answer)


@check("4", "HOLD 2, RELEASE, then HOLD 2 and RELEASE as higher revisions")
async def released_absorbs(session: Session) -> str:
    intent = session.hold()
    await session.held(intent)
    for revision, disposition in ((2, Disposition.RELEASE), (3, Disposition.HOLD), (4, Disposition.RELEASE)):
        answer = await session.ask(replace(intent, revision=revision, disposition=disposition))
        must(isinstance(answer, Decision) and answer.state is Observed.RELEASED, f"revision {revision}: {say(answer)}")
    await session.count(0)
    return "RELEASED each time"


@check("4", "HOLD 1, COMMIT, then HOLD 2 and RELEASE as higher revisions")
async def committed_absorbs(session: Session) -> str:
    _need_leave_to_sell(session)
    intent = session.hold(1)
    await session.held(intent)
    answer = await session.ask(replace(intent, revision=2, disposition=Disposition.COMMIT))
    must(_is_sold(answer), answer)
    session.sell(intent)
    for higher in (
        replace(intent, revision=3, quantity=2),
        replace(intent, revision=4, disposition=Disposition.RELEASE),
    ):
        answer = await session.ask(higher)
        must(_is_sold(answer), f"then {higher.disposition.name}: {say(answer)}")
    await session.count(0)
    return "COMMITTED 1 each time"


@check("4", "HOLD 1, and COMMIT after it ran out")
async def late_commit(session: Session) -> str:
    _need_leave_to_sell(session)
    intent = session.hold(1, ttl_us=ttl(session))
    await let_run_out(session, intent)
    answer = await session.ask(replace(intent, revision=2, disposition=Disposition.COMMIT))
    if _is_sold(answer):
        session.sell(intent)
    else:
        rejected = isinstance(answer, Decision) and answer.state is Observed.REJECTED
        must(rejected and session.free is None, answer)
    return say(answer)


def _is_sold(answer: Answer) -> bool:
    return isinstance(answer, Decision) and answer.state is Observed.COMMITTED and answer.granted_quantity == 1


async def _must_stay_rejected(session: Session, intent: Intent) -> str:
    again = await session.ask(intent)
    must(isinstance(again, Decision) and again.state is Observed.REJECTED, f"REJECTED, and then {say(again)}")
    lower = await session.ask(replace(intent, revision=intent.revision - 1, quantity=1))
    must(isinstance(lower, StaleRevision), f"REJECTED, and a lower revision then {say(lower)}")
    await session.count(0)
    return f"{say(again)} again"


def _need_leave_to_sell(session: Session) -> None:
    if not session.config.commit:
        raise NotTested("a sale cannot be taken back: --commit allows it")


DECISIONS: Final = (
    hold,
    same_message,
    another_quantity,
    another_disposition,
    lower_revision,
    resize,
    large_revision,
    release_first,
    refused_change,
    refused_renewal,
    rejected,
    rejected_for_good,
    unknown_sku,
    released_absorbs,
    committed_absorbs,
    late_commit,
)
