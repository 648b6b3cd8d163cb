"""How processes claim reservations, as pure functions. Mutants replace these functions."""

from cart_grpc.protocol import transitions
from cart_grpc.protocol.reservation import Answer, NoAnswer, Reservation
from tests.protocol.states import TICK


def claim(row: Reservation) -> Reservation:
    """The row after a process looked for due reservations, found it and claimed it."""
    return transitions.claim(row, 0, TICK)


def claim_at_birth(row: Reservation, *, paused: bool) -> Reservation:
    """The row that a transaction made due, claimed by the same transaction. Unchanged if claims are `paused`."""
    return row if paused else transitions.claim(row, 0, TICK)


def extend(row: Reservation, claimed: Reservation) -> Reservation:
    """The row after the owner of `claimed` extended its lease."""
    return row._replace(lease_expire_time=TICK, due_time=TICK) if _is_ours(row, claimed) else row


def hand_back(row: Reservation, claimed: Reservation) -> Reservation:
    """The row after the owner of `claimed` stopped in the middle of its call."""
    return row._replace(lease_expire_time=None, due_time=0) if _is_ours(row, claimed) else row


def _is_ours(row: Reservation, claimed: Reservation) -> bool:
    return row.lease_epoch == claimed.lease_epoch and row.lease_expire_time is not None


def record(row: Reservation, claimed: Reservation, outcome: Answer | NoAnswer) -> Reservation:
    """The row after the outcome of the call that was made under the claim `claimed` was recorded."""
    return transitions.record_outcome(row, claimed.lease_epoch, claimed.revision, outcome, 0, TICK)
