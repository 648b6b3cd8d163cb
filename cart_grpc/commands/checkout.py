"""The commands that change checkouts: a caller's call, an operator's end, and the effects of answers and time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from cart_grpc.carts.calls import Given, Limits, NewId
from cart_grpc.carts.checkout import begin_checkout, cancel_checkout, complete_checkout, end_checkout, evaluate
from cart_grpc.carts.checkout_calls import (
    BeginCheckout,
    CheckoutCall,
    CheckoutChange,
    CheckoutView,
    CompleteCheckout,
)
from cart_grpc.carts.checkout_refusals import UserErasing
from cart_grpc.carts.model import Checkout, CheckoutState
from cart_grpc.carts.refusals import LimitExceeded
from cart_grpc.commands.unit_of_work import ReadSet, Reply, UnitOfWork
from cart_grpc.names import CheckoutKey, UserKey
from cart_grpc.protocol.reservation import Observed


@dataclass(frozen=True, slots=True)
class CheckoutMutation:
    """A call about a checkout, and how to encode its reply: as Mutation, for a CheckoutView."""

    call: BeginCheckout | CheckoutCall
    encode: Callable[[CheckoutView, int], bytes]
    limits: Limits
    trace_context: str | None = None

    @property
    def user(self) -> UserKey:
        """The user whose cart or checkout it is."""
        return self.call.cart.user if isinstance(self.call, BeginCheckout) else self.call.checkout.user

    def add_reads(self, reads: ReadSet) -> None:
        if isinstance(self.call, BeginCheckout):
            for read in self.call.reads:
                reads.add_cart(read)
        else:
            reads.add_checkout(self.call.checkout)
        if self.call.request_id:
            reads.replies.add((self.user, self.call.request_id))

    def run(self, unit: UnitOfWork, now: int, new_id: NewId) -> bytes:
        """Return the reply's bytes. Raises CallRefused."""
        reply_key = (self.user, self.call.request_id)
        repeated = unit.find_reply(reply_key, self.call.fingerprint)
        if repeated is not None:
            return repeated
        change = self._decide(unit, Given(self.limits, now, new_id))
        reply = self.encode(change.view, now)
        stored = Reply(self.call.fingerprint, reply) if self.call.request_id else None
        if isinstance(self.call, BeginCheckout):
            self._check_room(unit, change, stored)
        unit.apply_checkout(change, self.trace_context)
        if stored:
            unit.put_reply(reply_key, stored)
        return reply

    def _decide(self, unit: UnitOfWork, given: Given) -> CheckoutChange:
        call = self.call
        if isinstance(call, BeginCheckout):
            if self.user in unit.erase_times:
                raise UserErasing(self.user.name)
            return begin_checkout(unit.get_loaded_cart(call.reads), call, given)
        loaded = unit.get_loaded_checkout(call.checkout)
        if isinstance(call, CompleteCheckout):
            return complete_checkout(loaded, call, given)
        return cancel_checkout(loaded, call.etag, given.now)

    def _check_room(self, unit: UnitOfWork, change: CheckoutChange, stored: Reply | None) -> None:
        # Only Begin: a sale that is paid for must not fail for lack of room.
        more = unit.find_checkout_growth(change).stored_bytes + (stored.byte_size if stored else 0)
        total, most = unit.find_totals(self.user).stored_bytes + more, self.limits.max_user_bytes
        if more > 0 and total > most:
            raise LimitExceeded(self.user.name, "bytes_per_user", most, total)


class EndedCheckout(NamedTuple):
    """The answer of EndCheckout: the checkout, and an alarm if items are counted as sold without an answer."""

    view: CheckoutView
    alarm: str | None


@dataclass(frozen=True, slots=True)
class EndCheckout:
    """End a checkout for an operator. With `force`, count every commit without an answer as sold.

    `reason` is for the log. Raises CheckoutNotFound; CheckoutCompleted if it is COMPLETED, or COMPLETING without force.
    """

    key: CheckoutKey
    reason: str
    force: bool

    def add_reads(self, reads: ReadSet) -> None:
        reads.add_checkout(self.key)

    def run(self, unit: UnitOfWork, now: int, new_id: NewId) -> EndedCheckout:
        loaded = unit.get_loaded_checkout(self.key)
        change = end_checkout(loaded, force=self.force, now=now)
        unit.apply_checkout(change)
        before = [line.reservation for line in loaded.lines]
        after = [line.reservation for line in change.lines]
        forced = [
            f"{old.name} ({old.quantity} of {old.sku})"
            for old, new in zip(before, after, strict=True)
            if new.state is Observed.COMMITTED and new.state is not old.state
        ]
        if not forced:
            return EndedCheckout(change.view, None)
        alarm = f"{self.key.name}: an operator counts as sold, without an answer: {', '.join(forced)}; {self.reason}"
        return EndedCheckout(change.view, alarm)


class Evaluated(NamedTuple):
    """Whether a checkout changed, and an alarm if a person is needed."""

    is_changed: bool
    alarm: str | None = None


@dataclass(frozen=True, slots=True)
class EvaluateCheckout:
    """Make the change of a checkout that its reservations or the time make necessary."""

    key: CheckoutKey

    def add_reads(self, reads: ReadSet) -> None:
        reads.add_checkout(self.key)

    def run(self, unit: UnitOfWork, now: int, new_id: NewId) -> Evaluated:
        return evaluate_checkout(unit, self.key, now)


def evaluate_checkout(unit: UnitOfWork, key: CheckoutKey, now: int) -> Evaluated:
    """Apply the change that is necessary, if any. `unit` must have loaded the checkout: see ReadSet.add_checkout."""
    if key not in unit.checkouts:
        return Evaluated(is_changed=False)
    change = evaluate(unit.get_loaded_checkout(key), now)
    if change is None:
        return Evaluated(is_changed=False)
    unit.apply_checkout(change)
    return Evaluated(is_changed=True, alarm=_find_alarm(change.checkout))


def _find_alarm(checkout: Checkout) -> str | None:
    if checkout.state is not CheckoutState.FAILED:
        return None
    return (
        f"{checkout.key.name} is FAILED: the Reservation API refused to sell at least one item of the order "
        f"{checkout.order_reference!r}; complete it again, or cancel it"
    )
