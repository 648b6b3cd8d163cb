"""A client of a simulator in the same process: its messages, answers and errors, without sockets.

A broken decision is broken over every transport, so most broken simulators are probed like this, which is faster.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import ClassVar

from cartgrpc.reservation.v1 import reservation_pb2

from cart_grpc.protocol.reservation import Decision, Intent
from cart_grpc.reservation_api import wire
from cart_grpc.reservation_api.api import UNRECORDED, Answer, Applied, Attempt, BatchesUnsupported, NoAnswerError, Style
from cart_grpc.reservation_api.batches import apply_batch
from cart_grpc.reservation_api.grpc_api import _parse_batch
from cart_grpc.simulator import codec
from cart_grpc.simulator.errors import BadRequest, NoBatches, SimulatorError, UnknownReservation
from cart_grpc.simulator.simulator import Outcome, Simulator
from cart_grpc.simulator.status import get_grpc_code


class InProcessApi:
    """Implements AuditableApi on `simulator`."""

    styles: ClassVar[frozenset[Style]] = frozenset()
    max_batch: int = wire.MAX_BATCH

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    async def apply(self, intent: Intent, *, timeout: float, attempt: Attempt = UNRECORDED) -> Answer:
        """See ReservationApi.apply."""
        outcome: Outcome
        # A call over a socket gives way to the others, too.
        await asyncio.sleep(0)
        try:
            outcome = 0, await self._simulator.apply(partial(codec.to_intent, wire.to_message(intent)))
        except SimulatorError as error:
            outcome = 0, error
        for message in codec.to_batch_responses([intent.reservation_id], [outcome]):
            assert message is not None
            return wire.to_outcome(message.results[0], intent)
        raise NoAnswerError("UNAVAILABLE", "lost")

    async def apply_as(self, style: Style, intent: Intent, *, timeout: float) -> Answer:
        """See AuditableApi.apply_as."""
        raise NotImplementedError

    def apply_batch(self, intents: Sequence[Intent], *, timeout: float) -> AsyncGenerator[Sequence[Applied], None]:
        """See ReservationApi.apply_batch."""
        return apply_batch(intents, self._send_batch, _parse_batch)

    async def _send_batch(self, request: reservation_pb2.BatchApplyReservationsRequest) -> AsyncGenerator[bytes, None]:
        ids = [each.reservation_id for each in request.reservations]
        await asyncio.sleep(0)
        try:
            codec.check_batch(ids)
            reads = [partial(codec.to_intent, each) for each in request.reservations]
            async with aclosing(self._simulator.apply_batch(reads)) as ready:
                async for outcomes in ready:
                    for message in codec.to_batch_responses(ids, outcomes):
                        assert message is not None
                        yield message.SerializeToString()
        except (BadRequest, NoBatches) as error:
            raise BatchesUnsupported(get_grpc_code(error).name, str(error)) from None
        except SimulatorError as error:
            raise NoAnswerError(get_grpc_code(error).name, str(error)) from None

    async def find(self, reservation_id: str, *, timeout: float) -> Decision | None:
        """See AuditableApi.find."""
        try:
            stored = self._simulator.get(reservation_id)
        except UnknownReservation:
            return None
        return wire.to_latest(codec.to_reservation(stored), reservation_id)

    async def look_up(self, reservation_ids: Sequence[str], *, timeout: float) -> tuple[list[Decision], list[str]]:
        """See AuditableApi.look_up."""
        found, missing = self._simulator.lookup(reservation_ids)
        answer = reservation_pb2.LookupReservationsResponse(
            found=[codec.to_reservation(each) for each in found], missing=missing
        )
        return wire.to_looked_up(answer, reservation_ids)

    async def close(self) -> None:
        """See ReservationApi.close."""
