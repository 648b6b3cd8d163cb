"""Each rule is missing: without it, a shortest trace of so many steps violates an invariant."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from cart_grpc.carts import checkout as checkouts
from cart_grpc.protocol import transitions
from tests.protocol import api_rules, invariants, mutants, service_rules
from tests.protocol import configurations as bounds_of
from tests.protocol.explorer import CANNOT_SETTLE, Explorer, Violation
from tests.protocol.model import CartModel
from tests.protocol.states import Bounds


class MissingRule(NamedTuple):
    """A rule, the mutant that drops it, the invariant that breaks, and the length of a shortest trace to that."""

    rule: str
    mutant: Callable[..., Any]
    invariant: str
    steps: int


# By the module and name of the function to replace, and the bounds of the exploration. A number in brackets is that of
# the rule in `cartgrpc.reservation.v1`.
MISSING_RULES: dict[tuple[ModuleType, str, Bounds], list[MissingRule]] = {
    (transitions, "merge_decision", bounds_of.AGAIN): [
        MissingRule(
            "a decision is merged only if it is newer",
            mutants.merge_without_comparing_revisions,
            invariants.FINAL_CHANGED,
            6,
        ),
        MissingRule(
            "observed_revision is the answered revision", mutants.observe_the_latest_revision, invariants.LEAKED, 4
        ),
        MissingRule(
            "REJECTED keeps the granted quantity", mutants.drop_the_grant_when_rejected, invariants.UNDERSTATED, 5
        ),
    ],
    (transitions, "hold", bounds_of.CHANGED): [
        MissingRule("a changed quantity raises the revision", mutants.hold_under_the_same_revision, CANNOT_SETTLE, 4),
    ],
    (transitions, "release", bounds_of.AGAIN): [
        MissingRule("a removal raises the revision", mutants.release_under_the_same_revision, invariants.LEAKED, 4),
        MissingRule(
            "a removal raises the revision even if the last one is unanswered",
            mutants.release_under_an_unanswered_revision,
            invariants.LEAKED,
            4,
        ),
        MissingRule("no answer does not mean 'not sent'", mutants.assume_that_nothing_was_sent, invariants.LEAKED, 3),
    ],
    (transitions, "record_outcome", bounds_of.AGAIN): [
        MissingRule(
            "a time-out is not a permanent failure",
            mutants.treat_no_answer_as_permanent_failure,
            invariants.LATE_EFFECT,
            2,
        ),
        MissingRule("ABORTED does not settle the row", mutants.treat_aborted_as_settled, invariants.LEAKED, 5),
    ],
    (transitions, "seal", bounds_of.REFUSED): [
        MissingRule("a permanent failure is sealed", mutants.reject_without_seal, invariants.LATE_EFFECT, 3),
        MissingRule("a seal raises the revision", mutants.seal_under_the_same_revision, invariants.LEAKED, 5),
    ],
    (transitions, "release", bounds_of.SOLD): [
        MissingRule(
            "a frozen reservation is not released", mutants.release_while_frozen, invariants.INTENT_AFTER_COMMIT, 6
        ),
    ],
    (transitions, "hold", bounds_of.SOLD): [
        MissingRule(
            "a frozen reservation is not changed back to HOLD",
            mutants.hold_while_frozen,
            invariants.INTENT_AFTER_COMMIT,
            6,
        ),
    ],
    (transitions, "record_outcome", bounds_of.SOLD): [
        MissingRule(
            "a time-out does not end the freeze", mutants.unfreeze_after_a_time_out, invariants.INTENT_AFTER_COMMIT, 6
        ),
        MissingRule("a failed COMMIT is not sealed", mutants.seal_a_failed_commit, invariants.INTENT_AFTER_COMMIT, 7),
    ],
    (transitions, "stop_waiting", bounds_of.AGAIN_EXPIRING): [
        MissingRule("the old id's release makes a waiting new id due", mutants.keep_waiting, CANNOT_SETTLE, 3),
    ],
    (service_rules, "add_again", bounds_of.AGAIN): [
        MissingRule("a reservation id is never reused", mutants.reuse_the_id, invariants.OVERSTATED, 6),
        MissingRule(
            "a new id waits for the old id's release", mutants.do_not_wait_for_the_release, invariants.TWO_LIVE, 5
        ),
    ],
    (service_rules, "shown", bounds_of.AGAIN): [
        MissingRule(
            "callers see the smallest of the grant and all later intents",
            mutants.ignore_the_reserved_cap,
            invariants.OVERSTATED,
            5,
        ),
    ],
    (service_rules, "shown", bounds_of.EXPIRING): [
        MissingRule(
            "callers do not see an expired hold as reserved", mutants.show_an_expired_hold, invariants.OVERSTATED, 5
        ),
    ],
    (service_rules, "shown", bounds_of.REFUSED): [
        MissingRule(
            "callers see REJECTED only once the seal is observed",
            mutants.show_rejected_before_the_seal,
            invariants.LATE_EFFECT,
            3,
        ),
    ],
    (service_rules, "claims", bounds_of.EXPIRING): [
        MissingRule(
            "a renewal does not write back an old intent", mutants.renew_with_an_old_intent, invariants.OVERSTATED, 6
        ),
        MissingRule("a renewal raises the revision", mutants.renew_under_the_same_revision, CANNOT_SETTLE, 3),
        MissingRule(
            "a renewal does not raise intent_revision", mutants.renew_as_a_change_of_intent, invariants.CLAIM_VISIBLE, 4
        ),
    ],
    (checkouts, "_all_outlast", bounds_of.CHECKOUT): [
        MissingRule(
            "a checkout is ready only once every hold outlasts its window",
            mutants.ready_before_the_extension_is_observed,
            invariants.READY_TOO_SOON,
            4,
        ),
    ],
    (checkouts, "_check_can_complete", bounds_of.CHECKOUT): [
        MissingRule(
            "a checkout is completed only when it is ready",
            mutants.complete_before_it_is_ready,
            invariants.FORBIDDEN,
            6,
        ),
        MissingRule(
            "a checkout is completed only within its window",
            mutants.complete_after_the_window,
            invariants.SOLD_LATE,
            9,
        ),
        MissingRule(
            "a checkout is completed only while every hold belongs to it",
            mutants.complete_with_a_released_hold,
            invariants.FORBIDDEN,
            9,
        ),
    ],
    (checkouts, "evaluate", bounds_of.FAILED): [
        MissingRule("nothing thaws a sale", mutants.thaw_a_sale_after_the_window, invariants.SOLD_FROM_CART, 8),
    ],
    (checkouts, "_evaluate_completing", bounds_of.FAILED): [
        MissingRule(
            "a checkout fails only once every commit is answered",
            mutants.fail_without_every_answer,
            invariants.FORBIDDEN,
            7,
        ),
        MissingRule(
            "a checkout is COMPLETED only once all its items are sold",
            mutants.count_a_refused_item_as_sold,
            invariants.SOLD_OTHERWISE,
            11,
        ),
    ],
    (checkouts, "_ask_again", bounds_of.ONE_OF_TWO): [
        MissingRule(
            "completing a checkout again does not ask for sold items again",
            mutants.ask_again_for_what_is_sold,
            invariants.SOLD_TWICE,
            16,
        ),
    ],
    (checkouts, "_give_back", bounds_of.CHECKOUT): [
        MissingRule(
            "a thaw gives holds their normal ttl back",
            mutants.thaw_with_the_ttl_of_the_checkout,
            invariants.STILL_IN_CHECKOUT,
            5,
        ),
        MissingRule(
            "a thaw raises the revision of an unanswered hold",
            mutants.thaw_under_an_unanswered_revision,
            invariants.TWO_TTLS,
            7,
        ),
        MissingRule(
            "a thaw takes every hold out of the checkout",
            mutants.thaw_within_the_checkout,
            invariants.STILL_IN_CHECKOUT,
            5,
        ),
    ],
    (service_rules, "accepts_changes", bounds_of.SOLD): [
        MissingRule(
            "a cart in checkout accepts no changes", mutants.change_a_frozen_cart, invariants.SOLD_OTHERWISE, 9
        ),
    ],
    (service_rules, "restore", bounds_of.RESTORED): [
        MissingRule("a restored row's revision is raised", mutants.restore_unchanged, invariants.OVERSTATED, 7),
        MissingRule(
            "a restored row's revision is raised above any ever sent",
            mutants.restore_one_revision_higher,
            invariants.OVERSTATED,
            8,
        ),
        MissingRule(
            "a restored row shows nothing as reserved until it is answered",
            mutants.restore_the_reserved_cap,
            invariants.OVERSTATED,
            7,
        ),
    ],
    (api_rules, "apply", bounds_of.AGAIN): [
        MissingRule("a lower revision is refused (1)", mutants.apply_a_lower_revision, invariants.OVERSTATED, 5),
        MissingRule(
            "RELEASE of an unknown id is remembered (2)",
            mutants.forget_the_release_of_an_unknown_id,
            invariants.LATE_EFFECT,
            5,
        ),
        MissingRule(
            "a finished reservation is not forgotten too soon (7)",
            mutants.forget_a_released_id,
            invariants.LATE_EFFECT,
            5,
        ),
    ],
    (api_rules, "apply", bounds_of.EXPIRING): [
        MissingRule(
            "the same revision gets the same answer (1)",
            mutants.decide_the_same_revision_again,
            invariants.UNDERSTATED,
            5,
        ),
    ],
    (api_rules, "decide", bounds_of.AGAIN): [
        MissingRule(
            "a rejected change keeps the old hold (3)", mutants.lose_the_hold_when_rejected, invariants.OVERSTATED, 5
        ),
    ],
    (api_rules, "decide", bounds_of.RESTORED_SOLD): [
        MissingRule("COMMITTED is final (4)", mutants.release_a_committed_id, invariants.FINAL_CHANGED, 9),
    ],
    (api_rules, "decide", bounds_of.RESTORED): [
        MissingRule("RELEASED is final (4)", mutants.hold_a_released_id, invariants.FINAL_CHANGED, 6),
    ],
    (api_rules, "decide", bounds_of.SOLD_LATE): [
        MissingRule(
            "COMMIT of an expired hold takes free stock (4)",
            mutants.reject_the_commit_of_an_expired_hold,
            invariants.BLOCKED_BY_OWN_HOLD,
            8,
        ),
    ],
    (api_rules, "may_expire", bounds_of.EXPIRING): [
        MissingRule(
            "a hold does not expire before its expire_time (5)", mutants.expire_early, invariants.OVERSTATED, 4
        ),
    ],
    (api_rules, "expire", bounds_of.EXPIRING): [
        MissingRule("an expired hold is remembered (5)", mutants.forget_an_expired_hold, invariants.LATE_EFFECT, 7),
    ],
}


def _cases() -> Iterator[object]:
    for (module, name, bounds), missing in MISSING_RULES.items():
        for case in missing:
            yield pytest.param(module, name, bounds, case, id=case.rule)


@pytest.mark.parametrize(("module", "name", "bounds", "missing"), list(_cases()))
def test_without_this_rule_an_invariant_breaks(
    module: ModuleType, name: str, bounds: Bounds, missing: MissingRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, missing.mutant)
    with pytest.raises(Violation) as violation:
        Explorer(CartModel(bounds)).explore()
    assert (violation.value.invariant, len(violation.value.trace)) == (missing.invariant, missing.steps)


def test_reliability_md_lists_every_rule() -> None:
    text = (Path(__file__).parents[2] / "RELIABILITY.md").read_text(encoding="utf-8")
    for missing in (each for group in MISSING_RULES.values() for each in group):
        assert f"| {missing.rule} | {missing.invariant} | {missing.steps} |" in text
