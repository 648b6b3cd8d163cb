"""The claim as a rule: what `store/statements.py` says in SQL. `tests/store` proves that the two are one."""

from cart_grpc.protocol.reservation import Reservation


def claim(row: Reservation, now: int, until: int) -> Reservation:
    """The row once a worker has claimed it, unchanged where it is not due.

    What is due though it is settled is a hold to renew, or to hold again: the same intent, one revision later, which is
    no change of intent and shows nowhere. Attempts begin anew where it still holds.
    """
    if row.due_time is None or row.due_time > now:
        return row
    holding = row.settled and row.expire_time is not None and row.expire_time > now
    return row._replace(
        revision=row.revision + row.settled,
        lease_epoch=row.lease_epoch + 1,
        attempt_count=1 if holding else row.attempt_count + 1,
        lease_expire_time=until,
        due_time=until,
    )
