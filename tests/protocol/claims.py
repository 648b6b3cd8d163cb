"""The model of claims: two processes with working leases share one reservation.

`model` has no leases, because no promise depends on them. This model has all the fields of a claim, and shows that the
claims save work: a process claims nothing that another one is calling for, and nothing while claims are paused. A
lost claim is followed by another one, once its lease has expired.

Any transaction that makes the reservation due may claim it for its process (it is born claimed), or leave it to a later
claim. Between the commit and the call, and during the call, the process may crash or stop. Calls end in any way. A
process has one claim at a time: while a call of an overtaken claim hangs, the other process has the next claim.

Epochs are renumbered in each state, because the rules only compare them: states that differ in their age are the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from cart_grpc.protocol import transitions
from cart_grpc.protocol.reservation import (
    Answer,
    Decision,
    Disposition,
    NoAnswer,
    Observed,
    PermanentFailure,
    Reservation,
)
from tests.carts.examples import a_hold
from tests.protocol import claiming
from tests.protocol.explorer import Step
from tests.protocol.states import LASTING, TICK, new_row

TWO_OWNERS = "two processes have the same claim"
CLAIMED_TWICE = "a process claims what another one is calling for"
CLAIMED_EARLY = "a process claims a reservation that is not due"
CLAIMED_IN_PAUSE = "a process claims while claims are paused"
LOST_CLAIM = "a process that was overtaken ends a claim"

PROCESSES = (0, 1)
# Claims of one process: one in force, and one that was overtaken while its call hangs.
ROOM = 1
NO_ANSWER = NoAnswer("DEADLINE_EXCEEDED", "")
REFUSAL = PermanentFailure("NOT_FOUND", "")


class Held(NamedTuple):
    """A claim that a process has. `claimed` is the row as it was claimed.

    `is_sent`: the process has it and makes the call; before, the claim is committed, but not handed over. `is_fresh`:
    no time has passed since the claim was made or extended, so the lease lasts.
    """

    process: int
    claimed: Reservation
    is_sent: bool
    is_fresh: bool


class ClaimState(NamedTuple):
    """A state of the model: the row, all claims that a process has, and whether claims are paused."""

    row: Reservation
    held: tuple[Held, ...] = ()
    paused: bool = False


@dataclass(frozen=True)
class ClaimBounds:
    """The bounds of an exploration: revisions up to which callers change the quantity, holds are renewed, and the API
    answers with a permanent failure.
    """

    changed: int = 2
    renewed: int = 0
    refused: int = 0


ClaimStep = Step[ClaimState]


class ClaimModel:
    """The states and transitions of one reservation's claims within `bounds`."""

    def __init__(self, bounds: ClaimBounds) -> None:
        self._bounds = bounds

    def describe(self, verb: str, subject: object) -> str:
        """A step in words. `subject` is the number of a process, or None."""
        return verb if subject is None else f"process {'AB'[int(str(subject))]} {verb}"

    def initial_states(self) -> Iterator[tuple[str, ClaimState]]:
        for verb, row in (("adds", new_row(0, 2, waiting=False)), ("adds a waiting", new_row(0, 2, waiting=True))):
            for step in self._written(0, f"{verb} item", False, ClaimState(a_hold()), ClaimState(row)):
                yield self.describe(step.verb, step.subject), normalized(step.after)

    def is_done(self, state: ClaimState) -> bool:
        return state.row.settled and not state.held

    def find_violation(self, state: ClaimState) -> str | None:
        owners: dict[int, int] = {}
        for held in state.held:
            if owners.setdefault(held.claimed.lease_epoch, held.process) != held.process:
                return TWO_OWNERS
        return None

    def steps(self, state: ClaimState) -> Iterator[ClaimStep]:
        for step in self._steps(state):
            yield step._replace(after=normalized(step.after))

    def _steps(self, state: ClaimState) -> Iterator[ClaimStep]:
        for process in PROCESSES:
            yield from self._change(process, state)
            yield from self._claim(process, state)
            yield from self._lose(process, state)
        for index, held in enumerate(state.held):
            others = state._replace(held=state.held[:index] + state.held[index + 1 :])
            if held.is_sent:
                yield from self._extend(held, others)
                yield from self._end_call(held, others)
            else:
                sent = held._replace(is_sent=True)
                yield Step("calls", True, others._replace(held=(*others.held, sent)), None, held.process)
        if state.row.waiting:
            after = state._replace(row=transitions.stop_waiting(state.row, 0))
            yield Step("the older reservation is released", True, after)
        yield Step("claims are resumed", True, state._replace(paused=False))
        yield Step("claims are paused", False, state._replace(paused=True))
        yield Step("time passes", True, _aged(state))

    def _change(self, process: int, state: ClaimState) -> Iterator[ClaimStep]:
        """A caller changes the quantity or removes the item, or an operator asks for another attempt."""
        changes: dict[str, Callable[[], Reservation]] = {
            "removes": partial(transitions.release, state.row, 0),
            "tries again": partial(transitions.retry_now, state.row, 0),
        }
        if state.row.revision < self._bounds.changed:
            changes["changes"] = partial(transitions.hold, state.row, 3 - state.row.quantity, 0)
        for verb, change in changes.items():
            try:
                after = state._replace(row=change())
            except ValueError:
                # The rule forbids this change in this state.
                continue
            yield from self._written(process, verb, False, state, after)

    def _written(
        self, process: int, verb: str, is_fair: bool, before: ClaimState, after: ClaimState
    ) -> Iterator[ClaimStep]:
        """A transaction of `process` leads to `after`. If that made the row due, it may claim the row."""
        if after.row == before.row and after.held == before.held:
            return
        yield Step(verb, is_fair, after, None, process)
        if after.row != before.row:
            born = self._claimed(process, after, partial(claiming.claim_at_birth, paused=after.paused))
            if born:
                yield born._replace(verb=f"{verb}, and claims", is_fair=is_fair)

    def _claim(self, process: int, state: ClaimState) -> Iterator[ClaimStep]:
        row = state.row
        may_renew = not row.settled or row.revision < self._bounds.renewed
        if row.due_time == 0 and may_renew and not state.paused:
            claimed = self._claimed(process, state, claiming.claim)
            if claimed:
                yield claimed

    def _claimed(
        self, process: int, state: ClaimState, claim: Callable[[Reservation], Reservation]
    ) -> ClaimStep | None:
        after = claim(state.row)
        if after == state.row or any(held.process == process for held in state.held):
            return None
        held = (*state.held, Held(process, after, is_sent=False, is_fresh=True))
        return Step("claims", True, state._replace(row=after, held=held), self._check_claim(state, after), process)

    def _check_claim(self, before: ClaimState, after: Reservation) -> str | None:
        if before.paused:
            return CLAIMED_IN_PAUSE
        if before.row.due_time != 0:
            return CLAIMED_EARLY
        for held in before.held:
            same = (held.claimed.lease_epoch, held.claimed.revision) == (before.row.lease_epoch, after.revision)
            if held.is_fresh and same:
                return CLAIMED_TWICE
        return None

    def _lose(self, process: int, state: ClaimState) -> Iterator[ClaimStep]:
        """The process crashes. Or it stops: it hands back the claims of its calls, and forgets the others."""
        left = tuple(held for held in state.held if held.process != process)
        if len(left) == len(state.held):
            return
        yield Step("crashes", False, state._replace(held=left), None, process)
        row = state.row
        for held in state.held:
            if held.process == process and held.is_sent:
                row = claiming.hand_back(row, held.claimed)
        yield Step("stops", False, state._replace(row=row, held=left), None, process)

    def _extend(self, held: Held, others: ClaimState) -> Iterator[ClaimStep]:
        row = claiming.extend(others.row, held.claimed)
        is_fresh = row.lease_epoch == held.claimed.lease_epoch
        after = others._replace(row=row, held=(*others.held, held._replace(is_fresh=is_fresh)))
        yield Step("extends its lease", False, after, None, held.process)

    def _end_call(self, held: Held, others: ClaimState) -> Iterator[ClaimStep]:
        claimed, before = held.claimed, others._replace(held=(*others.held, held))
        for outcome in self._outcomes(claimed):
            row = claiming.record(others.row, claimed, outcome)
            verb = f"records {type(outcome).__name__}"
            is_fair = isinstance(outcome, Decision)
            for step in self._written(held.process, verb, is_fair, before, others._replace(row=row)):
                yield step._replace(violation=step.violation or check_record(others.row, row, held))

    def _outcomes(self, claimed: Reservation) -> Iterator[Answer | NoAnswer]:
        yield NO_ANSWER
        yield _decision(claimed)
        if claimed.revision <= self._bounds.refused:
            yield REFUSAL


