"""Mutants: each function drops one rule of the protocol, of the service, or of the Reservation API.

A mutant replaces the function that `test_mutants.MISSING_RULES` names for it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from cart_grpc.carts import checkout as checkouts
from cart_grpc.carts.calls import Given
from cart_grpc.carts.checkout_calls import CheckoutChange, LoadedCheckout
from cart_grpc.carts.checkout_refusals import CheckoutExpired, CheckoutNotReady
from cart_grpc.carts.model import Checkout, CheckoutState, Line
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
from cart_grpc.simulator.rules import StoredReservation
from tests.protocol import api_rules, service_rules
from tests.protocol.checkouts import cart_of as example_cart
from tests.protocol.states import LASTING, new_row

_hold, _release = transitions.hold, transitions.release
_merge_decision, _record_outcome, _seal = transitions.merge_decision, transitions.record_outcome, transitions.seal
_apply, _decide = api_rules.apply, api_rules.decide
_check_can_complete, _evaluate, _evaluate_completing = (
    checkouts._check_can_complete,
    checkouts.evaluate,
    checkouts._evaluate_completing,
)
_ask_again, _give_back = checkouts._ask_again, checkouts._give_back
_shown, _claims, _restore = service_rules.shown, service_rules.claims, service_rules.restore

Answered = tuple[StoredReservation | None, Decision | PermanentFailure | StaleRevision]


def merge_without_comparing_revisions(row: Reservation, decision: Decision) -> Reservation:
    seen = _merge_decision(row._replace(observed_revision=0), decision)
    return seen._replace(observed_revision=max(row.observed_revision, decision.revision))


def observe_the_latest_revision(row: Reservation, decision: Decision) -> Reservation:
    return _merge_decision(row, decision)._replace(observed_revision=row.revision)


def drop_the_grant_when_rejected(row: Reservation, decision: Decision) -> Reservation:
    lost = replace(decision, granted_quantity=0, expire_time=None)
    return _merge_decision(row, lost if decision.state is Observed.REJECTED else decision)


def assume_that_nothing_was_sent(row: Reservation, now: int) -> Reservation:
    released = _release(row, now)
    nothing = row.observed_revision == 0
    return released._replace(observed_revision=released.revision, due_time=None) if nothing else released


def release_under_an_unanswered_revision(row: Reservation, now: int) -> Reservation:
    released = _release(row, now)
    return released if row.settled else released._replace(revision=row.revision, intent_revision=row.revision)


def hold_under_the_same_revision(row: Reservation, quantity: int, now: int) -> Reservation:
    return _hold(row, quantity, now)._replace(revision=row.revision, intent_revision=row.intent_revision)


def release_under_the_same_revision(row: Reservation, now: int) -> Reservation:
    return _release(row, now)._replace(revision=row.revision, intent_revision=row.intent_revision)


def _unfrozen(row: Reservation) -> Reservation:
    return row if row.state in FINAL or not row.frozen else row._replace(disposition=Disposition.HOLD)


def release_while_frozen(row: Reservation, now: int) -> Reservation:
    return _release(_unfrozen(row), now)


def hold_while_frozen(row: Reservation, quantity: int, now: int) -> Reservation:
    return _hold(_unfrozen(row), quantity, now)


def unfreeze_after_a_time_out(row: Reservation, epoch: int, sent: int, outcome: Any, *times: int) -> Reservation:
    if isinstance(outcome, NoAnswer) and row.disposition is Disposition.COMMIT and not row.settled:
        return _hold(_unfrozen(row), row.quantity, 0)
    return _record_outcome(row, epoch, sent, outcome, *times)


def treat_no_answer_as_permanent_failure(
    row: Reservation, epoch: int, sent: int, outcome: Any, *times: int
) -> Reservation:
    if not isinstance(outcome, NoAnswer):
        return _record_outcome(row, epoch, sent, outcome, *times)
    after = _record_outcome(row, epoch, sent, PermanentFailure("TIMEOUT", ""), *times)
    return after._replace(observed_revision=after.revision, due_time=None)


def treat_aborted_as_settled(row: Reservation, epoch: int, sent: int, outcome: Any, *times: int) -> Reservation:
    if isinstance(outcome, StaleRevision):
        return row._replace(observed_revision=row.revision, due_time=None)
    return _record_outcome(row, epoch, sent, outcome, *times)


def seal_a_failed_commit(row: Reservation, epoch: int, sent: int, outcome: Any, *times: int) -> Reservation:
    if isinstance(outcome, PermanentFailure) and row.frozen and sent == row.revision:
        return _seal(_unfrozen(row), outcome.reason, 0)
    return _record_outcome(row, epoch, sent, outcome, *times)


def reject_without_seal(row: Reservation, reason: str, now: int) -> Reservation:
    return row._replace(state=Observed.REJECTED, seal_reason=reason, observed_revision=row.revision)


def seal_under_the_same_revision(row: Reservation, reason: str, now: int) -> Reservation:
    return _release(row, now)._replace(revision=row.revision, intent_revision=row.revision, seal_reason=reason)


def ignore_the_reserved_cap(row: Reservation, wanted: int) -> Progress:
    return _shown(row._replace(reserved_cap=row.granted_quantity), wanted)


def show_an_expired_hold(row: Reservation, wanted: int) -> Progress:
    return _shown(row._replace(expire_time=None if row.expire_time is None else LASTING), wanted)


def show_rejected_before_the_seal(row: Reservation, wanted: int) -> Progress:
    shown = _shown(row, wanted)
    sealing = row.seal_reason and row.disposition is Disposition.RELEASE
    return shown._replace(state=ProgressState.REJECTED) if sealing else shown


def renew_with_an_old_intent(row: Reservation, sent: Iterable[Intent]) -> Iterator[Reservation]:
    for claimed in _claims(row, sent):
        for read in sent:
            yield claimed._replace(quantity=read.quantity, disposition=read.disposition)


def renew_under_the_same_revision(row: Reservation, sent: Iterable[Intent]) -> Iterator[Reservation]:
    for claimed in _claims(row, sent):
        yield claimed._replace(revision=row.revision)


def renew_as_a_change_of_intent(row: Reservation, sent: Iterable[Intent]) -> Iterator[Reservation]:
    for claimed in _claims(row, sent):
        yield claimed._replace(intent_revision=claimed.revision)


def reuse_the_id(rows: Sequence[Reservation], quantity: int) -> Sequence[Reservation]:
    return *rows[:-1], new_row(len(rows) - 1, quantity, waiting=False)


def do_not_wait_for_the_release(rows: Sequence[Reservation], quantity: int) -> Sequence[Reservation]:
    return *rows, new_row(len(rows), quantity, waiting=False)


def keep_waiting(row: Reservation, now: int) -> Reservation:
    return row


def ready_before_the_extension_is_observed(checkout: Checkout, lines: Sequence[Line]) -> bool:
    return all(checkouts._is_held(line, 0) for line in lines)


def complete_before_it_is_ready(loaded: LoadedCheckout, now: int) -> None:
    if loaded.checkout.expire_time <= now:
        raise CheckoutExpired(loaded.checkout)


def complete_after_the_window(loaded: LoadedCheckout, now: int) -> None:
    _check_can_complete(loaded._replace(checkout=loaded.checkout._replace(expire_time=now + 1)), now)


def complete_with_a_released_hold(loaded: LoadedCheckout, now: int) -> None:
    if not loaded.checkout.is_ready:
        raise CheckoutNotReady(loaded.checkout.key.name)


def thaw_a_sale_after_the_window(loaded: LoadedCheckout, now: int) -> CheckoutChange | None:
    checkout = loaded.checkout
    if checkout.state is CheckoutState.COMPLETING and checkout.expire_time <= now:
        cart = example_cart(loaded.lines)
        return checkouts.thaw(loaded._replace(cart=cart), CheckoutState.EXPIRED, "", now)
    return _evaluate(loaded, now)


def fail_without_every_answer(loaded: LoadedCheckout, now: int) -> CheckoutChange | None:
    is_sold = all(line.reservation.state is Observed.COMMITTED for line in loaded.lines)
    state = CheckoutState.COMPLETED if is_sold else CheckoutState.FAILED
    return CheckoutChange(loaded.checkout._replace(state=state), loaded.lines)


def count_a_refused_item_as_sold(loaded: LoadedCheckout, now: int) -> CheckoutChange | None:
    change = _evaluate_completing(loaded, now)
    return change and change._replace(checkout=change.checkout._replace(state=CheckoutState.COMPLETED))


def ask_again_for_what_is_sold(line: Line, checkout: Checkout, given: Given) -> Line:
    closed = line.reservation._replace(state=Observed.RELEASED, observed_revision=line.reservation.revision)
    return _ask_again(line._replace(reservation=closed), checkout, given)


def thaw_with_the_ttl_of_the_checkout(row: Reservation, checkout: Checkout, now: int) -> Reservation:
    return _give_back(row, checkout, now)._replace(ttl_us=row.ttl_us)


def thaw_under_an_unanswered_revision(row: Reservation, checkout: Checkout, now: int) -> Reservation:
    return row._replace(checkout_id="", ttl_us=checkout.hold_ttl_us)


def thaw_within_the_checkout(row: Reservation, checkout: Checkout, now: int) -> Reservation:
    return _give_back(row, checkout, now)._replace(checkout_id=row.checkout_id)


def change_a_frozen_cart(checkout: Checkout | None) -> bool:
    return checkout is None or checkout.state is CheckoutState.OPEN


def restore_unchanged(row: Reservation) -> Reservation:
    return row


def restore_one_revision_higher(row: Reservation) -> Reservation:
    revision = row.revision + 1
    restored = _restore(row)
    return restored if restored is row else restored._replace(revision=revision, intent_revision=revision)


def restore_the_reserved_cap(row: Reservation) -> Reservation:
    return _restore(row)._replace(reserved_cap=row.reserved_cap)


def apply_a_lower_revision(record: StoredReservation | None, intent: Intent, free: int) -> Answered:
    if record and intent.revision < record.intent.revision:
        after = _decide(record, intent, free)
        return after, api_rules.decision_of(after)
    return _apply(record, intent, free)


def decide_the_same_revision_again(record: StoredReservation | None, intent: Intent, free: int) -> Answered:
    if record and intent == record.intent:
        after = _decide(record, intent, free)
        return after, api_rules.decision_of(after)
    return _apply(record, intent, free)


def forget_the_release_of_an_unknown_id(record: StoredReservation | None, intent: Intent, free: int) -> Answered:
    after, answer = _apply(record, intent, free)
    return None if record is None and intent.disposition is Disposition.RELEASE else after, answer


def forget_a_released_id(record: StoredReservation | None, intent: Intent, free: int) -> Answered:
    after, answer = _apply(record, intent, free)
    return None if after and after.state is Observed.RELEASED else after, answer


def lose_the_hold_when_rejected(record: StoredReservation | None, intent: Intent, free: int) -> StoredReservation:
    after = _decide(record, intent, free)
    return replace(after, granted=0, expire_time=None) if after.state is Observed.REJECTED else after


def reject_the_commit_of_an_expired_hold(
    record: StoredReservation | None, intent: Intent, free: int
) -> StoredReservation:
    ran_out = record is not None and record.state is Observed.EXPIRED
    refuse = ran_out and intent.disposition is Disposition.COMMIT
    return _decide(record, intent, 0 if refuse else free)


def release_a_committed_id(record: StoredReservation | None, intent: Intent, free: int) -> StoredReservation:
    sold = record is not None and record.state is Observed.COMMITTED
    return _decide(None if sold else record, intent, free)


def hold_a_released_id(record: StoredReservation | None, intent: Intent, free: int) -> StoredReservation:
    released = record is not None and record.state is Observed.RELEASED
    return _decide(None if released else record, intent, free)


def forget_an_expired_hold(record: StoredReservation) -> None:
    return None


def expire_early(record: StoredReservation | None) -> bool:
    return record is not None and record.expire_time is not None
