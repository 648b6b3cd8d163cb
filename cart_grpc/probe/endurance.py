"""Rules 5 to 7 of `cartgrpc.reservation.v1`, and its reads: what lasts, what happens at once, what is old."""

from dataclasses import replace
from typing import Final

from cart_grpc.probe.calls import SECOND
from cart_grpc.probe.check import SLACK, expires, let_run_out, must, must_be_same, must_take_nothing, ttl
from cart_grpc.probe.contract import check
from cart_grpc.probe.findings import NotTested
from cart_grpc.probe.session import LONG, Session, is_held, say
from cart_grpc.protocol.reservation import Decision, Observed, PermanentFailure, StaleRevision
from cart_grpc.reservation_api.api import NoAnswerError

_COPIES: Final = 10
_TEN_YEARS: Final = 10 * 365 * 24 * 3600 * 1000
_NO_READS: Final = frozenset({"UNIMPLEMENTED", "HTTP_404", "HTTP_405", "HTTP_501"})


@check("5", "HOLD 2 for 10 min, then renewed for 1 min")
async def expire_time(session: Session) -> str:
    intent, asked = session.hold(), session.clock()
    first = await session.held(intent)
    away = (expires(first) - asked) / SECOND
    must(away > LONG / SECOND - SLACK, f"expire_time is {away:.1f} s away by the clock of this machine")
    renewed = await session.ask(replace(intent, revision=2, ttl_us=LONG // 10))
    must(is_held(renewed), renewed)
    assert isinstance(renewed, Decision)  # noqa: S101 - for mypy: is_held tells so
    must(expires(renewed) >= expires(first), "the renewal made it shorter")
    return f"expire_time is {away:.1f} s away, and stays so"


@check("5", "HOLD 2 as revision 5 until it runs out, revision 4, HOLD 2 as revision 6")
async def expiry(session: Session) -> str:
    intent = session.hold(revision=5, ttl_us=ttl(session))
    lasted = await let_run_out(session, intent)
    await session.count(0)
    lower = await session.ask(replace(intent, revision=4))
    must(
        isinstance(lower, StaleRevision) and lower.current.revision == 5, f"after it ran out, revision 4: {say(lower)}"
    )
    again = await session.ask(replace(intent, revision=6, ttl_us=LONG))
    must(is_held(again), f"after it ran out, revision 6: {say(again)}")
    await session.count(2)
    return f"EXPIRED after {lasted:.1f} s at most; {say(lower)}; {say(again)}"


@check("6", f"{_COPIES} copies of HOLD 2 at once")
async def copies(session: Session) -> str:
    intent = session.hold()
    answers = await session.ask_all([intent] * _COPIES)
    held = next((answer for answer in answers if is_held(answer)), None)
    if held is None:
        raise NotTested(f"there is no hold to try it on: {say(answers[0])}")
    assert isinstance(held, Decision)  # noqa: S101 - for mypy: is_held tells so
    for answer in answers:
        must_be_same(answer, held)
    await session.count(2)
    return f"{say(held)} each time"


@check("6", "revisions 1 to 9 of one id at once, HOLD 1, 2 and 3 by turns")
async def race(session: Session) -> str:
    first = session.hold()
    intents = [replace(first, revision=revision, quantity=1 + revision % 3) for revision in range(1, 10)]
    # Neither the first nor the last is first on its way.
    answers = await session.ask_all(intents[3:] + intents[:3])
    last = intents[-1]
    for answer in answers:
        if isinstance(answer, Decision) and answer.state is Observed.REJECTED:
            raise NotTested(f"there is no hold to try it on: {say(answer)}")
        must(is_held(answer) or isinstance(answer, StaleRevision), answer)
    answer = await session.ask(last)
    must(is_held(answer), f"at the end, revision 9: {say(answer)}")
    lower = await session.ask(intents[-2])
    must(isinstance(lower, StaleRevision) and lower.current.revision == 9, f"at the end, revision 8: {say(lower)}")
    await session.count(last.quantity)
    return f"in the end {say(answer)}"


@check("6", "what was answered, after the API was killed")
async def durable(_: Session) -> str:
    raise NotTested("only its owners can kill it")


@check("7", "HOLD 2 of an id made ten years ago")
async def old_hold(session: Session) -> str:
    intent = replace(session.hold(), reservation_id=_backdate(session.new_id()))
    answer = await session.ask(intent)
    if is_held(answer):
        return f"{say(answer)}: such ids are not forgotten"
    if isinstance(answer, PermanentFailure):
        return f"{say(answer)}: too old"
    must(isinstance(answer, Decision) and answer.state is Observed.REJECTED, answer)
    later = await session.ask(replace(intent, revision=2))
    must(not is_held(later), f"{say(answer)}, and the next revision {say(later)}")
    return f"{say(answer)}: too old"


@check("7", "RELEASE of an id made ten years ago, then a HOLD of a lower revision")
async def old_release(session: Session) -> str:
    return await must_take_nothing(session, replace(session.hold(), reservation_id=_backdate(session.new_id())))


@check("reads", "GetReservation and LookupReservations of a hold and of an id never seen")
async def reads(session: Session) -> str:
    intent, unknown = session.hold(), session.new_id()
    held = await session.held(intent)
    try:
        found = await session.find(intent.reservation_id)
        nothing = await session.find(unknown)
        known, missing = await session.look_up([unknown, intent.reservation_id])
    except NoAnswerError as error:
        if error.code in _NO_READS:
            raise NotTested(f"{error.code}: no cart needs them") from None
        raise
    must(found == held, f"GetReservation: {say(found) if found else 'not found'}")
    must(nothing is None, f"GetReservation of an id never seen: {say(nothing) if nothing else ''}")
    must(known == [held] and missing == [unknown], f"LookupReservations: {[say(each) for each in known]}")
    return f"{say(held)}, and not found"


def _backdate(reservation_id: str) -> str:
    """Return a UUIDv7 as it would have been made ten years earlier: its first 48 bits are milliseconds."""
    digits = reservation_id.replace("-", "")
    made = f"{int(digits[:12], 16) - _TEN_YEARS:012x}"
    return f"{made[:8]}-{made[8:]}{reservation_id[13:]}"


ENDURANCE: Final = (expire_time, expiry, copies, race, durable, old_hold, old_release, reads)
