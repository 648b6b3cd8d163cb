"""Attempts: what the `basic` contract needs of a row beyond the protocol, as pure rules.

Under that contract a request to reserve can take effect after it was given up, and takes effect twice if it is sent
twice. So there is one open attempt per reservation at most, recorded before anything is sent: `uncertain_until` is
when what was attempted last can take effect no more. Until then nothing else is attempted, and afterwards the id is
looked up before it is believed to hold nothing. Because even that rests on a promise about how late a request can
be, whatever was ever attempted stays on a watch list and is looked up again.

Times and durations are int microseconds, times since the Unix epoch in UTC.
"""

from cart_grpc.protocol.reservation import Answer, Decision, Disposition, NoAnswer, Observed, Reservation

DAY = 24 * 3600 * 1_000_000


def is_uncertain(reservation: Reservation) -> bool:
    """Whether an attempt for what a caller intends was opened, and nobody knows what became of it."""
    attempted = reservation.uncertain_until is not None and reservation.reserved_cap == 0
    return attempted and reservation.reconciling and reservation.disposition is not Disposition.RELEASE


def open_attempt(reservation: Reservation, claimed: Reservation, window_us: int, now: int) -> Reservation | None:
    """The row with an attempt open until `window_us` from now, made under the claim that returned `claimed`.

    None where the claim was taken over, the intent has changed, or another attempt may still be open: then nothing
    may be sent. What was held may be given back on the way, so nothing is shown as reserved until there is an answer.
    """
    ours = reservation.lease_epoch == claimed.lease_epoch and reservation.revision == claimed.revision
    if not ours or (reservation.uncertain_until or 0) > now:
        return None
    least = 0 if reservation.reconciling else reservation.reserved_cap
    return reservation._replace(uncertain_until=now + window_us, reserved_cap=least)


def update_attempt(
    reservation: Reservation, outcome: Answer | NoAnswer, opened: int | None, now: int, grace_us: int
) -> Reservation:
    """The row, `outcome` recorded, with its attempt closed if that is the answer to it, and due when it must be.

    `opened` is the `uncertain_until` that the call opened its attempt with, None if it opened none: it tells the
    attempt from any other, so that the answer counts even where the claim was taken over, by a release above all.
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
    # An older quantity than the one intended now is certainly held, again.
    known = isinstance(outcome, Decision) and reservation.disposition is not Disposition.RELEASE
    return reservation._replace(
        uncertain_until=now,
        reserved_cap=reservation.quantity if known else reservation.reserved_cap,
        # A release that waits for this has nothing left to wait for.
        due_time=reservation.due_time if reservation.settled or reservation.lease_expire_time is not None else now,
    )


def _find_next_check(reservation: Reservation, now: int, grace_us: int) -> int | None:
    """When to look up again what is settled: `grace_us`, ten times that, and a day after the last attempt was over.

    Not what was rejected: looking would ask for it again.
    """
    if reservation.state is Observed.REJECTED or reservation.uncertain_until is None:
        return None
    checks = (reservation.uncertain_until + after for after in (grace_us, 10 * grace_us, DAY))
    return next((check for check in checks if check > now), None)


def count_duplicates(before: Reservation, outcome: Answer | NoAnswer) -> int:
    """How many reservations too many `outcome` tells of, found and undone: none should ever be live."""
    if not isinstance(outcome, Decision):
        return 0
    expected = 0 if before.state is Observed.RELEASED else 1
    return max(0, outcome.live_count - expected)
