"""Checks of rules 5 to 7 of `cartgrpc.reservation.v1` and of reads: expiry, concurrency and old ids."""

from dataclasses import replace
from typing import Final

from cart_grpc.probe.calls import MISSING_METHOD
from cart_grpc.probe.check import (
    MAX_CLOCK_SKEW_SECONDS,
    expiry_of,
    get_ttl,
    let_expire,
    release_then_hold,
    require,
    require_same,
)
from cart_grpc.probe.contract import check
from cart_grpc.probe.findings import NotTested
from cart_grpc.probe.session import LONG_TTL_US, Session, describe, is_held
from cart_grpc.protocol.reservation import (
    MAX_TTL_US,
    MIN_TTL_US,
    Decision,
    Observed,
    PermanentFailure,
    StaleRevision,
)
from cart_grpc.reservation_api.api import NoAnswerError
from cart_grpc.units import to_seconds, to_us

_COPIES: Final = 10
_TEN_YEARS_MS: Final = 10 * 365 * 24 * 3600 * 1000


@check("5", "HOLD 2 for 10 min, then renewal for 1 min")
async def expire_time(session: Session) -> str:
    intent, start = session.new_hold(), session.clock()
    first = await session.prepare_hold(intent)
    away = to_seconds(expiry_of(first) - start)
    require(
        away > to_seconds(LONG_TTL_US) - MAX_CLOCK_SKEW_SECONDS,
        f"expire_time is {away:.1f} s away by the local clock",
    )
    renewed = await session.send(replace(intent, revision=2, ttl_us=LONG_TTL_US // 10))
    require(is_held(renewed), renewed)
    assert isinstance(renewed, Decision)  # noqa: S101 - for mypy: is_held implies it
    require(expiry_of(renewed) >= expiry_of(first), "the renewal shortened the hold")
    return f"expire_time is {away:.1f} s away; the renewal keeps it"


@check("5", "HOLD 1 for 1 s, and HOLD 1 for 25 h")
async def shortest_and_longest_ttl(session: Session) -> str:
    for seconds in map(to_seconds, (MIN_TTL_US, MAX_TTL_US)):
        intent, start = session.new_hold(1, ttl_us=to_us(seconds)), session.clock()
        answer = await session.send(intent)
        require(isinstance(answer, Decision), f"for {seconds:g} s: {describe(answer)}")
        assert isinstance(answer, Decision)  # noqa: S101 - for mypy: require implies it
        if answer.state is Observed.REJECTED:
            raise NotTested(f"this check needs a hold: {describe(answer)}")
        away = to_seconds(expiry_of(answer) - start)
        is_long_enough = is_held(answer) and away > seconds - MAX_CLOCK_SKEW_SECONDS
        require(is_long_enough or seconds == 1, f"for {seconds:g} s: {describe(answer)}, for {away:.1f} s")
        await session.release(intent.reservation_id)
    return "HELD 1 each time"


@check("5", "HOLD 1 for less than 1 s, and HOLD 1 for more than 25 h")
async def ttl_out_of_range(session: Session) -> str:
    answers = [
        await session.send(session.new_hold(1, ttl_us=ttl)) for ttl in (MIN_TTL_US // 2, MAX_TTL_US + 60 * MIN_TTL_US)
    ]
    for answer in answers:
        require(isinstance(answer, PermanentFailure), answer)
    return "; ".join(map(describe, answers))


@check("5", "HOLD 2 with revision 5 until it expires, then revision 4, then HOLD 2 with revision 6")
async def expiry(session: Session) -> str:
    intent = session.new_hold(revision=5, ttl_us=get_ttl(session))
    lasted = await let_expire(session, intent)
    await session.check_held(0)
    lower = await session.send(replace(intent, revision=4))
    require(
        isinstance(lower, StaleRevision) and lower.current.revision == 5,
        f"after the expiry, revision 4: {describe(lower)}",
    )
    again = await session.send(replace(intent, revision=6, ttl_us=LONG_TTL_US))
    require(is_held(again), f"after the expiry, revision 6: {describe(again)}")
    await session.check_held(2)
    return f"EXPIRED within {lasted:.1f} s; {describe(lower)}; {describe(again)}"


@check("6", f"{_COPIES} concurrent copies of HOLD 2")
async def copies(session: Session) -> str:
    intent = session.new_hold()
    answers = await session.send_all([intent] * _COPIES)
    held = next((answer for answer in answers if is_held(answer)), None)
    if held is None:
        raise NotTested(f"this check needs a hold: {describe(answers[0])}")
    assert isinstance(held, Decision)  # noqa: S101 - for mypy: is_held implies it
    for answer in answers:
        require_same(answer, held)
    await session.check_held(2)
    return f"{describe(held)} each time"


@check("6", "concurrent revisions 1 to 9 of one id: HOLD 1, 2 and 3 in turn")
async def race(session: Session) -> str:
    first = session.new_hold()
    intents = [replace(first, revision=revision, quantity=1 + revision % 3) for revision in range(1, 10)]
    # Send neither the lowest nor the highest revision first. Revision 9 follows below.
    answers = await session.send_all(intents[3:] + intents[:3])
    last = intents[-1]
    for answer in answers:
        if isinstance(answer, Decision) and answer.state is Observed.REJECTED:
            raise NotTested(f"this check needs a hold: {describe(answer)}")
        require(is_held(answer) or isinstance(answer, StaleRevision), answer)
    answer = await session.send(last)
    require(is_held(answer), f"finally, revision 9: {describe(answer)}")
    lower = await session.send(intents[-2])
    require(isinstance(lower, StaleRevision) and lower.current.revision == 9, f"finally, revision 8: {describe(lower)}")
    await session.check_held(last.quantity)
    return f"finally {describe(answer)}"


@check("6", "decisions after a crash of the API")
async def durable(_: Session) -> str:
    raise NotTested("only the owners of the API can test this")


@check("7", "HOLD 2 with an id that is ten years old")
async def old_hold(session: Session) -> str:
    intent = replace(session.new_hold(), reservation_id=_backdate(session.new_id()))
    answer = await session.send(intent)
    if is_held(answer):
        return f"{describe(answer)}: the API accepts old ids"
    if isinstance(answer, PermanentFailure):
        return f"{describe(answer)}: id too old"
    require(isinstance(answer, Decision) and answer.state is Observed.REJECTED, answer)
    later = await session.send(replace(intent, revision=2))
    require(not is_held(later), f"{describe(answer)}, then for the next revision {describe(later)}")
    return f"{describe(answer)}: id too old"


@check("7", "RELEASE of an id that is ten years old, then HOLD with a lower revision")
async def old_release(session: Session) -> str:
    return await release_then_hold(session, replace(session.new_hold(), reservation_id=_backdate(session.new_id())))


@check("reads", "GetReservation and LookupReservations of a hold and of an unknown id")
async def reads(session: Session) -> str:
    intent, unknown = session.new_hold(), session.new_id()
    held = await session.prepare_hold(intent)
    try:
        found = await session.find(intent.reservation_id)
        nothing = await session.find(unknown)
        known, missing = await session.look_up([unknown, intent.reservation_id])
    except NoAnswerError as error:
        if error.code in MISSING_METHOD:
            raise NotTested(f"{error.code}: reads are optional") from None
        raise
    require(found == held, f"GetReservation: {describe(found) if found else 'not found'}")
    require(nothing is None, f"GetReservation of an unknown id: {describe(nothing) if nothing else ''}")
    require(known == [held] and missing == [unknown], f"LookupReservations: {[describe(each) for each in known]}")
    return f"{describe(held)}, and not found"


def _backdate(reservation_id: str) -> str:
    """Return the UUIDv7 as of ten years earlier. Its first 48 bits are its creation time in milliseconds (RFC 9562)."""
    digits = reservation_id.replace("-", "")
    made = f"{int(digits[:12], 16) - _TEN_YEARS_MS:012x}"
    return f"{made[:8]}-{made[8:]}{reservation_id[13:]}"


ENDURANCE: Final = (
    expire_time,
    shortest_and_longest_ttl,
    ttl_out_of_range,
    expiry,
    copies,
    race,
    durable,
    old_hold,
    old_release,
    reads,
)
