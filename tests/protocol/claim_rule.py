"""The claim as a pure rule. `tests/store/test_claim_rule.py` proves that the store's SQL does the same."""

from cart_grpc.protocol.reservation import Reservation


def claim(row: Reservation, now: int, until: int) -> Reservation:
    """The row after a worker claimed it until `until`. A row that is not due is returned unchanged.

    A settled row that is due is a hold to renew or to hold again. The claim raises its revision but not its intent
    revision, so callers do not see it. If the hold is still in force, the attempts are counted from 1 again.
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
