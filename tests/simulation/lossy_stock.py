"""A Reservation API that loses holds, and then refuses to sell."""

from dataclasses import replace

from cart_grpc.protocol.reservation import Intent, Observed
from cart_grpc.simulator import rules
from cart_grpc.simulator.stock import Decided, Stock


class LossyStock(Stock):
    """The product's simulator, made to break its promise to keep a hold."""

    def lose_hold(self, intent: Intent, now: int) -> None:
        """End the hold that `intent` asks to sell, and refuse the sale: its units have gone to somebody else.

        Does nothing if this revision or a later one was decided, or if nothing is held.
        """
        stored = self.find(intent.reservation_id, now)
        if stored is None or stored.state is not Observed.HELD or intent.revision <= stored.intent.revision:
            return
        lost = rules.expire(stored)
        self._write(Decided(now, lost))
        refused = replace(lost, intent=intent, state=Observed.REJECTED, reason="OUT_OF_STOCK")
        self._write(Decided(now, refused))
