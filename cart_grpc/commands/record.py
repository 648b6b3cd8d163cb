"""Recording the outcome of a call to the Reservation API, and, under the `basic` contract, opening an attempt first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from cart_grpc.carts.calls import NewId
from cart_grpc.commands.apply_transition import apply_transition, find_visibility
from cart_grpc.commands.checkout import evaluate_checkout
from cart_grpc.commands.unit_of_work import ReadSet, UnitOfWork
from cart_grpc.protocol.attempts import count_duplicates, open_attempt, update_attempt
from cart_grpc.protocol.reservation import Answer, Decision, Disposition, NoAnswer, Reservation
from cart_grpc.protocol.transitions import find_alarm, is_first_sent, limit_hold, record_outcome


@dataclass(frozen=True, slots=True)
class Recorded:
    """The reservation after a RecordOutcome, and an alarm for operators if there is one.

    `duplicates`: the number of surplus reservations that the call found at the Reservation API and deleted. `time`: the
    database's time of the record in microseconds, None if nothing was recorded.
    """

    reservation: Reservation
    alarm: str | None
    duplicates: int = 0
    time: int | None = None


class Settlement(NamedTuple):
    """The effect of a common record: its answer, and whether the cart's revision rises by one."""

    recorded: Recorded
    is_visible: bool

    @property
    def reservation(self) -> Reservation:
        """The reservation after the record."""
        return self.recorded.reservation


@dataclass(frozen=True, slots=True)
class RecordOutcome:
    """Record the outcome of one call to the Reservation API, made under the claim `claimed`.

    `retry_delay_us`: how long to wait before the next attempt if there was no answer. `counts_as_attempt`: False if the
    API is known to be down or was not called, because that says nothing about this reservation. `jitter`: a random
    number from 0 to 1, so that holds that were made together are not renewed together. `opened`: the answer of
    OpenAttempt under this claim, None if there was none. `grace_us`: the unit of the intervals at which attempts are
    looked up again. `claim_time` is the time of the claim, None if it is unknown. `elapsed_us` returns how long ago
    the call began, by the caller's monotonic clock. It is asked when the record is made, which may have to wait for the
    database for a while.
    """

    claimed: Reservation
    outcome: Answer | NoAnswer
    retry_delay_us: int
    counts_as_attempt: bool = True
    jitter: float = 0.5
    opened: int | None = None
    grace_us: int = 0
    claim_time: int | None = None
    elapsed_us: Callable[[], int] = lambda: 0

    def add_reads(self, reads: ReadSet) -> None:
        _add_reads(reads, self.claimed)
        if self.claimed.disposition is Disposition.RELEASE or self.claimed.supersedes:
            # Holds of the same sku may wait for this release, or be released after this decision.
            reads.skus.add((self.claimed.cart, self.claimed.sku))
        if self.claimed.checkout_id:
            reads.add_checkout(self.claimed.cart.checkout(self.claimed.checkout_id))

    def run(self, unit: UnitOfWork, now: int, new_id: NewId) -> Recorded:
        before = unit.reservations.get(self.claimed.reservation_id)
        if before is None or before.cart != self.claimed.cart:
            # The reservation was finished and purged: a late answer changes nothing. Or it has moved to another cart,
            # whose user is not locked: the next claim gets the same answer.
            return Recorded(self.claimed, None)
        recorded = self._record(before, now)
        apply_transition(unit, before, recorded.reservation, now)
        return self._follow(unit, recorded, now) if self.claimed.checkout_id else recorded

    def _follow(self, unit: UnitOfWork, recorded: Recorded, now: int) -> Recorded:
        """Evaluate the checkout: this may be the answer that it waits for."""
        alarm = evaluate_checkout(unit, self.claimed.cart.checkout(self.claimed.checkout_id), now).alarm
        alarms = [each for each in (recorded.alarm, alarm) if each]
        return replace(recorded, alarm="; ".join(alarms) or None)

    def settle(self, now: int) -> Settlement | None:
        """The effect of `run` on a row that is still as it was claimed, still leased, and never attempted.

        Only the columns that `store.settle_statements` writes change. None: the record is not a common one, and `run`
        may have further effects.
        """
        claimed = self.claimed
        is_common = isinstance(self.outcome, Decision) and self.counts_as_attempt and self.opened is None
        # A release, a commit, a hold of a checkout or one that supersedes others has more effects than its own row.
        is_plain = claimed.disposition is Disposition.HOLD and not claimed.checkout_id and not claimed.supersedes
        if not is_common or not is_plain or claimed.settled or claimed.waiting:
            return None
        recorded = self._record(claimed, now)
        after = recorded.reservation
        if recorded.alarm or not after.settled or after.finish_time is not None:
            return None
        if after.attempt_count != claimed.attempt_count:
            return None
        is_visible = find_visibility(claimed, after, now)
        return None if is_visible is None else Settlement(recorded, is_visible)

    def _record(self, before: Reservation, now: int) -> Recorded:
        """The row `before` with the outcome recorded, and the alarm."""
        epoch, sent = self.claimed.lease_epoch, self.claimed.revision
        latest, is_first = self._earliest_sent_time(now) + self.claimed.ttl_us, is_first_sent(self.claimed)
        outcome = limit_hold(self.outcome, latest, latest if is_first else now)
        after = record_outcome(before, epoch, sent, outcome, now, now + self.retry_delay_us, self.jitter)
        if after.settled and outcome is not self.outcome and not is_first:
            # The next claim is then the first to send its revision, so its hold can be believed.
            after = after._replace(attempt_count=0)
        after = update_attempt(after, self.outcome, self.opened, now, self.grace_us)
        if not self.counts_as_attempt and after.lease_epoch == epoch and after.attempt_count:
            after = after._replace(attempt_count=after.attempt_count - 1)
        duplicates = count_duplicates(before, self.outcome)
        alarm = f"{duplicates} surplus reservations were found and deleted" if duplicates else None
        return Recorded(after, alarm or find_alarm(before, self.outcome), duplicates, now)

    def _earliest_sent_time(self, now: int) -> int:
        """The earliest time at which the call can have begun. The clock may have been set back since the claim."""
        began = now - self.elapsed_us()
        return began if self.claim_time is None else min(began, self.claim_time)


@dataclass(frozen=True, slots=True)
class RecordAll:
    """Record many outcomes in one transaction. The answer: a Recorded, or the error of its record, for each of them.

    The records of a batch run before its other commands.
    """

    records: Sequence[RecordOutcome]


@dataclass(frozen=True, slots=True)
class OpenAttempt:
    """Record, before a request is sent, that the request may take effect until `window_us` from now.

    The answer: the end of that window, or None if nothing may be sent.
    """

    claimed: Reservation
    window_us: int

    def add_reads(self, reads: ReadSet) -> None:
        _add_reads(reads, self.claimed)

    def run(self, unit: UnitOfWork, now: int, new_id: NewId) -> int | None:
        before = unit.reservations.get(self.claimed.reservation_id)
        if before is None or before.cart != self.claimed.cart:
            return None
        after = open_attempt(before, self.claimed, self.window_us, now)
        if after is None:
            return None
        apply_transition(unit, before, after, now)
        return after.uncertain_until


def _add_reads(reads: ReadSet, claimed: Reservation) -> None:
    """Add what `apply_transition` needs for a reservation that is not released by this command."""
    reads.users.add(claimed.cart.user)
    reads.carts.add(claimed.cart)
    reads.items.add((claimed.cart, claimed.item_id))
    reads.reservations.add((claimed.cart, claimed.reservation_id))
