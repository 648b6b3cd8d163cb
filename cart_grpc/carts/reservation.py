"""A reservation: what is intended, what was observed, and the pure rules that lead from one to the other.

The protocol: one declarative, idempotent message with a rising revision. Any change of intent raises `revision`; an
answer for revision r moves `observed_revision` to r; the next message is a pure function of the row. So a lost
reply, a crash and a call that hangs are all the same case: `observed_revision < revision`, send the intent as it is
now. Nothing is ever concluded from the absence of an answer. Leases only save work: none of the rules below needs
one to be safe.

Times and durations are int microseconds, times since the Unix epoch in UTC.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

from cart_grpc.carts.names import CartKey


class Disposition(IntEnum):
    """What should become of the stock. The numbers are those of `reservation.v1` and of the database."""

    HOLD = 1
    COMMIT = 2
    RELEASE = 3


class Observed(IntEnum):
    """What the Reservation API last decided. The numbers are those of `reservation.v1` and of the database."""

    NOTHING = 0
    HELD = 1
    REJECTED = 2
    COMMITTED = 3
    RELEASED = 4
    EXPIRED = 5


FINAL = frozenset({Observed.COMMITTED, Observed.RELEASED})


@dataclass(frozen=True, slots=True)
class Intent:
    """One message to the Reservation API: make the reservation this. `ttl` in microseconds."""

    reservation_id: str
    revision: int
    sku: str
    quantity: int
    disposition: Disposition
    ttl: int
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the Reservation API decided for one revision. `expire_time` in microseconds, None where nothing is held."""

    reservation_id: str
    revision: int
    state: Observed
    granted_quantity: int
    expire_time: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error that says the request can never succeed. The API does not remember it, so it must be sealed.

    `reason` is UPPER_SNAKE_CASE, at most 63 characters; `message` is for the operator's eyes.
    """

    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


@dataclass(frozen=True, slots=True)
class Overtaken:
    """The API has decided a higher revision already; `current` is that decision."""

    current: Decision

    def __str__(self) -> str:
        return f"ABORTED: revision {self.current.revision} was decided already"


Answer = Decision | Refusal | Overtaken


@dataclass(frozen=True, slots=True)
class Silence:
    """There was no answer: the message may or may not have taken effect. `code` says how the call ended."""

    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@dataclass(frozen=True, slots=True)
class Reservation:
    """One row: intent, what was observed, and the work between them.

    `intent_revision` is the revision at which the intent last changed in substance: a renewal raises `revision` alone,
    and nobody need see it. `least_quantity` is the least quantity intended since the last grant observed: what is shown
    as reserved never exceeds it, since a smaller intent may have been decided already. `refused_reason` is set while an
    error that can never succeed is being sealed, and after. `waiting` rows are not due until the older reservations of
    the same cart and sku are released. `due_at` is None when there is nothing to do. `uncertain_until` is when the
    last request of the `basic` contract that nobody has answered can take effect no more.
    """

    reservation_id: str
    cart: CartKey
    item_id: str
    sku: str
    quantity: int
    disposition: Disposition
    ttl: int
    labels: Mapping[str, str]
    revision: int
    intent_revision: int
    least_quantity: int
    create_time: int
    state: Observed = Observed.NOTHING
    granted_quantity: int = 0
    expire_time: int | None = None
    observed_revision: int = 0
    reason: str = ""
    refused_reason: str = ""
    waiting: bool = False
    due_at: int | None = None
    attempt: int = 0
    lease_epoch: int = 0
    lease_until: int | None = None
    last_error: str = ""
    finish_time: int | None = None
    uncertain_until: int | None = None

    @property
    def settled(self) -> bool:
        """Whether the Reservation API has answered for the latest revision."""
        return self.observed_revision >= self.revision

    @property
    def reconciling(self) -> bool:
        """Whether the Reservation API has not answered yet for what a caller intends."""
        return self.observed_revision < self.intent_revision

    @property
    def releasing(self) -> bool:
        """Whether it may still hold stock that it is to give back."""
        return self.disposition is Disposition.RELEASE and not self.settled

    @property
    def over(self) -> bool:
        """Whether the id can hold nothing any more: final states absorb whatever is asked later."""
        return self.disposition is Disposition.RELEASE or self.state in FINAL


def next_intent(reservation: Reservation) -> Intent | None:
    """The message to send now, or None where nothing is left to say."""
    if reservation.settled:
        return None
    return Intent(
        reservation.reservation_id,
        reservation.revision,
        reservation.sku,
        reservation.quantity,
        reservation.disposition,
        reservation.ttl,
        reservation.labels,
    )


def hold(reservation: Reservation, quantity: int, now: int) -> Reservation:
    """Intend to hold `quantity`: one revision more, due now unless a call is under way or an older id must go first.

    A call under way is left alone: its answer makes the row due, so five changes while it hangs are one call.
    """
    if reservation.over or reservation.disposition is Disposition.COMMIT:
        raise ValueError("nothing can be held again under this id")
    leased = reservation.lease_until is not None and reservation.lease_until > now
    return replace(
        reservation,
        quantity=quantity,
        revision=reservation.revision + 1,
        intent_revision=reservation.revision + 1,
        least_quantity=min(reservation.least_quantity, quantity),
        refused_reason="",
        due_at=reservation.due_at if leased or reservation.waiting else now,
        attempt=0,
    )


def release(reservation: Reservation, now: int) -> Reservation:
    """Intend to hold nothing: due now, even while a call hangs, whose epoch is overtaken so that it delays nothing.

    From COMMIT no other intent follows, except where the commit was REJECTED.
    """
    if reservation.over:
        return reservation
    if reservation.disposition is Disposition.COMMIT and not (
        reservation.settled and reservation.state is Observed.REJECTED
    ):
        raise ValueError("a reservation that is being committed cannot be released")
    return replace(
        reservation,
        disposition=Disposition.RELEASE,
        revision=reservation.revision + 1,
        intent_revision=reservation.revision + 1,
        least_quantity=0,
        waiting=False,
        due_at=now,
        attempt=0,
        lease_epoch=reservation.lease_epoch + 1,
        lease_until=None,
    )


def unblock(reservation: Reservation, now: int) -> Reservation:
    """The older reservations of the cart and sku are gone: a waiting hold is due."""
    return replace(reservation, waiting=False, due_at=now)


def observe(reservation: Reservation, decision: Decision) -> Reservation:
    """Join a decision in, whoever brings it: what was observed only rises, so a late or double one changes nothing."""
    if decision.revision <= reservation.observed_revision or decision.revision > reservation.revision:
        return reservation
    latest = decision.revision >= reservation.intent_revision
    return replace(
        reservation,
        state=decision.state,
        granted_quantity=decision.granted_quantity,
        expire_time=decision.expire_time,
        observed_revision=decision.revision,
        reason=decision.reason,
        least_quantity=reservation.quantity if latest else reservation.least_quantity,
    )


def seal(reservation: Reservation, reason: str, now: int) -> Reservation:
    """Close an error that can never succeed: hold what is granted, or release, under the next revision.

    The API does not remember an error, so a late copy of the message could still take effect; the next revision
    makes that harmless. Only once it is observed is the item shown as REJECTED. A seal that is refused itself ends in
    RELEASE; a renewal of what was sealed is no seal.
    """
    granted = reservation.granted_quantity if reservation.state in (Observed.HELD, Observed.REJECTED) else 0
    keep = min(granted, reservation.quantity)
    lapsed = reservation.expire_time is not None and reservation.expire_time <= now
    was_seal = reservation.refused_reason and reservation.intent_revision == reservation.revision
    if keep == 0 or lapsed or was_seal:
        return replace(release(reservation, now), refused_reason=reservation.refused_reason or reason)
    sealed = hold(reservation, keep, now)
    return replace(sealed, refused_reason=reason, due_at=now, lease_until=None)


def record(
    reservation: Reservation,
    epoch: int,
    sent_revision: int,
    outcome: Answer | Silence,
    now: int,
    retry_at: int,
    spread: float = 0.5,
) -> Reservation:
    """The row after a call for `sent_revision`, made under the claim `epoch`, ended with `outcome`.

    What was decided is joined in whoever brings it; the bookkeeping is only touched where the claim is still ours.
    `retry_at` is when to try again where there was no answer; `spread`, 0 to 1, is drawn anew each time, so that
    what was held together is not renewed together.
    """
    after = reservation
    match outcome:
        case Decision():
            after = observe(after, outcome)
        case Overtaken(current) if current.revision > after.revision:
            # Due whoever brings it: a row that was settled had nobody left to send it.
            after = replace(after, revision=current.revision + 1, due_at=now)
        case Refusal(reason) if _can_seal(after, sent_revision):
            after = seal(after, reason, now)
    if after is reservation and after.settled:
        return reservation
    if after.settled:
        finish_time = now if after.state in FINAL else None
        due_at = _renewal(after, now, retry_at, spread)
        return replace(after, due_at=due_at, lease_until=None, last_error="", finish_time=finish_time)
    if after.lease_epoch != epoch:
        return after
    more_to_say = after.revision > sent_revision and not isinstance(outcome, Silence)
    return replace(after, due_at=now if more_to_say else retry_at, lease_until=None, last_error=str(outcome))


def _renewal(reservation: Reservation, now: int, retry_at: int, spread: float) -> int | None:
    """When to ask again for what is settled: half to three quarters into what is left of a hold.

    A hold that ran out is asked for again at once; what was refused, released or sold, and holds nothing, never.
    """
    if reservation.disposition is not Disposition.HOLD or reservation.state in FINAL:
        return None
    if reservation.state is Observed.EXPIRED:
        return retry_at
    if reservation.expire_time is None or not reservation.granted_quantity:
        return None
    return max(now + int((reservation.expire_time - now) * (0.5 + 0.25 * spread)), retry_at)


def _can_seal(reservation: Reservation, sent_revision: int) -> bool:
    latest = sent_revision == reservation.revision and not reservation.settled
    return latest and reservation.disposition is Disposition.HOLD


def find_alarm(reservation: Reservation, outcome: Answer | Silence) -> str | None:
    """What an operator must hear about: something that the rules say cannot happen did."""
    match outcome:
        case Decision(state=Observed.COMMITTED) if reservation.disposition is Disposition.RELEASE:
            return "a reservation that was to be released is COMMITTED"
        case Refusal() if reservation.disposition is Disposition.RELEASE and reservation.attempt <= 1:
            return f"the Reservation API refuses to release: {outcome}"
        case Decision(revision=revision) if revision > reservation.revision:
            return f"revision {revision} was answered, but only {reservation.revision} was ever issued"
        case Overtaken(current) if current.revision > reservation.revision:
            return f"revision {current.revision} is known to the Reservation API, but {reservation.revision} is ours"
    return None
