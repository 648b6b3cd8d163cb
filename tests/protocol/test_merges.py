"""Merges: every state within the bounds satisfies all invariants, and each rule of a merge is necessary."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from cart_grpc.carts import lines, merge
from cart_grpc.carts.model import Cart
from cart_grpc.commands import apply_transition
from cart_grpc.protocol import merging, transitions
from cart_grpc.protocol.reservation import Observed, Reservation
from tests.protocol import invariants, merge_checks
from tests.protocol.explorer import CANNOT_SETTLE, Explorer, Violation
from tests.protocol.merge_states import MergeBounds
from tests.protocol.merges import MergeModel

BOTH = ((1, 1),)
# The guest's item moves, or is joined with the user's. Other customers take free stock.
MERGED = MergeBounds(rivals=True)
# The item's limit leaves no room for all units, so the merged item may need no more than is held.
CLAMPED = MergeBounds(quantities=((2, 1), (1, 2)), most=2, rivals=True)
# There is enough for both at any time.
ENOUGH = MergeBounds(quantities=BOTH, stock=4)
# Items are removed and added again, before and after. A cart may still release an older reservation.
REMOVED = MergeBounds(quantities=((1, 1), (0, 1)), removed=True)
# The guest adds the item again, and the cart is merged again, also while the first merge is under way.
TWICE = MergeBounds(quantities=BOTH, rows=3)
# The quantity changes.
CHANGED = MergeBounds(quantities=BOTH, changed=3, stock=3)
# Permanent failures, also of seals.
REFUSED = MergeBounds(quantities=BOTH, refused=2)
# Holds are renewed, also while they wait, and lapse.
LAPSING = MergeBounds(quantities=BOTH, ticks=2)
# Operators release reservations.
OPERATORS = MergeBounds(quantities=((1, 1), (0, 1)), operators=True)

SHALLOW = {
    "merged": (MERGED, 1_500),
    "clamped": (CLAMPED, 900),
    "removed": (REMOVED, 2_900),
    "merged twice": (TWICE, 15_000),
    "changed": (MergeBounds(quantities=BOTH, changed=2, stock=3), 4_100),
    "refused": (REFUSED, 5_500),
    "lapsing": (MergeBounds(quantities=BOTH, ticks=1), 2_600),
    "operators": (OPERATORS, 6_500),
}
DEEP = {
    "changed twice": (CHANGED, 32_000),
    "lapsing twice": (LAPSING, 17_000),
    "removed, merged twice": (MergeBounds(quantities=((0, 1),), removed=True, rows=3), 200_000),
    "merged twice, lapsing": (MergeBounds(quantities=BOTH, rows=3, ticks=1), 100_000),
    "changed, removed": (MergeBounds(quantities=BOTH, changed=2, removed=True, rivals=True), 40_000),
    "refused, lapsing": (MergeBounds(quantities=BOTH, refused=1, ticks=2, rivals=True), 85_000),
}


# `least` is a lower bound of the number of states: fewer mean that the exploration lost transitions.
@pytest.mark.parametrize(("bounds", "least"), SHALLOW.values(), ids=SHALLOW)
def test_every_invariant_of_merges_holds_in_every_state(bounds: MergeBounds, least: int) -> None:
    assert Explorer(MergeModel(bounds)).explore() >= least


@pytest.mark.night
@pytest.mark.parametrize(("bounds", "least"), DEEP.values(), ids=DEEP)
def test_every_invariant_of_merges_holds_within_larger_bounds(bounds: MergeBounds, least: int) -> None:
    assert Explorer(MergeModel(bounds)).explore() >= least


_take_over, _finish, _has_taken_over = merging.take_over, merging.finish_take_over, merging.has_taken_over
_move = merging.move
Pair = tuple[Reservation, Reservation]


def move_to_a_new_id(row: Reservation, *rest: Any) -> Reservation:
    return _move(row, *rest)._replace(reservation_id="new")


def release_at_once(kept: Reservation, held: int, other: Reservation, _: int, *rest: int) -> Pair:
    return _take_over(kept, held, other, 0, *rest)


def keep_the_smaller_hold(kept: Reservation, held: int, other: Reservation, others: int, *rest: int) -> Pair:
    swap = not other.is_closed and others < held
    return _take_over(other, others, kept, held, *rest) if swap else _take_over(kept, held, other, others, *rest)


def ask_for_one_quantity(
    kept: Reservation, held: int, other: Reservation, others: int, quantity: int, now: int
) -> Pair:
    return _take_over(kept, held, other, others, kept.quantity, now)


def name_the_other_one(*args: Any) -> Pair:
    kept, other = _take_over(*args)
    return other, kept


def release_both(*args: Any) -> Pair:
    kept, other = _take_over(*args)
    return transitions.release(kept, 0), transitions.release(other, 0)


def trust_what_is_observed(*args: Any) -> Pair:
    kept, other = _take_over(*args)
    return kept._replace(supersedes=bool(other.superseded_by)), other


def do_nothing(*_: Any) -> None:
    pass


def release_before_the_answer(row: Reservation) -> bool:
    return row.supersedes


def release_after_a_grant(row: Reservation) -> bool:
    return _has_taken_over(row) and (row.is_closed or row.state is Observed.HELD)


def release_after_an_answer(row: Reservation) -> bool:
    return row.supersedes and row.settled


def never_ask_again(row: Reservation, now: int, *, waits: bool) -> Reservation:
    return row._replace(supersedes=False)


def release_what_is_refused(row: Reservation, now: int, *, waits: bool) -> Reservation:
    after = _finish(row, now, waits=waits)
    return after if row.state is Observed.HELD else transitions.release(after, now)


def ask_without_end(row: Reservation, now: int, *, waits: bool) -> Reservation:
    return _finish(row, now, waits=waits)._replace(supersedes=True)


def ask_before_the_release(row: Reservation, now: int, *, waits: bool) -> Reservation:
    return _finish(row, now, waits=False)


def unchanged(row: Reservation, *_: Any) -> Reservation:
    return row


def keep_the_revision(cart: Cart, now: int) -> Cart:
    return cart


def leave_the_release_behind(*_: Any) -> list[Reservation]:
    return []


def wake_under_the_same_revision(row: Reservation, now: int) -> Reservation:
    return row._replace(waiting=False, due_time=now)


def count_as_granted(row: Reservation) -> bool:
    return False


class MissingRule(NamedTuple):
    """A rule, the mutant that drops it, the invariant that breaks, and the length of a shortest trace to that."""

    rule: str
    mutant: Callable[..., Any]
    invariant: str
    steps: int


# By the object and name of the function to replace, and the bounds of the exploration.
MISSING_RULES: dict[tuple[ModuleType | type, str, MergeBounds], list[MissingRule]] = {
    (merge, "move", MERGED): [
        MissingRule("a merged item keeps its reservation", move_to_a_new_id, merge_checks.KEPT_TOO_LONG, 2),
    ],
    (merge, "take_over", MERGED): [
        MissingRule(
            "a hold that is superseded is not released at once", release_at_once, merge_checks.RELEASED_EARLY, 6
        ),
        MissingRule("the larger one of two certain holds is kept", keep_the_smaller_hold, merge_checks.SHRUNK, 4),
        MissingRule(
            "the kept reservation asks for both quantities", ask_for_one_quantity, merge_checks.ASKS_OTHERWISE, 2
        ),
        MissingRule("a merged item names the kept reservation", name_the_other_one, merge_checks.KEPT_TOO_LONG, 2),
        MissingRule("a merge releases one of two reservations only", release_both, merge_checks.SHRUNK, 4),
        MissingRule(
            "a hold that may be under way can cause a refusal, too",
            trust_what_is_observed,
            invariants.BLOCKED_BY_OWN_HOLD,
            5,
        ),
    ],
    (apply_transition, "release_superseded", ENOUGH): [
        MissingRule("an answer releases the superseded hold", do_nothing, merge_checks.KEPT_TOO_LONG, 8),
    ],
    (apply_transition, "has_taken_over", MERGED): [
        MissingRule(
            "only an answer releases the superseded hold", release_before_the_answer, merge_checks.RELEASED_EARLY, 6
        ),
        MissingRule(
            "a refusal releases the superseded hold, too", release_after_a_grant, invariants.BLOCKED_BY_OWN_HOLD, 5
        ),
    ],
    (apply_transition, "has_taken_over", REMOVED): [
        MissingRule(
            "a removal releases the superseded hold, too", release_after_an_answer, merge_checks.KEPT_TOO_LONG, 7
        ),
    ],
    (apply_transition, "finish_take_over", MERGED): [
        MissingRule("a refused growth is asked for once more", never_ask_again, invariants.BLOCKED_BY_OWN_HOLD, 5),
        MissingRule(
            "a refused growth is asked for only once more", ask_without_end, merge_checks.ASKED_WITHOUT_END, 15
        ),
        MissingRule("a refusal keeps the kept reservation's hold", release_what_is_refused, merge_checks.SHRUNK, 6),
        MissingRule("it is asked for after the release", ask_before_the_release, invariants.BLOCKED_BY_OWN_HOLD, 7),
    ],
    (merge, "ask_beside_release", REMOVED): [
        MissingRule("an item that moves beside a release asks once more", unchanged, invariants.BLOCKED_BY_OWN_HOLD, 6),
    ],
    (lines, "ask_beside_release", CHANGED): [
        MissingRule(
            "a quantity that changes beside a release is asked for once more",
            unchanged,
            invariants.BLOCKED_BY_OWN_HOLD,
            8,
        ),
    ],
    (merge._Merge, "_find_companions", REMOVED): [
        MissingRule("a waiting reservation moves with the release", leave_the_release_behind, CANNOT_SETTLE, 4),
    ],
    (apply_transition, "stop_waiting", MERGED): [
        MissingRule("the release makes a refused growth due", unchanged, CANNOT_SETTLE, 4),
    ],
    (apply_transition, "stop_waiting", LAPSING): [
        MissingRule(
            "a waiting reservation is due under a new revision",
            wake_under_the_same_revision,
            invariants.BLOCKED_BY_OWN_HOLD,
            11,
        ),
    ],
    (transitions, "is_refused", LAPSING): [
        MissingRule(
            "a renewal that is refused does not end the wait", count_as_granted, invariants.BLOCKED_BY_OWN_HOLD, 9
        ),
    ],
    (apply_transition, "_raise_revision", MERGED): [
        MissingRule("an answer raises the revision of its cart", do_nothing, merge_checks.UNSEEN, 3),
    ],
    (merge, "touch", CLAMPED): [
        MissingRule("a merge raises the revisions of both carts", keep_the_revision, merge_checks.UNSEEN, 2),
    ],
}


def _cases() -> Iterator[object]:
    for (owner, name, bounds), missing in MISSING_RULES.items():
        for case in missing:
            yield pytest.param(owner, name, bounds, case, id=case.rule)


@pytest.mark.parametrize(("owner", "name", "bounds", "missing"), list(_cases()))
def test_without_this_rule_an_invariant_of_merges_breaks(
    owner: ModuleType | type, name: str, bounds: MergeBounds, missing: MissingRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, missing.mutant)
    with pytest.raises(Violation) as violation:
        Explorer(MergeModel(bounds)).explore()
    assert (violation.value.invariant, len(violation.value.trace)) == (missing.invariant, missing.steps)


def test_reliability_md_lists_every_rule_of_merges() -> None:
    text = (Path(__file__).parents[2] / "RELIABILITY.md").read_text(encoding="utf-8")
    for missing in (each for group in MISSING_RULES.values() for each in group):
        assert f"| {missing.rule} | {missing.invariant} | {missing.steps} |" in text
