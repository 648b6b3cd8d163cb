"""What several checks of `cartgrpc.reservation.v1` do."""

import asyncio
from dataclasses import replace
from typing import Final

from cart_grpc.probe.calls import SECOND
from cart_grpc.probe.findings import Broken, NotTested
from cart_grpc.probe.session import Session, is_held, say
from cart_grpc.protocol.reservation import Decision, Disposition, Intent, Observed, StaleRevision
from cart_grpc.reservation_api.api import Answer

SLACK: Final = 5.0
"""How many seconds the API's clock may differ from this machine's before it is noticed."""

_PATIENCE: Final = 60.0


def must(kept: bool, answer: Answer | str) -> None:  # noqa: FBT001 - as assert has it
    if not kept:
        raise Broken(answer if isinstance(answer, str) else say(answer))


def must_be_same(answer: Answer, first: Decision) -> None:
    """Raise Broken unless `answer` is the decision `first`."""
    said = f"{say(first)} and {say(answer)}"
    if isinstance(answer, Decision) and say(answer) == say(first):
        said = f"{say(first)}, but decided anew: expire_time moved by {(expires(answer) - expires(first)) / SECOND:g} s"
    must(answer == first, said)


async def must_take_nothing(session: Session, intent: Intent) -> str:
    """The RELEASE of revision 2 comes first, the HOLD of revision 1 after it."""
    released = await session.ask(replace(intent, revision=2, disposition=Disposition.RELEASE))
    must(isinstance(released, Decision) and released.state is Observed.RELEASED, released)
    late = await session.ask(intent)
    must(
        not is_held(late) and not (isinstance(late, StaleRevision) and is_held(late.current)), f"the HOLD: {say(late)}"
    )
    await session.count(0)
    return f"RELEASED; {say(late)}"


async def let_run_out(session: Session, intent: Intent) -> float:
    """Wait until the hold has run out and return within how many seconds it has. Raises Broken if it was too soon."""
    now = asyncio.get_running_loop().time
    asked = now()
    first = await session.held(intent)
    ttl, lasts = intent.ttl_us / SECOND, (expires(first) - session.clock()) / SECOND
    if lasts > ttl + _PATIENCE:
        raise NotTested(f"it lasts {lasts:.0f} s, although {ttl:g} s were asked for")
    while now() < asked + ttl + _PATIENCE:
        await asyncio.sleep(ttl / 5)
        answer = await session.ask(intent)
        if not is_held(answer):
            lasted, early = now() - asked, (expires(first) - session.clock()) / SECOND
            must(isinstance(answer, Decision) and answer.state is Observed.EXPIRED, answer)
            must(lasted >= ttl, f"EXPIRED within {lasted:.1f} s, although {ttl:g} s were promised")
            must(early < SLACK, f"EXPIRED {early:.1f} s before its expire_time, by the clock of this machine")
            return lasted
    raise NotTested(f"still HELD {_PATIENCE:g} s after its time")


def ttl(session: Session) -> int:
    if not session.config.ttl:
        raise NotTested("--ttl would say how long to hold it")
    return session.config.ttl


def expires(decision: Decision) -> int:
    return decision.expire_time or 0
