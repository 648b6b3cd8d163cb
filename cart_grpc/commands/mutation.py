"""The command for a caller's change."""

from collections.abc import Callable
from dataclasses import dataclass

from cart_grpc.carts.calls import Call, Change, Given, Limits, NewId
from cart_grpc.carts.refusals import LimitExceeded
from cart_grpc.carts.rules import decide
from cart_grpc.commands.unit_of_work import ReadSet, Reply, UnitOfWork, UserTotals


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
        call, reply_key = self.call, (self.call.cart.user, self.call.request_id)
        repeated = unit.find_reply(reply_key, call.fingerprint)
        if repeated is not None:
            return repeated
        change = decide(unit.get_loaded_cart(call.reads), call, Given(self.limits, now, new_id))
        # Encode first: if this fails, the unit of work must be unchanged.
        reply = self.encode(change, now)
        stored = Reply(call.fingerprint, reply) if call.request_id else None
        self._check_room(unit, unit.find_growth(change, stored))
        unit.apply(change)
        if stored:
            unit.put_reply(reply_key, stored)
        return reply

    def _check_room(self, unit: UnitOfWork, growth: UserTotals) -> None:
        """Raise LimitExceeded if the user would store too much. A call that stores nothing more is never refused."""
        user, most = self.call.cart.user, self.limits.max_user_bytes
        total = unit.find_totals(user).plus(growth).stored_bytes
        if growth.stored_bytes > 0 and total > most:
            raise LimitExceeded(user.name, "bytes_per_user", most, total)
