"""Properties of a reservation under any sequence of intents, claims and answers."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from cart_grpc.carts.progress import progress
from cart_grpc.protocol.reservation import (
    Answer,
    Decision,
    Disposition,
    NoAnswer,
    Observed,
    PermanentFailure,
    Reservation,
    StaleRevision,
)
from cart_grpc.protocol.transitions import hold, merge_decision, record_outcome, release
from tests.carts.examples import LATER, NOW, SECOND, a_hold, line_of

QUANTITIES = st.integers(1, 6)
STATES = st.sampled_from([state for state in Observed if state is not Observed.NOTHING])


@st.composite
def decisions(draw: st.DrawFn) -> Decision:
    """Any decision, even one that a correct API would never make."""
    granted = draw(st.integers(0, 6))
    return Decision(
        "r-1", draw(st.integers(0, 9)), draw(STATES), granted, LATER if granted else None, draw(st.sampled_from("XY"))
    )


def about(row: Reservation, behind: int, answer: Answer | NoAnswer) -> Answer | NoAnswer:
    """`answer`, moved to the revision that is `behind` revisions older than the latest; negative means newer.

    The transports let only RELEASED and COMMITTED through as a decision on a RELEASE.
    """
    revision = max(0, row.revision - behind)
    match answer:
        case Decision() if revision == row.revision and row.disposition is Disposition.RELEASE:
            return replace(answer, revision=revision, state=Observed.RELEASED, granted_quantity=0, expire_time=None)
        case Decision():
            return replace(answer, revision=revision)
        case StaleRevision(current):
            return StaleRevision(replace(current, revision=revision))
    return answer


ANSWERS: st.SearchStrategy[Answer | NoAnswer] = st.one_of(
    decisions(),
    decisions().map(StaleRevision),
    st.just(PermanentFailure("NOT_FOUND", "")),
    st.just(NoAnswer("UNAVAILABLE", "")),
)
# A change of quantity, a removal, a claim, or the end of a call. The three numbers of the last say how far the sent
# revision, the claim's epoch and the answered revision are behind the latest.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("hold"), QUANTITIES),
        st.just(("release",)),
        st.just(("claim",)),
        st.tuples(st.just("record"), st.integers(0, 3), st.integers(0, 1), st.integers(-2, 3), ANSWERS),
    ),
    max_size=20,
)


def take(row: Reservation, step: tuple[object, ...]) -> Reservation:
    """The row after one step. A forbidden step leaves it unchanged."""
    match step:
        case ("hold", int(quantity)) if not row.is_closed and row.disposition is Disposition.HOLD:
            return hold(row, quantity, NOW)
        case ("release",):
            return release(row, NOW)
        case ("claim",) if row.due_time is not None:
            lease = NOW + SECOND
            return row._replace(lease_epoch=row.lease_epoch + 1, lease_expire_time=lease, due_time=lease)
        case ("record", int(sent), int(epoch), int(behind), answer) if sent < row.revision:
            assert isinstance(answer, Decision | PermanentFailure | StaleRevision | NoAnswer)
            outcome = about(row, behind, answer)
            return record_outcome(row, row.lease_epoch - epoch, row.revision - sent, outcome, NOW, LATER)
    return row


@settings(max_examples=300)
@given(STEPS)
def test_revisions_and_epochs_only_rise_and_every_unsettled_row_has_a_due_time(steps: list[tuple[object, ...]]) -> None:
    row = a_hold()
    for step in steps:
        before, row = row, take(row, step)
        assert row.revision >= before.revision
        assert row.observed_revision >= before.observed_revision
        assert row.lease_epoch >= before.lease_epoch
        assert row.observed_revision <= row.revision
        assert row.settled or row.due_time is not None
        if row.observed_revision == before.observed_revision:
            assert (row.state, row.granted_quantity, row.reason) == (
                before.state,
                before.granted_quantity,
                before.reason,
            )


@settings(max_examples=300)
@given(STEPS, QUANTITIES)
def test_every_change_of_intent_raises_the_revision(steps: list[tuple[object, ...]], quantity: int) -> None:
    row = a_hold(quantity)
    for step in steps:
        before, row = row, take(row, step)
        if row.revision == before.revision:
            assert (row.quantity, row.disposition, row.sku) == (before.quantity, before.disposition, before.sku)


@settings(max_examples=300)
@given(STEPS, QUANTITIES)
def test_the_reserved_quantity_never_exceeds_the_last_grant_or_any_quantity_intended_since(
    steps: list[tuple[object, ...]], quantity: int
) -> None:
    row = a_hold(quantity)
    intended = {1: quantity}
    for step in steps:
        row = take(row, step)
        intended.setdefault(row.revision, 0 if row.disposition is Disposition.RELEASE else row.quantity)
        since = [wanted for revision, wanted in intended.items() if revision > row.observed_revision]
        for wanted in (1, row.quantity):
            shown = progress(line_of(row, wanted), NOW).reserved_quantity
            if row.state is not Observed.COMMITTED:
                assert shown <= min([row.granted_quantity, *since])


@settings(max_examples=200)
@given(st.lists(QUANTITIES, min_size=1, max_size=6), st.data())
def test_late_repeated_and_reordered_answers_change_no_observation(quantities: list[int], data: st.DataObject) -> None:
    row = a_hold(quantities[0])
    for quantity in quantities[1:]:
        row = hold(row, quantity, NOW)
    answers = [
        Decision("r-1", revision, Observed.HELD, quantity, LATER, "") for revision, quantity in enumerate(quantities, 1)
    ]
    arrivals = data.draw(st.lists(st.sampled_from(answers), min_size=1, max_size=15))
    highest = 0
    for answer in arrivals:
        before, row = row, merge_decision(row, answer)
        if answer.revision <= highest:
            assert row is before
        highest = max(highest, answer.revision)
        assert (row.observed_revision, row.granted_quantity) == (highest, quantities[highest - 1])


@settings(max_examples=200)
@given(STEPS, st.integers(1, 9), ANSWERS)
def test_the_claim_of_an_answer_makes_no_difference_to_observation_or_intent(
    steps: list[tuple[object, ...]], sent: int, answer: Answer | NoAnswer
) -> None:
    row = a_hold()
    for step in steps:
        row = take(row, step)
    ours, overtaken = (record_outcome(row, epoch, sent, answer, NOW, LATER) for epoch in (row.lease_epoch, -1))
    bookkeeping = {"due_time": None, "lease_expire_time": None, "last_error": "", "finish_time": None}
    assert ours._replace(**bookkeeping) == overtaken._replace(**bookkeeping)  # type: ignore[arg-type]
