"""The rules of the protocol: how a reservation's row changes with intent, time and the API's answers.

There is one declarative, idempotent message with a rising revision. A change of intent raises `revision`. An answer for
revision r raises `observed_revision` to r. The next message is a pure function of the row. So a lost reply, a crash and
a hanging call are the same case: `observed_revision < revision`, and the reconciler sends the current intent. A missing
answer proves nothing: the message may have taken effect, or may still do so. Leases only save work; no rule needs one
to be safe. `tests/protocol` explores every interleaving and shows which failure each rule prevents.

All functions are pure. Times are int microseconds since the Unix epoch in UTC; durations are int microseconds.
"""

from dataclasses import replace

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

# The Reservation API's clock may be ahead of ours by this much. Callers see a hold end earlier than that.
CLOCK_SKEW_US = 1_000_000


def next_intent(reservation: Reservation) -> Intent | None:
    """The message to send now, or None if the latest revision was already answered."""
    if reservation.settled:
        return None
    return Intent(
        reservation.reservation_id,
        reservation.revision,
        reservation.sku,
        reservation.quantity,
        reservation.disposition,
        reservation.ttl_us,
        checkout_id=reservation.checkout_id,
        trace_context=reservation.trace_context,
    )


def hold(reservation: Reservation, quantity: int, now: int) -> Reservation:
    """Change the intent to HOLD `quantity`.

    The row is due now, unless it is claimed, or waits and still needs more than it holds. If a call is under way, its
    outcome makes the row due, so five changes during one hanging call cost one more call. Raises ValueError if the
    reservation is closed or frozen.
    """
    if reservation.is_closed or reservation.frozen:
        raise ValueError("a closed or frozen reservation cannot be held again")
    leased = reservation.lease_expire_time is not None and reservation.lease_expire_time > now
    reserved_cap = min(reservation.reserved_cap, quantity)
    waits = reservation.waiting and min(reservation.granted_quantity, reserved_cap) < quantity
    return reservation._replace(
        disposition=Disposition.HOLD,
        quantity=quantity,
        revision=reservation.revision + 1,
        intent_revision=reservation.revision + 1,
        reserved_cap=reserved_cap,
        seal_reason="",
        waiting=waits,
        due_time=reservation.due_time if leased or waits else now,
        attempt_count=0,
    )


def release(reservation: Reservation, now: int) -> Reservation:
    """Change the intent to RELEASE, due now. A closed reservation is returned unchanged.

    A new lease epoch ends the claim of a hanging call, so that the call cannot delay the release. A hold leaves its
    checkout, whose cart then thaws. Raises ValueError if the reservation is frozen.
    """
    if reservation.is_closed:
        return reservation
    if reservation.frozen:
        raise ValueError("a reservation cannot be released while it is being committed")
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
        superseded_by="",
        checkout_id=_checkout_after_release(reservation),
    )


def _checkout_after_release(reservation: Reservation) -> str:
    return "" if reservation.disposition is Disposition.HOLD else reservation.checkout_id


def extend(reservation: Reservation, ttl_us: int, now: int) -> Reservation:
    """Ask for the same hold with another ttl, due now, as a renewal does: callers do not see it.

    A new lease epoch ends the claim of a hanging call, so that the call cannot delay it. Raises ValueError if the
    intent is not HOLD, or if the reservation is closed or waiting.
    """
    if reservation.disposition is not Disposition.HOLD or reservation.is_closed or reservation.waiting:
        raise ValueError("only a hold can be extended")
    return reservation._replace(
        ttl_us=ttl_us,
        revision=reservation.revision + 1,
        due_time=now,
        attempt_count=0,
        lease_epoch=reservation.lease_epoch + 1,
        lease_expire_time=None,
    )


def commit(reservation: Reservation, now: int) -> Reservation:
    """Change the intent to COMMIT, due now: the held stock is sold. A frozen reservation is returned unchanged.

    From then on no writer may change the intent until the commit is observed to be REJECTED; a time-out does not end
    this. A new lease epoch ends the claim of a hanging call. Raises ValueError if the reservation is closed or waiting.
    """
    if reservation.frozen:
        return reservation
    if reservation.is_closed or reservation.waiting:
        raise ValueError("a closed or waiting reservation cannot be committed")
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


def claim(reservation: Reservation, now: int, until: int) -> Reservation:
    """The row after a process claimed it until `until`. A row that is not due is returned unchanged.

    A settled row that is due is a hold to renew or to hold again: the same intent under the next revision. Callers do
    not see that, because the intent revision stays. Its attempt_count restarts only if the hold is still live, so an
    API that grants holds which have expired already is called less and less often. `store.statements.claim` is the same
    rule in SQL.
    """
    if reservation.due_time is None or reservation.due_time > now:
        return reservation
    settled = reservation.settled
    live = settled and reservation.expire_time is not None and reservation.expire_time > now
    return reservation._replace(
        revision=reservation.revision + settled,
        lease_epoch=reservation.lease_epoch + 1,
        attempt_count=1 if live else reservation.attempt_count + 1,
        lease_expire_time=until,
        due_time=until,
        set_aside_reason="",
    )


