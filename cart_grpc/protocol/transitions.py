"""The reservation protocol: the pure rules that lead from what is intended to what is observed.

One declarative, idempotent message with a rising revision. Any change of intent raises `revision`; an answer for
revision r moves `observed_revision` to r; the next message is a pure function of the row. So a lost reply, a crash
and a call that hangs are all the same case: `observed_revision < revision`, send the intent as it is now. Nothing is
ever concluded from the absence of an answer. Leases only save work: none of the rules below needs one to be safe.

Times and durations are int microseconds, times since the Unix epoch in UTC.
"""

from cart_grpc.protocol.reservation import (
    FINAL,
    Answer,
    Decision,
    Disposition,
    Intent,
    NoAnswer,
    Observed,
    PermanentFailure,
    Reservation,
    StaleRevision,
)


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
        reservation.ttl_us,
    )


def hold(reservation: Reservation, quantity: int, now: int) -> Reservation:
    """Intend to hold `quantity`: one revision more, due now unless a call is under way or an older id must go first.

    A call under way is left alone: its answer makes the row due, so five changes while it hangs are one call.
    """
    if reservation.is_closed or reservation.frozen:
        raise ValueError("nothing can be held again under this id")
    leased = reservation.lease_expire_time is not None and reservation.lease_expire_time > now
    return reservation._replace(
        disposition=Disposition.HOLD,
        quantity=quantity,
        revision=reservation.revision + 1,
        intent_revision=reservation.revision + 1,
        reserved_cap=min(reservation.reserved_cap, quantity),
        seal_reason="",
        due_time=reservation.due_time if leased or reservation.waiting else now,
        attempt_count=0,
    )


def release(reservation: Reservation, now: int) -> Reservation:
    """Intend to hold nothing: due now, even while a call hangs, whose epoch is overtaken so that it delays nothing.

    From COMMIT no other intent follows, except where the commit was REJECTED.
    """
    if reservation.is_closed:
        return reservation
    if reservation.frozen:
        raise ValueError("a reservation that is being committed cannot be released")
    return reservation._replace(
        disposition=Disposition.RELEASE,
        revision=reservation.revision + 1,
        intent_revision=reservation.revision + 1,
        reserved_cap=0,
        waiting=False,
        due_time=now,
        attempt_count=0,
        lease_epoch=reservation.lease_epoch + 1,
        lease_expire_time=None,
    )


def commit(reservation: Reservation, now: int) -> Reservation:
    """Intend to take the quantity for good: due now, even while a call hangs, whose epoch is overtaken.

    From then on no other intent follows, for any writer, until the commit is observed to be REJECTED: a time-out thaws
    nothing. What is being committed stays as it is. Raises ValueError where it is over, or waits for an older id.
    """
    if reservation.frozen:
        return reservation
    if reservation.is_closed or reservation.waiting:
        raise ValueError("nothing can be committed under this id")
    return reservation._replace(
        disposition=Disposition.COMMIT,
        revision=reservation.revision + 1,
        intent_revision=reservation.revision + 1,
        seal_reason="",
        due_time=now,
        attempt_count=0,
        lease_epoch=reservation.lease_epoch + 1,
        lease_expire_time=None,
    )


def stop_waiting(reservation: Reservation, now: int) -> Reservation:
    """The older reservations of the cart and sku are gone: a waiting hold is due."""
    return reservation._replace(waiting=False, due_time=now)


def retry_now(reservation: Reservation, now: int) -> Reservation:
    """What is still to be said is due now, as if it had never been tried; a call under way is overtaken."""
    if reservation.settled or reservation.waiting:
        return reservation
    return reservation._replace(
        due_time=now, attempt_count=0, lease_epoch=reservation.lease_epoch + 1, lease_expire_time=None
    )


def force_release(reservation: Reservation, now: int) -> Reservation:
    """Regard it as released although the Reservation API has not said so: for an operator alone to decide.

    Answers that come later change nothing. Raises ValueError where it is being committed.
    """
    if reservation.finish_time is not None:
        return reservation
    released = release(reservation, now)
    return released._replace(
        state=Observed.RELEASED,
        granted_quantity=0,
        expire_time=None,
        observed_revision=released.revision,
        due_time=None,
        lease_expire_time=None,
        finish_time=now,
    )


