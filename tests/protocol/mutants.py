"""The protocol with one rule missing: ours, what we do around them, or one of the Reservation API's.

Each takes the place of the rule that its parameters tell.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from cart_grpc.carts.progress import Progress, ProgressState
from cart_grpc.protocol import transitions
from cart_grpc.protocol.reservation import (
    FINAL,
    Decision,
    Disposition,
    Intent,
    NoAnswer,
    Observed,
    PermanentFailure,
    Reservation,
    StaleRevision,
)
from cart_grpc.simulator.rules import StoredReservation as Record
from tests.protocol import api, practice
from tests.protocol.worlds import LASTING, made

_hold, _release = transitions.hold, transitions.release
_merge_decision, _record_outcome, _seal = transitions.merge_decision, transitions.record_outcome, transitions.seal
_apply, _decide = api.apply, api.decide
_shown, _claims, _restore = practice.shown, practice.claims, practice.restore

Answered = tuple[Record | None, Decision | PermanentFailure | StaleRevision]


def record_without_compare(row: Reservation, decision: Decision) -> Reservation:
    seen = _merge_decision(row._replace(observed_revision=0), decision)
    return seen._replace(observed_revision=max(row.observed_revision, decision.revision))


def record_the_current_revision(row: Reservation, decision: Decision) -> Reservation:
    return _merge_decision(row, decision)._replace(observed_revision=row.revision)


def grant_nothing_when_rejected(row: Reservation, decision: Decision) -> Reservation:
    lost = replace(decision, granted_quantity=0, expire_time=None)
    return _merge_decision(row, lost if decision.state is Observed.REJECTED else decision)


def conclude_that_nothing_was_sent(row: Reservation, now: int) -> Reservation:
    released = _release(row, now)
    nothing = row.observed_revision == 0
    return released._replace(observed_revision=released.revision, due_time=None) if nothing else released


def release_under_the_revision_that_is_unanswered(row: Reservation, now: int) -> Reservation:
    released = _release(row, now)
    return released if row.settled else released._replace(revision=row.revision, intent_revision=row.revision)


def hold_under_the_same_revision(row: Reservation, quantity: int, now: int) -> Reservation:
    return _hold(row, quantity, now)._replace(revision=row.revision, intent_revision=row.intent_revision)


def release_under_the_same_revision(row: Reservation, now: int) -> Reservation:
    return _release(row, now)._replace(revision=row.revision, intent_revision=row.intent_revision)


def _thawed(row: Reservation) -> Reservation:
    return row if row.state in FINAL or not row.frozen else row._replace(disposition=Disposition.HOLD)


def release_what_is_being_sold(row: Reservation, now: int) -> Reservation:
    return _release(_thawed(row), now)


def hold_what_is_being_sold(row: Reservation, quantity: int, now: int) -> Reservation:
    return _hold(_thawed(row), quantity, now)


def thaw_after_a_time_out(row: Reservation, epoch: int, sent: int, outcome: Any, *times: int) -> Reservation:
    if isinstance(outcome, NoAnswer) and row.disposition is Disposition.COMMIT and not row.settled:
        return _hold(_thawed(row), row.quantity, 0)
    return _record_outcome(row, epoch, sent, outcome, *times)


def take_silence_for_refusal(row: Reservation, epoch: int, sent: int, outcome: Any, *times: int) -> Reservation:
    if not isinstance(outcome, NoAnswer):
        return _record_outcome(row, epoch, sent, outcome, *times)
    after = _record_outcome(row, epoch, sent, PermanentFailure("TIMEOUT", ""), *times)
    return after._replace(observed_revision=after.revision, due_time=None)


def take_aborted_for_done(row: Reservation, epoch: int, sent: int, outcome: Any, *times: int) -> Reservation:
    if isinstance(outcome, StaleRevision):
        return row._replace(observed_revision=row.revision, due_time=None)
    return _record_outcome(row, epoch, sent, outcome, *times)


def seal_a_refused_commit(row: Reservation, epoch: int, sent: int, outcome: Any, *times: int) -> Reservation:
    if isinstance(outcome, PermanentFailure) and row.frozen and sent == row.revision:
        return _seal(_thawed(row), outcome.reason, 0)
    return _record_outcome(row, epoch, sent, outcome, *times)


def reject_without_seal(row: Reservation, reason: str, now: int) -> Reservation:
    return row._replace(state=Observed.REJECTED, seal_reason=reason, observed_revision=row.revision)


def seal_under_the_same_revision(row: Reservation, reason: str, now: int) -> Reservation:
    return _release(row, now)._replace(revision=row.revision, intent_revision=row.revision, seal_reason=reason)


def show_the_grant_as_it_is(row: Reservation, wanted: int) -> Progress:
    return _shown(row._replace(reserved_cap=row.granted_quantity), wanted)


def show_a_hold_that_ran_out(row: Reservation, wanted: int) -> Progress:
    return _shown(row._replace(expire_time=None if row.expire_time is None else LASTING), wanted)


def show_rejected_before_the_seal(row: Reservation, wanted: int) -> Progress:
    shown = _shown(row, wanted)
    sealing = row.seal_reason and row.disposition is Disposition.RELEASE
    return shown._replace(state=ProgressState.REJECTED) if sealing else shown


def renew_what_was_read_before(row: Reservation, sent: Iterable[Intent]) -> Iterator[Reservation]:
    for claimed in _claims(row, sent):
        for read in sent:
            yield claimed._replace(quantity=read.quantity, disposition=read.disposition)


def renew_under_the_same_revision(row: Reservation, sent: Iterable[Intent]) -> Iterator[Reservation]:
    for claimed in _claims(row, sent):
        yield claimed._replace(revision=row.revision)


def renew_as_a_change_of_intent(row: Reservation, sent: Iterable[Intent]) -> Iterator[Reservation]:
    for claimed in _claims(row, sent):
        yield claimed._replace(intent_revision=claimed.revision)


def use_the_id_again(rows: Sequence[Reservation], quantity: int) -> Sequence[Reservation]:
    return *rows[:-1], made(len(rows) - 1, quantity, waiting=False)


def do_not_wait(rows: Sequence[Reservation], quantity: int) -> Sequence[Reservation]:
    return *rows, made(len(rows), quantity, waiting=False)


def never_wake(row: Reservation, now: int) -> Reservation:
    return row


def do_not_outlast(row: Reservation) -> Reservation:
    return _hold(row, row.quantity, 0)


def is_reserved(row: Reservation, wanted: int) -> bool:
    return _shown(row, wanted).state is ProgressState.RESERVED


def restore_as_it_was(row: Reservation) -> Reservation:
    return row


def restore_one_higher(row: Reservation) -> Reservation:
    revision = row.revision + 1
    restored = _restore(row)
    return restored if restored is row else restored._replace(revision=revision, intent_revision=revision)


def restore_what_was_shown(row: Reservation) -> Reservation:
    return _restore(row)._replace(reserved_cap=row.reserved_cap)


def apply_what_is_lower(record: Record | None, intent: Intent, free: int) -> Answered:
    if record and intent.revision < record.intent.revision:
        after = _decide(record, intent, free)
        return after, api.decision_of(after)
    return _apply(record, intent, free)


def decide_the_same_anew(record: Record | None, intent: Intent, free: int) -> Answered:
    if record and intent == record.intent:
        after = _decide(record, intent, free)
        return after, api.decision_of(after)
    return _apply(record, intent, free)


def forget_a_release_of_the_unknown(record: Record | None, intent: Intent, free: int) -> Answered:
    after, answer = _apply(record, intent, free)
    return None if record is None and intent.disposition is Disposition.RELEASE else after, answer


def forget_what_is_over(record: Record | None, intent: Intent, free: int) -> Answered:
    after, answer = _apply(record, intent, free)
    return None if after and after.state is Observed.RELEASED else after, answer


def lose_the_hold_when_refused(record: Record | None, intent: Intent, free: int) -> Record:
    after = _decide(record, intent, free)
    return replace(after, granted=0, expire_time=None) if after.state is Observed.REJECTED else after


def reject_a_commit_that_ran_out(record: Record | None, intent: Intent, free: int) -> Record:
    ran_out = record is not None and record.state is Observed.EXPIRED
    refuse = ran_out and intent.disposition is Disposition.COMMIT
    return _decide(record, intent, 0 if refuse else free)


def release_what_is_sold(record: Record | None, intent: Intent, free: int) -> Record:
    sold = record is not None and record.state is Observed.COMMITTED
    return _decide(None if sold else record, intent, free)


def hold_what_is_released(record: Record | None, intent: Intent, free: int) -> Record:
    released = record is not None and record.state is Observed.RELEASED
    return _decide(None if released else record, intent, free)


def forget_what_ran_out(record: Record) -> None:
    return None


def run_out_early(record: Record | None) -> bool:
    return record is not None and record.expire_time is not None
