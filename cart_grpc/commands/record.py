"""How the reconciler records what a call to the Reservation API came to."""

from dataclasses import dataclass

from cart_grpc.carts.calls import NewId
from cart_grpc.commands.apply_transition import apply_transition
from cart_grpc.commands.unit_of_work import ReadSet, UnitOfWork
from cart_grpc.protocol.attempts import count_duplicates, open_attempt, update_attempt
from cart_grpc.protocol.reservation import Answer, Disposition, NoAnswer, Reservation
from cart_grpc.protocol.transitions import find_alarm, record_outcome


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of a record: the row as it is now, and what an operator must hear of, if anything.

    `duplicates` is how many reservations too many were found and undone.
    """

    reservation: Reservation
    alarm: str | None
    duplicates: int = 0


@dataclass(frozen=True, slots=True)
class RecordOutcome:
    """The outcome of one call to the Reservation API, for the claim it was made under.

    `retry_delay_us` is how long, in microseconds, to leave it alone where there was no answer. `counts_as_attempt` is False where
    the API is known to be down, or was not even called: the attempt says nothing about this reservation, and is not
    counted. `spread`, 0 to 1 and random, keeps what was held together from being renewed together. `opened` is what
    `OpenAttempt` answered under this claim, if it was asked; `grace_us`, in microseconds, spaces the watch over what was
    attempted.
    """

    claimed: Reservation
    outcome: Answer | NoAnswer
    retry_delay_us: int
    counts_as_attempt: bool = True
    jitter: float = 0.5
    opened: int | None = None
    grace_us: int = 0

    def add_reads(self, reads: ReadSet) -> None:
        claimed = self.claimed
        reads.users.add(claimed.cart.user)
        reads.carts.add(claimed.cart)
        reads.items.add((claimed.cart, claimed.item_id))
        reads.reservations.add((claimed.cart, claimed.reservation_id))
        if claimed.disposition is Disposition.RELEASE:
            reads.skus.add((claimed.cart, claimed.sku))

    def run(self, working: UnitOfWork, now: int, new_id: NewId) -> Recorded:
        before = working.reservations.get(self.claimed.reservation_id)
        if before is None:
            # Over for so long that it was purged: a late answer has nothing to change.
            return Recorded(self.claimed, None)
        epoch, sent = self.claimed.lease_epoch, self.claimed.revision
        after = record_outcome(before, epoch, sent, self.outcome, now, now + self.retry_delay_us, self.jitter)
        after = update_attempt(after, self.outcome, self.opened, now, self.grace_us)
        if not self.counts_as_attempt and after.lease_epoch == epoch and after.attempt_count:
            after = after._replace(attempt_count=after.attempt_count - 1)
        apply_transition(working, before, after, now)
        duplicates = count_duplicates(before, self.outcome)
        alarm = f"{duplicates} reservations too many were found and undone" if duplicates else None
        return Recorded(after, alarm or find_alarm(before, self.outcome), duplicates)


@dataclass(frozen=True, slots=True)
class OpenAttempt:
    """Note, before anything is sent, that an attempt is open for `window_us` microseconds from now.

    Answered with the time at which that ends, or None where nothing may be sent.
    """

    claimed: Reservation
    window_us: int

    def add_reads(self, reads: ReadSet) -> None:
        claimed = self.claimed
        reads.users.add(claimed.cart.user)
        reads.carts.add(claimed.cart)
        reads.items.add((claimed.cart, claimed.item_id))
        reads.reservations.add((claimed.cart, claimed.reservation_id))

    def run(self, working: UnitOfWork, now: int, new_id: NewId) -> int | None:
        before = working.reservations.get(self.claimed.reservation_id)
        after = open_attempt(before, self.claimed, self.window_us, now) if before else None
        if before is None or after is None:
            return None
        apply_transition(working, before, after, now)
        return after.uncertain_until
