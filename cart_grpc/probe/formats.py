"""Checks of rules 1 and 8 of `cartgrpc.reservation.v1`: ways to write a message that mean the same."""

from typing import Final

from cart_grpc.probe.check import require
from cart_grpc.probe.contract import check
from cart_grpc.probe.findings import NotTested
from cart_grpc.probe.session import Session, describe, is_held
from cart_grpc.protocol.reservation import Decision, Observed
from cart_grpc.reservation_api.api import Style


@check("8", "HOLD 2 with unknown fields, then the same message without them")
async def unknown_fields(session: Session) -> str:
    return await _in_another_style(session, Style.UNKNOWN_FIELDS)


@check("8", "HOLD 2 with its revision as a JSON number, then as a string")
async def revision_as_number(session: Session) -> str:
    return await _in_another_style(session, Style.JSON_NUMBERS)


@check("1", "HOLD 2 with a ttl of 600.000000000s in JSON, then of 600s")
async def ttl_with_zeros(session: Session) -> str:
    return await _in_another_style(session, Style.LONG_DURATIONS)


async def _in_another_style(session: Session, style: Style) -> str:
    intent = session.new_hold()
    first = await session.send(intent, style)
    if isinstance(first, Decision) and first.state is Observed.REJECTED:
        raise NotTested(f"this check needs a hold: {describe(first)}")
    require(is_held(first), first)
    usual = await session.send(intent)
    require(is_held(usual), f"{describe(first)}, then as usual: {describe(usual)}")
    return f"{describe(first)} each time"


FORMATS: Final = (unknown_fields, revision_as_number, ttl_with_zeros)
"""The checks of this module."""