def stop_waiting(reservation: Reservation, now: int) -> Reservation:
    """Make a waiting row due: the cart's older reservations of the same sku are released.

    If it had a time at which it was due, it may have been sent already, to renew its own hold. The API may have refused
    that because of the older reservations, so it gets a new revision.
    """
    woken = reservation._replace(waiting=False)
    if reservation.due_time is not None and not reservation.settled:
        return hold(woken, reservation.quantity, now)
    return woken._replace(due_time=now)


def wait_again(reservation: Reservation, now: int) -> Reservation:
    """Ask for the same quantity again, once the cart's older reservations of the same sku are released.

    `reservation` is a settled hold of less than that. It keeps its `due_time`: its own hold has to be renewed.
    """
    return hold(reservation, reservation.quantity, now)._replace(waiting=True, due_time=reservation.due_time)


def retry_now(reservation: Reservation, now: int) -> Reservation:
    """Make an unsettled row due now with a fresh attempt count, and end the claim of a call under way.

    A row that is set aside is due again even if it is settled: it may be a hold to renew.
    """
    if reservation.waiting or (reservation.settled and not reservation.set_aside_reason):
        return reservation
    # Otherwise the next claim would seem to be the first to send the revision: see `is_first_sent`.
    aborted = "ABORTED: retried during a call" if reservation.lease_expire_time is not None else ""
    return reservation._replace(
        due_time=now,
        attempt_count=0,
        lease_epoch=reservation.lease_epoch + 1,
        lease_expire_time=None,
        last_error=reservation.last_error or aborted,
        set_aside_reason="",
    )


def is_first_sent(claimed: Reservation) -> bool:
    """Whether a claim is known to be the first to send its revision.

    Every claim that sends it again counts a second attempt, or follows one that left its error, or both.
    """
    return claimed.attempt_count <= 1 and not claimed.last_error


def is_taken_over(claimed: Reservation) -> bool:
    """Whether an earlier attempt at a claim's intent is known to have ended without a recorded outcome.

    Its process was killed, lost its database, or stopped and handed the claim back. After an attempt that left an
    error, and for a renewal, this is not known, and the result is False.
    """
    is_renewal = claimed.revision != claimed.intent_revision
    return claimed.attempt_count > 1 and not claimed.last_error and not is_renewal


def force_release(reservation: Reservation, now: int) -> Reservation:
    """Mark the row as RELEASED without an answer of the Reservation API. Only an operator may decide this.

    Later answers change nothing. Nothing is sent, so the revision stays, and a row with the last revision can be ended,
    too. A finished row is returned unchanged. Raises ValueError if the reservation is frozen.
    """
    if reservation.finish_time is not None:
        return reservation
    if reservation.frozen:
        raise ValueError("a reservation cannot be released while it is being committed")
    released = reservation._replace(
        disposition=Disposition.RELEASE,
        waiting=False,
        superseded_by="",
        checkout_id=_checkout_after_release(reservation),
    )
    return _finish_by_force(released, Observed.RELEASED, 0, now)


def force_commit(reservation: Reservation, now: int) -> Reservation:
    """Mark the row as COMMITTED without an answer of the Reservation API. Only an operator may decide this.

    A row that is settled or finished is returned unchanged. Raises ValueError if the intent is not COMMIT.
    """
    if reservation.settled or reservation.state in FINAL:
        return reservation
    if reservation.disposition is not Disposition.COMMIT:
        raise ValueError("only a reservation that is being committed can be counted as sold")
    return _finish_by_force(reservation, Observed.COMMITTED, reservation.quantity, now)


def _finish_by_force(reservation: Reservation, state: Observed, quantity: int, now: int) -> Reservation:
    return reservation._replace(
        state=state,
        granted_quantity=quantity,
        reserved_cap=quantity,
        expire_time=None,
        observed_revision=reservation.revision,
        due_time=None,
        attempt_count=0,
        lease_epoch=reservation.lease_epoch + 1,
        lease_expire_time=None,
        finish_time=now,
        set_aside_reason="",
    )


def merge_decision(reservation: Reservation, decision: Decision) -> Reservation:
    """Merge a decision into the row, whichever claim obtained it.

    `observed_revision` only rises, so a late or repeated decision changes nothing. A decision on a revision that we
    never issued changes nothing either.
    """
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


