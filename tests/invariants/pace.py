"""Bounds on the time until everything is settled, and on the number of messages."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from cart_grpc.protocol.reservation import Reservation
from tests.invariants.history import Delivery, RowVersion

SECOND = 1_000_000


def check_ends(written: Iterable[RowVersion], healthy_at: int, bound: int, now: int) -> list[str]:
    """Every intent is settled within `bound` microseconds of its time, or of `healthy_at` if that is later.

    `now` is the database's time when the last row was read. A caller's new intent starts a new wait; a revision that
    the reconciler raises does not.
    """
    waiting: dict[str, tuple[int, Reservation]] = {}
    violations = []

    def end(row: Reservation, time: int) -> None:
        began, _ = waiting.pop(row.reservation_id, (time, row))
        if time - max(began, healthy_at) > bound:
            violations.append(f"{row.reservation_id} took from {max(began, healthy_at)} to {time}: {row}")

    for one in written:
        if not isinstance(one.row, Reservation):
            continue
        row = one.row
        known = waiting.get(row.reservation_id)
        if row.settled or (known and row.intent_revision > known[1].intent_revision and not row.seal_reason):
            end(row, one.time)
        if not row.settled:
            began = waiting.get(row.reservation_id, (one.time, row))[0]
            waiting[row.reservation_id] = began, row
    for _, row in list(waiting.values()):
        end(row, now)
    return violations


def check_calls(deliveries: Sequence[Delivery], most: float = 1.05) -> list[str]:
    """Without faults, at most `most` calls are made per revision on average."""
    revisions = {(one.reservation_id, one.revision) for one in deliveries}
    if len(deliveries) <= most * len(revisions):
        return []
    return [f"{len(deliveries)} calls were made for {len(revisions)} revisions: {len(deliveries) / len(revisions):.2f}"]


def check_backlog(deliveries: Sequence[Delivery], backlog: int, most: float = 1.2) -> list[str]:
    """After an outage, a backlog of `backlog` revisions costs at most `most` calls per revision.

    `deliveries` are those from the end of the outage until everything is settled.
    """
    if len(deliveries) <= most * backlog:
        return []
    return [f"{len(deliveries)} calls were made for the {backlog} revisions of the backlog"]


def check_probes(deliveries: Iterable[Delivery], interval: int = SECOND, burst: float = 1.1) -> list[str]:
    """While its breaker is open, each replica calls the API at most once per `interval` microseconds.

    `deliveries` are those of the outage after the breakers opened. `burst` is the size of the token bucket, in calls:
    above 1 to allow for varying latency.
    """
    by_replica: defaultdict[str, list[int]] = defaultdict(list)
    for one in deliveries:
        by_replica[one.replica].append(one.time)
    violations = []
    for replica, times in by_replica.items():
        level, last = burst, times[0]
        for time in times:
            level, last = min(burst, level + (time - last) / interval) - 1, time
            if level < 0:
                violations.append(f"{replica} calls more often than every {interval} microseconds: again at {time}")
                break
    return violations
