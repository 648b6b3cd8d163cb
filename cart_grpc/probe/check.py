"""Steps that several checks of `cartgrpc.reservation.v1` share."""

import asyncio
from dataclasses import replace
from typing import Final

from cart_grpc.probe.findings import CheckFailed, NotTested
from cart_grpc.probe.session import Session, describe, is_held
from cart_grpc.protocol.reservation import Decision, Disposition, Intent, Observed, StaleRevision
from cart_grpc.reservation_api.api import Answer
from cart_grpc.units import to_seconds

MAX_CLOCK_SKEW_SECONDS: Final = 5.0
"""The difference between the clocks of the API and of this machine that the checks tolerate."""

_MAX_LATE_SECONDS: Final = 60.0


def require(kept: bool, answer: Answer | str) -> None:  # noqa: FBT001 - as assert has it
    if not kept:
        raise CheckFailed(answer if isinstance(answer, str) else describe(answer))


def require_same(answer: Answer, first: Decision) -> None:
    """Raise CheckFailed unless `answer` is the decision `first`."""
    difference = f"{describe(first)}, then {describe(answer)}"
    if isinstance(answer, Decision) and describe(answer) == describe(first):
        moved = to_seconds(expiry_of(answer) - expiry_of(first))
        difference = f"{describe(first)}, but decided again: expire_time moved by {moved:g} s"
    require(answer == first, difference)


async def release_then_hold(session: Session, intent: Intent) -> str:
    """Send a RELEASE of revision 2, then a HOLD of revision 1. Raises CheckFailed if the HOLD takes anything."""
    released = await session.send(replace(intent, revision=2, disposition=Disposition.RELEASE))
    require(isinstance(released, Decision) and released.state is Observed.RELEASED, released)
    late = await session.send(intent)
    require(
        not is_held(late) and not (isinstance(late, StaleRevision) and is_held(late.current)),
        f"the HOLD: {describe(late)}",
    )
    await session.check_held(0)
    return f"RELEASED; {describe(late)}"


async def let_expire(session: Session, intent: Intent) -> float:
    """Hold `intent` until it expires and return after how many seconds it was seen to be EXPIRED.

    Raises CheckFailed if it expires early.
    """
    now = asyncio.get_running_loop().time
    start = now()
    first = await session.prepare_hold(intent)
    ttl, lasts = to_seconds(intent.ttl_us), to_seconds(expiry_of(first) - session.clock())
    if lasts > ttl + _MAX_LATE_SECONDS:
        raise NotTested(f"it lasts {lasts:.0f} s, although {ttl:g} s were requested")
    while now() < start + ttl + _MAX_LATE_SECONDS:
        await asyncio.sleep(ttl / 5)
        answer = await session.send(intent)
        if not is_held(answer):
            lasted, early = now() - start, to_seconds(expiry_of(first) - session.clock())
            require(isinstance(answer, Decision) and answer.state is Observed.EXPIRED, answer)
            require(lasted >= ttl, f"EXPIRED within {lasted:.1f} s, although {ttl:g} s were promised")
            require(early < MAX_CLOCK_SKEW_SECONDS, f"EXPIRED {early:.1f} s before its expire_time, by the local clock")
            return lasted
    raise NotTested(f"still HELD {_MAX_LATE_SECONDS:g} s after its expiry was due")


def unknown_sku_of(session: Session) -> str:
    """Return a sku that no API should know."""
    return f"cart-grpc-probe-{session.new_id()}"


def get_ttl(session: Session) -> int:
    if not session.config.ttl_us:
        raise NotTested("this check needs --ttl")
    return session.config.ttl_us


def expiry_of(decision: Decision) -> int:
    return decision.expire_time or 0
