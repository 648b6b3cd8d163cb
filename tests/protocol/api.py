"""The Reservation API of the worlds: rule 1 of `cartgrpc.reservation.v1`, around the simulator's own rules 2 to 5.

Each function may be replaced by a mutant.
"""

from dataclasses import replace

from cart_grpc.protocol.reservation import Answer, Decision, Intent, PermanentFailure, StaleRevision
from cart_grpc.simulator import rules
from cart_grpc.simulator.rules import StoredReservation as Record
from tests.protocol.worlds import lapsed


def apply(record: Record | None, intent: Intent, free: int) -> tuple[Record | None, Answer]:
    """What the API remembers after a message, and its answer. `free` is what no other reservation has."""
    if record is None or intent.revision > record.intent.revision:
        after = decide(record, intent, free)
        return after, decision_of(after)
    if intent.revision < record.intent.revision:
        return record, StaleRevision(decision_of(record))
    return record, decision_of(record) if intent == record.intent else PermanentFailure("REVISION_REUSED", "")


def decide(record: Record | None, intent: Intent, free: int) -> Record:
    """The simulator's decision; at which revision it was granted is of no account here."""
    own = record.granted if record else 0
    return replace(rules.decide(record, intent, available=free - own, now=0), granted_revision=0)


def may_run_out(record: Record | None) -> bool:
    """Whether a hold may end now: at any time after its end that was answered, by the API's own clock."""
    return record is not None and lapsed(record.expire_time)


def run_out(record: Record) -> Record | None:
    """What is remembered of a hold that ran out: the stock is free, the revisions are not forgotten."""
    return rules.expire(record)


def decision_of(record: Record) -> Decision:
    """The answer of which `record` is remembered."""
    intent = record.intent
    reason = "OUT_OF_STOCK" if record.reason else ""
    return Decision(intent.reservation_id, intent.revision, record.state, record.granted, record.expire_time, reason)