def check_record(before: Reservation, after: Reservation, held: Held) -> str | None:
    """A process that was overtaken does not change the claim of another one, unless the reservation is settled."""
    work = [(row.lease_epoch, row.lease_expire_time, row.due_time) for row in (before, after)]
    is_overtaken = held.claimed.lease_epoch != before.lease_epoch
    is_answered = after.settled or after.revision > before.revision
    return LOST_CLAIM if is_overtaken and work[0] != work[1] and not is_answered else None


def _decision(claimed: Reservation) -> Decision:
    if claimed.disposition is Disposition.RELEASE:
        return Decision(claimed.reservation_id, claimed.revision, Observed.RELEASED, 0, None, "")
    return Decision(claimed.reservation_id, claimed.revision, Observed.HELD, claimed.quantity, LASTING, "")


def _aged(state: ClaimState) -> ClaimState:
    row = state.row
    lease = None if row.lease_expire_time is None else 0
    due_time = None if row.due_time is None else 0
    held = tuple(one._replace(is_fresh=False) for one in state.held)
    return state._replace(row=row._replace(lease_expire_time=lease, due_time=due_time), held=held)


def normalized(state: ClaimState) -> ClaimState:
    """The state with small epochs and times, and without fields on which the model does not depend."""
    known = sorted({held.claimed.lease_epoch for held in state.held} | {state.row.lease_epoch})
    numbers = {epoch: number for number, epoch in enumerate(known)}
    held = sorted(one._replace(claimed=_small(one.claimed, numbers)) for one in state.held)
    return state._replace(row=_small(state.row, numbers), held=tuple(held))


def _small(row: Reservation, epochs: dict[int, int]) -> Reservation:
    times = [time and TICK for time in (row.lease_expire_time, row.due_time)]
    return row._replace(
        lease_epoch=epochs[row.lease_epoch],
        lease_expire_time=times[0],
        due_time=times[1],
        finish_time=row.finish_time and 0,
        attempt_count=0,
        last_error="",
    )