def limit_hold(outcome: Answer | NoAnswer, latest: int, end: int) -> Answer | NoAnswer:
    """The outcome with a hold that ends at `end` if the answer says that it ends much later than `latest`.

    `latest` is the time of the claim plus the ttl. A hold that seems to end more than CLOCK_SKEW_US later shows that
    the Reservation API's clock is ahead of ours: the API may end the hold before our clock reaches the answered
    `expire_time`. `end` is `latest` if the claim was the first to send the revision. Otherwise the decision may be
    older than the claim, nobody knows how long the hold lasts, and `end` is now.
    """
    if not isinstance(outcome, Decision) or (outcome.expire_time or 0) <= latest + CLOCK_SKEW_US:
        return outcome
    return replace(outcome, expire_time=end)


def seal(reservation: Reservation, reason: str, now: int) -> Reservation:
    """Follow a permanent failure with one more revision: HOLD the granted quantity, or RELEASE if there is none.

    The API does not remember an error, so a late copy of the failed message could still take effect. The higher
    revision makes that copy harmless. Callers see REJECTED only once the seal is observed. If the seal itself fails,
    RELEASE follows; a failed renewal of a sealed hold counts as a new failure, not as a failed seal.
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
    """The row after a call for `sent_revision` ended with `outcome`. `epoch` is the lease epoch of the call's claim.

    A decision is merged even if the claim was overtaken. `due_time`, `lease_expire_time` and `last_error` of an
    unsettled row change only if the claim is still ours. `retry_at` is the time of the next call if the row is not
    settled. `jitter`, random from 0 to 1, spreads the renewals of holds that were granted together.
    """
    after = reservation
    match outcome:
        case Decision():
            after = merge_decision(after, outcome)
        case StaleRevision(current) if current.revision > after.revision and after.finish_time is None:
            # Due even if our claim was overtaken: a settled row has no claim that would resend it. The decision answers
            # no intent of ours, so nothing counts as held until the new revision is answered.
            raised = current.revision + 1
            after = after._replace(revision=raised, intent_revision=raised, reserved_cap=0, due_time=now)
        case PermanentFailure(reason) if _can_seal(after, sent_revision):
            after = seal(after, reason, now)
    if after is reservation and after.settled:
        return reservation
    if after.settled:
        is_final = after.state in FINAL
        done = after._replace(
            due_time=_find_renewal_time(after, now, retry_at, jitter),
            waiting=False,
            lease_expire_time=None,
            last_error="",
            finish_time=now if is_final else None,
            set_aside_reason="",
            superseded_by="" if is_final else after.superseded_by,
        )
        # The hold that it waits for may be the reason. It was only sent to renew its own.
        return wait_again(done, now) if reservation.waiting and is_refused(done) else done
    if after.lease_epoch != epoch:
        return after
    has_newer_intent = after.revision > sent_revision and not isinstance(outcome, NoAnswer)
    last_error = "" if isinstance(outcome, Decision) else str(outcome)
    return after._replace(due_time=now if has_newer_intent else retry_at, lease_expire_time=None, last_error=last_error)


def _find_renewal_time(reservation: Reservation, now: int, retry_at: int, jitter: float) -> int | None:
    """When to renew a settled hold: after half to three quarters of the time that it has left.

    An expired hold is due again at `retry_at`. Returns None if nothing is held, and for a released or sold reservation.
    """
    if reservation.disposition is not Disposition.HOLD or reservation.state in FINAL:
        return None
    if reservation.state is Observed.EXPIRED:
        return retry_at
    if reservation.expire_time is None or not reservation.granted_quantity:
        return None
    return max(now + int((reservation.expire_time - now) * (0.5 + 0.25 * jitter)), retry_at)


def is_refused(reservation: Reservation) -> bool:
    """Whether a settled hold got less than it asked for."""
    asks = reservation.disposition is Disposition.HOLD and not reservation.is_closed
    return asks and reservation.granted_quantity < reservation.quantity


def _can_seal(reservation: Reservation, sent_revision: int) -> bool:
    latest = sent_revision == reservation.revision and not reservation.settled
    return latest and reservation.disposition is Disposition.HOLD


def find_alarm(reservation: Reservation, outcome: Answer | NoAnswer) -> str | None:
    """A message for the operator if the outcome breaks the protocol's rules, else None."""
    match outcome:
        case Decision(state=Observed.COMMITTED) if reservation.disposition is Disposition.RELEASE:
            return "the Reservation API says COMMITTED, but the reservation should be RELEASED"
        case Decision(state=Observed.COMMITTED) if reservation.disposition is Disposition.HOLD:
            return "the Reservation API says COMMITTED, but the reservation should be HELD"
        case PermanentFailure() if reservation.disposition is not Disposition.HOLD and reservation.attempt_count <= 1:
            return f"the Reservation API refuses to {reservation.disposition.name.lower()}: {outcome}"
        case Decision(revision=revision) if revision > reservation.revision:
            return f"the Reservation API answered revision {revision}, but our latest is {reservation.revision}"
        case StaleRevision(current) if current.revision > reservation.revision:
            return f"the Reservation API decided revision {current.revision}, but our latest is {reservation.revision}"
    return None
