"""Checks of rule 3 of `cartgrpc.reservation.v1`: refusals, and what a hold keeps."""

from dataclasses import replace
from typing import Final

from cart_grpc.probe.check import expiry_of, require, unknown_sku_of
from cart_grpc.probe.contract import check
from cart_grpc.probe.findings import CheckFailed, NotTested
from cart_grpc.probe.session import LONG_TTL_US, Session, describe, is_held
from cart_grpc.protocol.reservation import Decision, Disposition, Intent, Observed, StaleRevision
from cart_grpc.units import to_seconds


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
    answer = await session.send(replace(intent, revision=2, quantity=1, sku=unknown_sku_of(session)))
    if not (isinstance(answer, Decision) and answer.state is Observed.REJECTED):
        raise CheckFailed(describe(answer))
    require(answer.granted_quantity == 2, answer)
    await session.check_held(2)
    # An API that breaks the next check's rule would keep the hold for a release of the other sku.
    await session.send(replace(intent, revision=3, disposition=Disposition.RELEASE))
    return describe(answer)


@check("3", "HOLD 2, then RELEASE of another sku")
async def released_sku(session: Session) -> str:
    intent = session.new_hold()
    await session.prepare_hold(intent)
    sku = unknown_sku_of(session)
    answer = await session.send(replace(intent, revision=2, sku=sku, disposition=Disposition.RELEASE))
    require(isinstance(answer, Decision) and answer.state is Observed.RELEASED, answer)
    await session.check_held(0)
    return describe(answer)


@check("3", "HOLD 2 of a sku that should be unknown, then HOLD 2 of the sku with the next revision")
async def sku_of_nothing(session: Session) -> str:
    intent = replace(session.new_hold(), sku=unknown_sku_of(session))
    first = await session.send(intent)
    if not (isinstance(first, Decision) and first.state is Observed.REJECTED):
        raise NotTested(f"this check needs a sku that is unknown: {describe(first)}")
    answer = await session.send(replace(intent, revision=2, sku=session.config.sku))
    if isinstance(answer, Decision) and answer.state is Observed.REJECTED:
        # An API that has no units rejects a new reservation, too.
        await session.prepare_hold(session.new_hold())
    require(is_held(answer), f"{describe(first)}, then {describe(answer)}")
    await session.check_held(2)
    return f"{describe(first)}, then {describe(answer)}"


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
    answer = await session.send(replace(session.new_hold(1), sku=unknown_sku_of(session)))
    return f"{describe(answer)}: the API accepts any sku" if is_held(answer) else describe(answer)


async def _must_stay_rejected(session: Session, intent: Intent) -> str:
    again = await session.send(intent)
    require(isinstance(again, Decision) and again.state is Observed.REJECTED, f"REJECTED, then {describe(again)}")
    lower = await session.send(replace(intent, revision=intent.revision - 1, quantity=1))
    require(isinstance(lower, StaleRevision), f"REJECTED, then for a lower revision {describe(lower)}")
    await session.check_held(0)
    return f"{describe(again)} again"


REFUSALS: Final = (
    refused_change,
    refused_renewal,
    changed_sku,
    released_sku,
    sku_of_nothing,
    rejected,
    stays_rejected,
    unknown_sku,
)
