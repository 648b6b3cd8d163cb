"""Hanging holds do not delay the calls of other lanes, over both transports."""

import asyncio

from cartgrpc.reservation.v1 import reservation_pb2

from cart_grpc.protocol.reservation import Decision, Disposition, Observed
from cart_grpc.reservation_api.api import ReservationApi
from tests import intents
from tests.reservation_api.hostile import Hostile, Script

HELD, COMMITTED = reservation_pb2.Reservation.STATE_HELD, reservation_pb2.Reservation.STATE_COMMITTED
HANGING = 1_000


async def test_a_checkout_is_answered_at_once_beside_a_thousand_hanging_holds(
    hostile: Hostile, hostile_api: ReservationApi
) -> None:
    hostile.script = Script(hangs=True)
    holds = [asyncio.create_task(hostile_api.apply(intents.hold(), timeout=60)) for _ in range(HANGING)]
    async with asyncio.timeout(30):
        while len(hostile.received) < HANGING:
            await asyncio.sleep(0.01)
    extension, commit = intents.hold(checkout_id="of a checkout"), intents.hold(disposition=Disposition.COMMIT)
    for intent, state in ((extension, HELD), (commit, COMMITTED)):
        hostile.script = Script(intents.answered(intent, state, intent.quantity))
        # Shorter than that of the holds, which hang until then.
        answer = await hostile_api.apply(intent, timeout=20)
        assert isinstance(answer, Decision)
        assert answer.state is Observed(state)
    assert not any(hold.done() for hold in holds)
    for hold in holds:
        hold.cancel()
    await asyncio.gather(*holds, return_exceptions=True)
