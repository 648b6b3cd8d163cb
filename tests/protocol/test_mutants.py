"""Each rule is needed: without it a promise is broken. In how few steps is the quickest way to see what it is for."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from cart_grpc.protocol import transitions
from tests.protocol import api, mutants, practice
from tests.protocol import configurations as among
from tests.protocol import promises as broken
from tests.protocol.explorer import NO_WAY, Explorer, Harm
from tests.protocol.model import CartModel
from tests.protocol.worlds import Bounds


class Needed(NamedTuple):
    """A rule in words, what does without it, the promise that this breaks, and in how few steps."""

    rule: str
    without: Callable[..., Any]
    promise: str
    steps: int


# Where each rule stands, and the worlds in which its absence is found. In brackets: the rule's number in
# `cartgrpc.reservation.v1`.
NEEDED: dict[tuple[ModuleType, str, Bounds], list[Needed]] = {
    (transitions, "merge_decision", among.AGAIN): [
        Needed("an answer is recorded only where it is newer", mutants.record_without_compare, broken.UNDONE, 6),
        Needed("the revision recorded is the answered one", mutants.record_the_current_revision, broken.LEAKED, 4),
        Needed("REJECTED leaves what was granted", mutants.grant_nothing_when_rejected, broken.HIDDEN, 5),
    ],
    (transitions, "hold", among.CHANGED): [
        Needed("a changed quantity raises the revision", mutants.hold_under_the_same_revision, NO_WAY, 4),
    ],
    (transitions, "release", among.AGAIN): [
        Needed("a removal raises the revision", mutants.release_under_the_same_revision, broken.LEAKED, 4),
        Needed(
            "a removal raises even an unanswered revision",
            mutants.release_under_the_revision_that_is_unanswered,
            broken.LEAKED,
            4,
        ),
        Needed("no answer is not 'not sent'", mutants.conclude_that_nothing_was_sent, broken.LEAKED, 3),
    ],
    (transitions, "record_outcome", among.AGAIN): [
        Needed("a time-out is not a refusal", mutants.take_silence_for_refusal, broken.NOT_OVER, 2),
        Needed("ABORTED is not done", mutants.take_aborted_for_done, broken.LEAKED, 5),
    ],
    (transitions, "seal", among.REFUSED): [
        Needed("an error is sealed", mutants.reject_without_seal, broken.NOT_OVER, 3),
        Needed("a seal raises the revision", mutants.seal_under_the_same_revision, broken.LEAKED, 5),
    ],
    (transitions, "release", among.SOLD): [
        Needed("what is being sold is not released", mutants.release_what_is_being_sold, broken.SOLD_ANYWAY, 4),
    ],
    (transitions, "hold", among.SOLD): [
        Needed("what is being sold is not held instead", mutants.hold_what_is_being_sold, broken.SOLD_ANYWAY, 5),
    ],
    (transitions, "record_outcome", among.SOLD): [
        Needed("a time-out thaws nothing", mutants.thaw_after_a_time_out, broken.SOLD_ANYWAY, 5),
        Needed("a COMMIT that got an error is not sealed", mutants.seal_a_refused_commit, broken.SOLD_ANYWAY, 5),
    ],
    (transitions, "stop_waiting", among.AGAIN_EXPIRING): [
        Needed("a new id is woken by the old one's release", mutants.never_wake, NO_WAY, 3),
    ],
    (practice, "put_in_again", among.AGAIN): [
        Needed("an id is never used for another", mutants.use_the_id_again, broken.OVERSTATED, 6),
        Needed("a new id waits for the old one's release", mutants.do_not_wait, broken.TWICE, 5),
    ],
    (practice, "shown", among.AGAIN): [
        Needed("shown is the least of grant and intents since", mutants.show_the_grant_as_it_is, broken.OVERSTATED, 5),
    ],
    (practice, "shown", among.EXPIRING): [
        Needed("shown is what has not run out", mutants.show_a_hold_that_ran_out, broken.OVERSTATED, 5),
    ],
    (practice, "shown", among.REFUSED): [
        Needed(
            "REJECTED is shown once the seal is observed", mutants.show_rejected_before_the_seal, broken.NOT_OVER, 3
        ),
    ],
    (practice, "claims", among.EXPIRING): [
        Needed("a renewal leaves the intent alone", mutants.renew_what_was_read_before, broken.OVERSTATED, 6),
        Needed("a renewal raises the revision", mutants.renew_under_the_same_revision, NO_WAY, 3),
        Needed("a renewal is no change of intent", mutants.renew_as_a_change_of_intent, broken.FLICKER, 4),
    ],
    (practice, "extend", among.CHECKOUT): [
        Needed("a checkout makes the holds outlast it", mutants.do_not_outlast, broken.TORN, 16),
    ],
    (practice, "can_complete", among.CHECKOUT): [
        Needed("a checkout waits until that is observed", mutants.is_reserved, broken.TORN, 12),
    ],
    (practice, "restore", among.RESTORED): [
        Needed("a restored row is raised", mutants.restore_as_it_was, broken.OVERSTATED, 7),
        Needed("a restored row is raised above all ever issued", mutants.restore_one_higher, broken.OVERSTATED, 8),
        Needed(
            "a restored row shows nothing until it is answered", mutants.restore_what_was_shown, broken.OVERSTATED, 7
        ),
    ],
    (api, "apply", among.AGAIN): [
        Needed("a lower revision is refused (1)", mutants.apply_what_is_lower, broken.OVERSTATED, 5),
        Needed(
            "RELEASE of an unknown id is remembered (2)", mutants.forget_a_release_of_the_unknown, broken.NOT_OVER, 5
        ),
        Needed("what is over is not forgotten too soon (7)", mutants.forget_what_is_over, broken.NOT_OVER, 5),
    ],
    (api, "apply", among.EXPIRING): [
        Needed("the same revision gets the same answer (1)", mutants.decide_the_same_anew, broken.HIDDEN, 5),
    ],
    (api, "decide", among.AGAIN): [
        Needed("a refused change leaves what was held (3)", mutants.lose_the_hold_when_refused, broken.OVERSTATED, 5),
    ],
    (api, "decide", among.RESTORED_SOLD): [
        Needed("COMMITTED absorbs (4)", mutants.release_what_is_sold, broken.UNDONE, 6),
    ],
    (api, "decide", among.RESTORED): [
        Needed("RELEASED absorbs (4)", mutants.hold_what_is_released, broken.UNDONE, 6),
    ],
    (api, "decide", among.SOLD_LATE): [
        Needed(
            "COMMIT of what ran out takes what is there (4)", mutants.reject_a_commit_that_ran_out, broken.OWN_WAY, 6
        ),
    ],
    (api, "may_run_out", among.EXPIRING): [
        Needed("a hold lasts as long as was answered (5)", mutants.run_out_early, broken.OVERSTATED, 4),
    ],
    (api, "run_out", among.EXPIRING): [
        Needed("what ran out is remembered (5)", mutants.forget_what_ran_out, broken.NOT_OVER, 7),
    ],
}


def _cases() -> Iterator[object]:
    for (where, name, bounds), needed in NEEDED.items():
        for case in needed:
            yield pytest.param(where, name, bounds, case, id=case.rule)


@pytest.mark.parametrize(("where", "name", "bounds", "needed"), list(_cases()))
def test_without_this_rule_a_promise_is_broken(
    where: ModuleType, name: str, bounds: Bounds, needed: Needed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, needed.without)
    with pytest.raises(Harm) as harm:
        Explorer(CartModel(bounds)).explore()
    assert (harm.value.promise, len(harm.value.trace)) == (needed.promise, needed.steps)


def test_reliability_md_tells_what_each_rule_is_for() -> None:
    told = (Path(__file__).parents[2] / "RELIABILITY.md").read_text(encoding="utf-8")
    for needed in (each for group in NEEDED.values() for each in group):
        assert f"| {needed.rule} | {needed.promise} | {needed.steps} |" in told
