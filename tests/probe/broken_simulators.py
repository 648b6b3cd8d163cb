"""Reservation APIs that break one rule each outside of the stock: concurrency and reads."""

import asyncio
from collections.abc import Callable

from cart_grpc.protocol.reservation import Intent
from cart_grpc.simulator.errors import UnknownReservation
from cart_grpc.simulator.rules import StoredReservation
from cart_grpc.simulator.simulator import SimulatedReply, Simulator


class Races(Simulator):
    """Decides two concurrent copies of a message independently."""

    async def apply(self, read: Callable[[], Intent]) -> SimulatedReply:
        intent = read()
        if self._stock.find(intent.reservation_id, self._clock()) is None:
            await asyncio.sleep(0.02)
            self._stock._reservations.pop(intent.reservation_id, None)
        return await super().apply(read)


class ReadsNothing(Simulator):
    """Finds no reservation on reads."""

    def get(self, reservation_id: str) -> StoredReservation:
        raise UnknownReservation
