"""The Reservation API of the model: rule 1 of `cartgrpc.reservation.v1`. The simulator's own code has rules 2 to 5.

Mutants replace these functions.
"""

from collections.abc import Sequence
from dataclasses import replace

from cart_grpc.protocol.reservation import Answer, Decision, Intent, PermanentFailure, StaleRevision
from cart_grpc.simulator import rules
from cart_grpc.simulator.rules import StoredReservation
from tests.protocol.states import lapsed


def apply(record: StoredReservation | None, intent: Intent, free: int) -> tuple[StoredReservation | None, Answer]:
    """The API's record after a message, and its answer. `free` is the stock that no other reservation has."""
    if record is None or intent.revision > record.intent.revision:
        after = decide(record, intent, free)
        return after, decision_of(after)
    if intent.revision < record.intent.revision:
        return record, StaleRevision(decision_of(record))
    return record, decision_of(record) if intent == record.intent else PermanentFailure("REVISION_REUSED", "")


def apply_batch(
    records: Sequence[StoredReservation | None], entries: Sequence[tuple[int, Intent]], stock: int
) -> tuple[Sequence[StoredReservation | None], Sequence[tuple[int, Answer]]]:
    """The API's records of a sku after a batch call, and the answers. An entry is the index of a record and a message.

    Each entry is decided as if it had come alone, but an earlier one may take the stock that a later one asks for.
    """
    after, answers = list(records), []
    for index, intent in entries:
        held = sum(record.granted for other, record in enumerate(after) if record and other != index)
        after[index], answer = apply(after[index], intent, stock - held)
        answers.append((index, answer))
    return after, answers


def decide(record: StoredReservation | None, intent: Intent, free: int) -> StoredReservation:
    """The simulator's decision, without the revision at which it was granted."""
    own = record.granted if record else 0
    return replace(rules.decide(record, intent, available=free - own, now=0), granted_revision=0)


def may_expire(record: StoredReservation | None) -> bool:
    """Whether a hold may expire now: at any time after the expire_time in the answer, by the API's clock."""
    return record is not None and lapsed(record.expire_time)


def expire(record: StoredReservation) -> StoredReservation | None:
    """The record of an expired hold: the stock is free, the revisions are kept."""
    return rules.expire(record)


def decision_of(record: StoredReservation) -> Decision:
    """The answer that `record` stands for."""
    intent = record.intent
    reason = "OUT_OF_STOCK" if record.reason else ""
    return Decision(intent.reservation_id, intent.revision, record.state, record.granted, record.expire_time, reason)
