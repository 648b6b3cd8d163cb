"""The protocol keeps its promises in every world, and each of its rules is needed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cart_grpc.carts import protocol
from cart_grpc.carts.model import Progress, ProgressState
from cart_grpc.carts.reservation import Decision, Disposition, Observed, Overtaken, Refusal, Reservation, Silence
from tests.carts.protocol import Bounds, Explorer, Harm, Rules

AGAIN = Bounds(changed=2, refused=1, ids=2)
REFUSED = Bounds(changed=3, refused=4, ids=1)

_hold, _release, _observe, _record = protocol.hold, protocol.release, protocol.observe, protocol.record


@pytest.mark.parametrize(("bounds", "least"), [(AGAIN, 30_000), (REFUSED, 3_000)], ids=["added again", "refused"])
def test_every_promise_holds_in_every_world(bounds: Bounds, least: int) -> None:
    assert Explorer(bounds, Rules()).explore() > least


def record_without_compare(row: Reservation, decision: Decision) -> Reservation:
    seen = _observe(replace(row, observed_revision=0), decision)
    return replace(seen, observed_revision=max(row.observed_revision, decision.revision))


def current_revision_recorded_for_the_answered_one(row: Reservation, decision: Decision) -> Reservation:
    return replace(_observe(row, decision), observed_revision=row.revision)


def release_skipped_where_nothing_was_observed(row: Reservation, now: int) -> Reservation:
    released = _release(row, now)
    nothing = row.observed_revision == 0
    return replace(released, observed_revision=released.revision, due_at=None) if nothing else released


def hold_without_raising_the_revision(row: Reservation, quantity: int, now: int) -> Reservation:
    return replace(_hold(row, quantity, now), revision=row.revision)


def release_without_raising_the_revision(row: Reservation, now: int) -> Reservation:
    return replace(_release(row, now), revision=row.revision)


def refusal_not_sealed(row: Reservation, reason: str, now: int) -> Reservation:
    return replace(row, state=Observed.REJECTED, refused_reason=reason, observed_revision=row.revision)


def refusal_sealed_under_the_same_revision(row: Reservation, reason: str, now: int) -> Reservation:
    return replace(_release(row, now), revision=row.revision, refused_reason=reason)


def silence_taken_for_refusal(row: Reservation, epoch: int, sent: int, outcome: Any, *times: int) -> Reservation:
    refusal = Refusal("TIMEOUT", "") if isinstance(outcome, Silence) else outcome
    after = _record(row, epoch, sent, refusal, *times)
    return replace(after, observed_revision=after.revision, due_at=None) if refusal is not outcome else after


def aborted_taken_for_done(row: Reservation, epoch: int, sent: int, outcome: Any, *times: int) -> Reservation:
    if isinstance(outcome, Overtaken):
        return replace(row, observed_revision=row.revision, due_at=None)
    return _record(row, epoch, sent, outcome, *times)


def grant_shown_as_it_is(row: Reservation, wanted: int) -> Progress:
    return Rules().shown(replace(row, least_quantity=row.granted_quantity), wanted)


def rejected_shown_before_the_seal_is_observed(row: Reservation, wanted: int) -> Progress:
    shown = Rules().shown(row, wanted)
    refused = row.refused_reason and row.disposition is Disposition.RELEASE
    return replace(shown, state=ProgressState.REJECTED) if refused else shown


HELD_BY_NOBODY = "something is held for what is released"
STILL_UNDER_WAY = "a message under way can still take effect for a rejected item"
OVERSTATED = "more is shown as reserved than is held"
MUTANTS: list[tuple[Bounds, str, Callable[..., Any], str]] = [
    (AGAIN, "observe", record_without_compare, "more is held than a rejected item shows"),
    (AGAIN, "observe", current_revision_recorded_for_the_answered_one, HELD_BY_NOBODY),
    (AGAIN, "release", release_skipped_where_nothing_was_observed, HELD_BY_NOBODY),
    (AGAIN, "hold", hold_without_raising_the_revision, "no way leads to a settled cart"),
    (AGAIN, "release", release_without_raising_the_revision, HELD_BY_NOBODY),
    (REFUSED, "seal", refusal_not_sealed, STILL_UNDER_WAY),
    (REFUSED, "seal", refusal_sealed_under_the_same_revision, HELD_BY_NOBODY),
    (AGAIN, "record", silence_taken_for_refusal, STILL_UNDER_WAY),
    (AGAIN, "record", aborted_taken_for_done, HELD_BY_NOBODY),
]


@pytest.mark.parametrize(
    ("bounds", "name", "mutant", "promise"), MUTANTS, ids=[mutant.__name__ for *_, mutant, _ in MUTANTS]
)
def test_without_this_rule_a_promise_is_broken(
    bounds: Bounds, name: str, mutant: Callable[..., Any], promise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, name, mutant)
    with pytest.raises(Harm) as harm:
        Explorer(bounds, Rules()).explore()
    assert harm.value.promise == promise


@pytest.mark.parametrize(
    ("bounds", "rules", "promise"),
    [
        (AGAIN, Rules(same_id_again=True), OVERSTATED),
        (AGAIN, Rules(waits=False), "two reservations at once"),
        (AGAIN, Rules(shown=grant_shown_as_it_is), OVERSTATED),
        (
            REFUSED,
            Rules(shown=rejected_shown_before_the_seal_is_observed),
            STILL_UNDER_WAY,
        ),
    ],
    ids=["an id used again", "a new id that does not wait", "the grant shown as it is", "REJECTED shown too early"],
)
def test_without_this_practice_a_promise_is_broken(bounds: Bounds, rules: Rules, promise: str) -> None:
    with pytest.raises(Harm) as harm:
        Explorer(bounds, rules).explore()
    assert harm.value.promise == promise
