"""The command for a caller's change."""

from collections.abc import Callable
from dataclasses import dataclass

from cart_grpc.carts.calls import Call, Change, Given, Limits, NewId
from cart_grpc.carts.checkout_refusals import UserErasing
from cart_grpc.carts.model import ENDED, UserTotals
from cart_grpc.carts.refusals import LimitExceeded
from cart_grpc.carts.rules import decide
from cart_grpc.commands.unit_of_work import ReadSet, Reply, UnitOfWork


@dataclass(frozen=True, slots=True)
class Mutation:
    """A call, and how to encode its reply: `encode` takes the change and the time, and returns the reply's bytes.

    If the call has a request_id, the same transaction stores the change and the reply. A repeated call gets the same
    bytes. `trace_context` is that of the call, None if its trace is not sampled.
    """

    call: Call
    encode: Callable[[Change, int], bytes]
    limits: Limits
    trace_context: str | None = None

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
        for read in call.reads if unit.erase_times else ():
            if read.cart.user in unit.erase_times:
                raise UserErasing(read.cart.user.name)
        change = decide(unit.get_loaded_cart(call.reads), call, Given(self.limits, now, new_id))
        # Encode first: if this fails, the unit of work must be unchanged.
        reply = self.encode(change, now)
        stored = Reply(call.fingerprint, reply) if call.request_id else None
        growth = unit.find_growth(change, stored)
        if not call.is_clamped:
            self._check_room(unit, change, growth)
        elif not change.others and self._has_no_room_for(unit, growth):
            # The effect is there already, so the call can be repeated without its stored reply.
            stored = None
        unit.apply(change, self.trace_context)
        if stored:
            unit.put_reply(reply_key, stored)
        return reply

    def _has_no_room_for(self, unit: UnitOfWork, growth: UserTotals) -> bool:
        return unit.find_totals(self.call.cart.user).plus(growth).stored_bytes > self.limits.max_user_bytes

    def _check_room(self, unit: UnitOfWork, change: Change, growth: UserTotals) -> None:
        """Raise LimitExceeded if a total of the user that the call raises would exceed its limit."""
        user, limits = self.call.cart.user, self.limits
        total = unit.find_totals(user).plus(growth)
        # The reply lists the removed items, and can be longer. A user who has used up all bytes must still be able to
        # remove items and to end carts. Nobody gets far beyond the limit: each is removed or ended only once.
        only_removes = not change.lines and (change.removed or change.cart.state in ENDED)
        more_bytes = 0 if only_removes else growth.stored_bytes
        for quota, more, would_be, most in (
            ("bytes_per_user", more_bytes, total.stored_bytes, limits.max_user_bytes),
            ("carts_per_user", growth.cart_count, total.cart_count, limits.max_carts_per_user),
            ("items_per_user", growth.item_count, total.item_count, limits.max_items_per_user),
            ("units_per_user", growth.unit_count, total.unit_count, limits.max_units_per_user),
        ):
            if more > 0 and would_be > most:
                raise LimitExceeded(user.name, quota, most, would_be)
