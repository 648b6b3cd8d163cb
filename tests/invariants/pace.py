"""How long it takes until everything is at its end, and how many messages that costs."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from cart_grpc.protocol.reservation import Reservation
from tests.invariants.history import Delivery, RowVersion

SECOND = 1_000_000


def check_ends(written: Iterable[RowVersion], healthy_at: int, bound: int, now: int) -> list[str]:
    """Whatever is intended is settled within `bound` of its being intended, or of `healthy_at` where that is later.

    `now` is the database's time when the last row was read. A new intent of a caller begins a new wait, what the
    reconciler raises by itself does not.
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
    """While all is well, at most `most` calls are made for each revision."""
    revisions = {(one.reservation_id, one.revision) for one in deliveries}
    if len(deliveries) <= most * len(revisions):
        return []
    return [f"{len(deliveries)} calls were made for {len(revisions)} revisions: {len(deliveries) / len(revisions):.2f}"]


def check_backlog(deliveries: Sequence[Delivery], backlog: int, most: float = 1.2) -> list[str]:
    """What waited while the API was down, `backlog` revisions, takes at most `most` times as many calls once it is up.

    `deliveries` are those from then on until all is settled.
    """
    if len(deliveries) <= most * backlog:
        return []
    return [f"{len(deliveries)} calls were made for the {backlog} revisions that had waited"]


def check_probes(deliveries: Iterable[Delivery], interval: int = SECOND, burst: float = 1.1) -> list[str]:
    """While the API is down and known to be, each replica calls it at most once per `interval`.

    `deliveries` are those of the outage, after the breakers have opened. `burst` is what a replica may save up, in
    calls: above 1 by what latency varies.
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
