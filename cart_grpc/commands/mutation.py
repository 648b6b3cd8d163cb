"""The command for a caller's change."""

from collections.abc import Callable
from dataclasses import dataclass

from cart_grpc.carts.calls import Call, Change, Given, Limits, NewId
from cart_grpc.carts.refusals import RequestIdReused
from cart_grpc.carts.rules import decide
from cart_grpc.commands.unit_of_work import ReadSet, Reply, UnitOfWork


@dataclass(frozen=True, slots=True)
class Mutation:
    """A call, and how to encode its reply: `encode` takes the change and the time, and returns the reply's bytes.

    If the call has a request_id, the same transaction stores the change and the reply. A repeated call gets the same
    bytes.
    """

    call: Call
    encode: Callable[[Change, int], bytes]
    limits: Limits

    def add_reads(self, reads: ReadSet) -> None:
        call = self.call
        for read in call.reads:
            reads.add_cart(read)
        if call.request_id:
            reads.replies.add((call.cart.user, call.request_id))

    def run(self, unit: UnitOfWork, now: int, new_id: NewId) -> bytes:
        """Return the reply's bytes. Raises CallRefused."""
        call = self.call
        if call.request_id and (stored := unit.replies.get((call.cart.user, call.request_id))):
            if stored.fingerprint != call.fingerprint:
                raise RequestIdReused(call.request_id)
            return stored.reply
        change = decide(unit.get_loaded_cart(call.reads), call, Given(self.limits, now, new_id))
        # Encode first: if this fails, the unit of work must be unchanged.
        reply = self.encode(change, now)
        unit.apply(change)
        if call.request_id:
            unit.put_reply((call.cart.user, call.request_id), Reply(call.fingerprint, reply))
        return reply
