"""The checks accept every generated run, and report every corruption of one."""

import random
from collections import Counter
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cart_grpc.carts.model import CartState
from cart_grpc.protocol.reservation import Observed
from tests.invariants.corruptions import of_callers, of_effects, of_order, of_rows, of_tables
from tests.invariants.corruptions.registry import CORRUPTIONS, NotApplicable
from tests.invariants.generated_runs import RunGenerator
from tests.invariants.history import ClaimAction
from tests.invariants.run import Run, check_run

SEEDS = range(40)
# Importing them fills CORRUPTIONS.
FAMILIES = (of_callers, of_effects, of_order, of_rows, of_tables)


@cache
def a_run(seed: int) -> Run:
    return RunGenerator(seed).run(120)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_generated_run_has_no_violations(seed: int) -> None:
    assert check_run(a_run(seed)) == []


def test_the_generated_runs_cover_all_states_refusals_and_claim_events() -> None:
    runs = [a_run(seed) for seed in SEEDS]
    reasons = Counter(call.reason for run in runs for call in run.calls)
    assert reasons.keys() >= {"REQUEST_ID_REUSED", "ETAG_MISMATCH", "ITEM_NOT_FOUND", "CART_CLOSED"}
    assert {event.action for run in runs for event in run.claims} == set(ClaimAction)
    assert {effect.state for run in runs for effect in run.effects} == set(Observed) - {
        Observed.NOTHING,
        Observed.COMMITTED,
    }
    states = Counter(cart.state for run in runs for cart in run.dump.carts)
    assert states.keys() == {CartState.ACTIVE, CartState.DELETED, CartState.EXPIRED}
    assert any(row.seal_reason for run in runs for row in run.dump.reservations)


def corrupted(name: str, seed: int, rng: random.Random) -> Run | None:
    """The corrupted run, or None if the corruption does not apply to it."""
    try:
        return CORRUPTIONS[name][0](a_run(seed), rng)
    except NotApplicable:
        return None


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_each_corruption_is_reported_with_its_message(name: str) -> None:
    corrupt = [run for seed in SEEDS if (run := corrupted(name, seed, random.Random(seed)))]
    assert corrupt
    for run in corrupt[:5]:
        violations = check_run(run)
        assert any(CORRUPTIONS[name][1].search(violation) for violation in violations), violations


@settings(max_examples=300)
@given(st.sampled_from(sorted(CORRUPTIONS)), st.sampled_from(SEEDS), st.randoms(use_true_random=False))
def test_every_corruption_of_every_run_is_reported(name: str, seed: int, rng: random.Random) -> None:
    corrupt = corrupted(name, seed, rng)
    assert corrupt is None or check_run(corrupt)
