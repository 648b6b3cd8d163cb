"""Attempts: the additional rules of the `basic` contract.

Under that contract a request can take effect after it timed out, and a repeated request reserves twice. Therefore:

- A reservation has at most one open attempt, recorded before the request is sent. `uncertain_until` is the time after
  which the request can no longer take effect. Until then nothing else is sent.
- After that time the id is looked up, and only the look-up can show that nothing is held.
- That time rests on an assumption about how late a request can take effect. So a reservation that was ever attempted is
  looked up again later, even after it is settled.

All functions are pure. Times are int microseconds since the Unix epoch in UTC; durations are int microseconds.
"""

from cart_grpc.protocol.reservation import Answer, Decision, Disposition, NoAnswer, Observed, Reservation

DAY_US = 24 * 3600 * 1_000_000


def is_uncertain(reservation: Reservation) -> bool:
    """Whether an attempt for the current intent was opened and its result is unknown."""
    attempted = reservation.uncertain_until is not None and reservation.reserved_cap == 0
    return attempted and reservation.reconciling and reservation.disposition is not Disposition.RELEASE


def open_attempt(reservation: Reservation, claimed: Reservation, window_us: int, now: int) -> Reservation | None:
    """The row with an attempt open until `window_us` from now. `claimed` is the row that the claim returned.

    Returns None, and then nothing may be sent, if the claim was overtaken, the intent changed, or another attempt may
    still be open. A change of quantity may release the old hold first, so callers see nothing as reserved until an
    answer comes.
    """
    ours = reservation.lease_epoch == claimed.lease_epoch and reservation.revision == claimed.revision
    if not ours or (reservation.uncertain_until or 0) > now:
        return None
    cap = 0 if reservation.reconciling else reservation.reserved_cap
    return reservation._replace(uncertain_until=now + window_us, reserved_cap=cap)


def update_attempt(
    reservation: Reservation, outcome: Answer | NoAnswer, opened: int | None, now: int, grace_us: int
) -> Reservation:
    """Close the attempt if `outcome` answers it, and set `due_time`. `outcome` is already recorded in the row.

    `opened` is the `uncertain_until` of the attempt that the call opened, or None. It identifies the attempt, so that
    the answer closes it even if the claim was overtaken, as a release does. `grace_us` spaces the later look-ups.
    """
    if opened is not None and opened == reservation.uncertain_until and not isinstance(outcome, NoAnswer):
        reservation = _close(reservation, outcome, now)
    if reservation.uncertain_until is None:
        return reservation
    if reservation.settled:
        checks = (_find_next_check(reservation, now, grace_us), reservation.due_time)
        due_time = min((time for time in checks if time is not None), default=None)
        finish_time = reservation.finish_time if due_time is None else None
        return reservation._replace(due_time=due_time, finish_time=finish_time)
    if reservation.lease_expire_time is None and reservation.due_time is not None:
        return reservation._replace(due_time=max(reservation.due_time, reservation.uncertain_until))
    return reservation


def _close(reservation: Reservation, outcome: Answer, now: int) -> Reservation:
    # The attempt lowered `reserved_cap` to 0. Once it is decided, callers may see the grant again.
    known = isinstance(outcome, Decision) and reservation.disposition is not Disposition.RELEASE
    is_decided = reservation.settled or reservation.lease_expire_time is not None
    return reservation._replace(
        uncertain_until=now,
        reserved_cap=reservation.quantity if known else reservation.reserved_cap,
        # A release may have been postponed until the attempt ends: it is due now.
        due_time=reservation.due_time if is_decided or reservation.waiting else now,
    )


def _find_next_check(reservation: Reservation, now: int, grace_us: int) -> int | None:
    """When to look up a settled reservation again: `grace_us`, ten times `grace_us` and one day after the last attempt.

    Returns None for a rejected hold, because its look-up would also try to reserve again, and after the last look-up.
    """
    if reservation.state is Observed.REJECTED or reservation.uncertain_until is None:
        return None
    checks = (reservation.uncertain_until + after for after in (grace_us, 10 * grace_us, DAY_US))
    return next((check for check in checks if check > now), None)


def count_duplicates(before: Reservation, outcome: Answer | NoAnswer) -> int:
    """The number of surplus live reservations that the call found and deleted. It should always be 0."""
    if not isinstance(outcome, Decision):
        return 0
    expected = 0 if before.state is Observed.RELEASED else 1
    return max(0, outcome.live_count - expected)