def merge_decision(reservation: Reservation, decision: Decision) -> Reservation:
    """Join a decision in, whoever brings it: what was observed only rises, so a late or double one changes nothing."""
    if decision.revision <= reservation.observed_revision or decision.revision > reservation.revision:
        return reservation
    latest = decision.revision >= reservation.intent_revision
    return reservation._replace(
        state=decision.state,
        granted_quantity=decision.granted_quantity,
        expire_time=decision.expire_time,
        observed_revision=decision.revision,
        reason=decision.reason,
        reserved_cap=reservation.quantity if latest else reservation.reserved_cap,
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
    was_seal = reservation.seal_reason and reservation.intent_revision == reservation.revision
    if keep == 0 or lapsed or was_seal:
        return release(reservation, now)._replace(seal_reason=reservation.seal_reason or reason)
    sealed = hold(reservation, keep, now)
    return sealed._replace(seal_reason=reason, due_time=now, lease_expire_time=None)


def record_outcome(
    reservation: Reservation,
    epoch: int,
    sent_revision: int,
    outcome: Answer | NoAnswer,
    now: int,
    retry_at: int,
    jitter: float = 0.5,
) -> Reservation:
    """The row after a call for `sent_revision`, made under the claim `epoch`, ended with `outcome`.

    What was decided is joined in whoever brings it; the bookkeeping is only touched where the claim is still ours.
    `retry_at` is when to try again where there was no answer; `spread`, 0 to 1, is drawn anew each time, so that
    what was held together is not renewed together.
    """
    after = reservation
    match outcome:
        case Decision():
            after = merge_decision(after, outcome)
        case StaleRevision(current) if current.revision > after.revision and after.finish_time is None:
            # Due whoever brings it: a row that was settled had nobody left to send it. What was decided for a revision
            # that we know nothing of answers no intent of ours, and nothing is certainly held until this one is.
            raised = current.revision + 1
            after = after._replace(revision=raised, intent_revision=raised, reserved_cap=0, due_time=now)
        case PermanentFailure(reason) if _can_seal(after, sent_revision):
            after = seal(after, reason, now)
    if after is reservation and after.settled:
        return reservation
    if after.settled:
        finish_time = now if after.state in FINAL else None
        due_time = _renewal(after, now, retry_at, jitter)
        return after._replace(due_time=due_time, lease_expire_time=None, last_error="", finish_time=finish_time)
    if after.lease_epoch != epoch:
        return after
    more_to_say = after.revision > sent_revision and not isinstance(outcome, NoAnswer)
    last_error = "" if isinstance(outcome, Decision) else str(outcome)
    return after._replace(due_time=now if more_to_say else retry_at, lease_expire_time=None, last_error=last_error)


def _renewal(reservation: Reservation, now: int, retry_at: int, jitter: float) -> int | None:
    """When to ask again for what is settled: half to three quarters into what is left of a hold.

    A hold that ran out is asked for again at once; what was refused, released or sold, and holds nothing, never.
    """
    if reservation.disposition is not Disposition.HOLD or reservation.state in FINAL:
        return None
    if reservation.state is Observed.EXPIRED:
        return retry_at
    if reservation.expire_time is None or not reservation.granted_quantity:
        return None
    return max(now + int((reservation.expire_time - now) * (0.5 + 0.25 * jitter)), retry_at)


def _can_seal(reservation: Reservation, sent_revision: int) -> bool:
    latest = sent_revision == reservation.revision and not reservation.settled
    return latest and reservation.disposition is Disposition.HOLD


def find_alarm(reservation: Reservation, outcome: Answer | NoAnswer) -> str | None:
    """What an operator must hear about: something that the rules say cannot happen did."""
    match outcome:
        case Decision(state=Observed.COMMITTED) if reservation.disposition is Disposition.RELEASE:
            return "a reservation that was to be released is COMMITTED"
        case Decision(state=Observed.COMMITTED) if reservation.disposition is Disposition.HOLD:
            return "a reservation that was never to be sold, or not any more, is COMMITTED"
        case PermanentFailure() if reservation.disposition is not Disposition.HOLD and reservation.attempt_count <= 1:
            return f"the Reservation API refuses to {reservation.disposition.name.lower()}: {outcome}"
        case Decision(revision=revision) if revision > reservation.revision:
            return f"revision {revision} was answered, but only {reservation.revision} was ever issued"
        case StaleRevision(current) if current.revision > reservation.revision:
            return f"revision {current.revision} is known to the Reservation API, but {reservation.revision} is ours"
    return None
