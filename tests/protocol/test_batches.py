"""A batch call is the same as its entries sent one by one, if the API decides and answers each entry on its own."""

from collections.abc import Callable, Iterator, Sequence

import pytest

from cart_grpc.protocol.reservation import Answer, Decision, Intent, Observed
from cart_grpc.simulator.rules import StoredReservation
from tests.protocol import api_rules
from tests.protocol.configurations import AGAIN, AGAIN_EXPIRING
from tests.protocol.explorer import Explorer, Step
from tests.protocol.model import CartModel
from tests.protocol.states import Bounds, ModelState

Records = Sequence[StoredReservation | None]
Entries = Sequence[tuple[int, Intent]]
Applied = tuple[Records, Sequence[tuple[int, Answer]]]
real = api_rules.apply_batch


class Batches:
    """All states that single messages lead to, and all batches from each of them."""

    def __init__(self, bounds: Bounds) -> None:
        self._model = CartModel(bounds)
        explorer = Explorer(self._model)
        explorer.explore()
        self._reached = explorer.states

    def __iter__(self) -> Iterator[Step[ModelState]]:
        for state in self._reached:
            yield from self._model.batches(state)

    def is_reached(self, step: Step[ModelState]) -> bool:
        """Whether single messages lead to the same state."""
        return step.after in self._reached


@pytest.fixture(scope="module")
def batches() -> Batches:
    return Batches(AGAIN_EXPIRING)


def test_a_batch_leads_only_to_states_that_single_messages_lead_to(batches: Batches) -> None:
    steps = list(batches)
    assert len(steps) > 10_000
    assert all(map(batches.is_reached, steps))


@pytest.mark.night
def test_a_batch_leads_only_to_states_that_single_messages_lead_to_within_larger_bounds() -> None:
    batches = Batches(AGAIN)
    assert all(map(batches.is_reached, batches))


def answer_by_position_instead_of_id(records: Records, entries: Entries, stock: int) -> Applied:
    after, answers = real(records, entries, stock)
    swapped = [answer for _, answer in reversed(answers)]
    return after, [(index, answer) for (index, _), answer in zip(answers, swapped, strict=True)]


def reject_all_entries_if_one_is_rejected(records: Records, entries: Entries, stock: int) -> Applied:
    after, answers = real(records, entries, stock)
    if any(isinstance(answer, Decision) and answer.state is Observed.REJECTED for _, answer in answers):
        return records, answers
    return after, answers


@pytest.mark.parametrize(
    "mutant",
    [answer_by_position_instead_of_id, reject_all_entries_if_one_is_rejected],
    ids=lambda mutant: mutant.__name__,
)
def test_an_api_whose_entries_depend_on_each_other_leads_to_other_states(
    mutant: Callable[..., Applied], batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_rules, "apply_batch", mutant)
    assert not all(map(batches.is_reached, batches))
