"""Claims, also those of the transaction that makes a reservation due, and what breaks without each of their rules."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cart_grpc.protocol import transitions
from cart_grpc.protocol.reservation import Reservation
from tests.protocol import claiming, claims
from tests.protocol.claims import ClaimBounds, ClaimModel
from tests.protocol.explorer import CANNOT_SETTLE, Explorer, Violation
from tests.protocol.states import TICK

SHALLOW = ClaimBounds(changed=2, renewed=2, refused=1)
DEEP = ClaimBounds(changed=3, renewed=3, refused=2)


# `least` is a lower bound of the number of states: fewer mean that the exploration lost transitions.
@pytest.mark.parametrize(
    ("bounds", "least"), [(SHALLOW, 7_000), pytest.param(DEEP, 30_000, marks=pytest.mark.night)], ids=["CI", "night"]
)
def test_no_claim_is_made_twice_or_lost(bounds: ClaimBounds, least: int) -> None:
    assert Explorer(ClaimModel(bounds)).explore() >= least


_born, _claim = claiming.claim_at_birth, transitions.claim


def claim_at_birth_in_the_same_epoch(row: Reservation, *, paused: bool) -> Reservation:
    return _born(row, paused=paused)._replace(lease_epoch=row.lease_epoch)


def claim_at_birth_without_a_lease(row: Reservation, *, paused: bool) -> Reservation:
    born = _born(row, paused=paused)
    return born if born is row else born._replace(lease_expire_time=None, due_time=0)


def claim_at_birth_without_an_end(row: Reservation, *, paused: bool) -> Reservation:
    born = _born(row, paused=paused)
    return born if born is row else born._replace(due_time=None)


def claim_at_birth_during_a_pause(row: Reservation, *, paused: bool) -> Reservation:
    return _born(row, paused=False)


def claim_at_birth_what_is_not_due(row: Reservation, *, paused: bool) -> Reservation:
    return row if paused else _claim(row._replace(due_time=0), 0, TICK)


def hand_back_without_comparing_epochs(row: Reservation, claimed: Reservation) -> Reservation:
    return row if row.lease_expire_time is None else row._replace(lease_expire_time=None, due_time=0)


def record_without_comparing_epochs(row: Reservation, claimed: Reservation, outcome: Any) -> Reservation:
    return transitions.record_outcome(row, row.lease_epoch, claimed.revision, outcome, 0, TICK)


class MissingRule(NamedTuple):
    """A rule, the mutant that drops it, the invariant that breaks, and the length of a shortest trace to that."""

    rule: str
    mutant: Callable[..., Any]
    invariant: str
    steps: int


MISSING_RULES = {
    "claim_at_birth": [
        MissingRule("a claim at birth raises the epoch", claim_at_birth_in_the_same_epoch, claims.TWO_OWNERS, 3),
        MissingRule("a claim at birth has a lease", claim_at_birth_without_a_lease, claims.CLAIMED_TWICE, 2),
        MissingRule("the lease of a claim at birth ends", claim_at_birth_without_an_end, CANNOT_SETTLE, 2),
        MissingRule("nothing is born claimed in a pause", claim_at_birth_during_a_pause, claims.CLAIMED_IN_PAUSE, 3),
        MissingRule("only a due reservation is born claimed", claim_at_birth_what_is_not_due, claims.CLAIMED_EARLY, 2),
    ],
    "hand_back": [
        MissingRule(
            "a process hands back only its own claims", hand_back_without_comparing_epochs, claims.CLAIMED_TWICE, 5
        ),
    ],
    "record": [
        MissingRule("a process ends only its own claims", record_without_comparing_epochs, claims.LOST_CLAIM, 4),
    ],
}
CASES = [(name, missing) for name, group in MISSING_RULES.items() for missing in group]


@pytest.mark.parametrize(("name", "missing"), CASES, ids=[missing.rule for _, missing in CASES])
def test_without_this_rule_an_invariant_of_claims_breaks(
    name: str, missing: MissingRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, name, missing.mutant)
    with pytest.raises(Violation) as violation:
        Explorer(ClaimModel(ClaimBounds(changed=2))).explore()
    assert (violation.value.invariant, len(violation.value.trace)) == (missing.invariant, missing.steps)


def test_reliability_md_lists_every_rule_of_claims() -> None:
    text = (Path(__file__).parents[2] / "RELIABILITY.md").read_text(encoding="utf-8")
    for _, missing in CASES:
        assert f"| {missing.rule} | {missing.invariant} | {missing.steps} |" in text
