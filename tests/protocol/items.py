"""The transitions of one item: the product's own rules, an adversarial network, and a caller who makes any change.

Results that depend on interned numbers only are memoized.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations, product
from typing import Any, TypeVar

from cart_grpc.carts.model import Line
from cart_grpc.carts.progress import Progress, ProgressState
from cart_grpc.protocol import transitions
from cart_grpc.protocol.reservation import (
    Answer,
    Intent,
    NoAnswer,
    Observed,
    PermanentFailure,
    Reservation,
    StaleRevision,
)
from cart_grpc.simulator.rules import StoredReservation
from tests.carts.examples import line_of
from tests.protocol import api_rules, invariants, service_rules
from tests.protocol.explorer import Step
from tests.protocol.states import (
    IDS,
    STOCK,
    TICK,
    Bounds,
    IdState,
    Interner,
    ItemState,
    RevisionOutcome,
    aged_outcome,
    aged_record,
    aged_row,
    lapsed,
    new_row,
    normalized,
    with_id_state,
)

NO_ANSWER = NoAnswer("DEADLINE_EXCEEDED", "")
PERMANENT_FAILURE = PermanentFailure("NOT_FOUND", "")
SETTLED = (ProgressState.RESERVED, ProgressState.REJECTED, ProgressState.COMMITTED)

T = TypeVar("T")
ItemStep = Step[ItemState]


class ItemModel:
    """The transitions and invariants of one item within `bounds`."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._rows: Interner[Reservation] = Interner()
        self._records: Interner[StoredReservation | None] = Interner()
        self._sent: Interner[Intent] = Interner()
        self._outcomes: Interner[RevisionOutcome] = Interner()
        self._memo: dict[Hashable, Any] = {}

    def first(self, wanted: int, elsewhere: int) -> ItemState:
        """An item that was just added."""
        row = self._row(new_row(0, wanted, waiting=False))
        return ItemState(wanted, elsewhere, (self._with_row(self._new_id_state(), row),))

    def row(self, item: ItemState) -> Reservation:
        """The row of the latest id."""
        return self._rows[item.ids[-1].row]

    def record(self, item: ItemState) -> StoredReservation | None:
        """The API's record of the latest id."""
        return self._records[item.ids[-1].record]

    def with_row(self, item: ItemState, row: Reservation) -> ItemState:
        """The item with another row for the latest id."""
        return self._put(item, len(item.ids) - 1, self._row(row))

    def line(self, item: ItemState) -> Line:
        """The item as a line of its cart or checkout."""
        return line_of(self.row(item), item.wanted)

    def with_new_id(self, item: ItemState, row: Reservation) -> ItemState:
        """The item with another reservation, `row`, under the next id."""
        row = row._replace(reservation_id=IDS[len(item.ids)], sku=self.row(item).sku)
        return item._replace(ids=(*item.ids, self._with_row(self._new_id_state(), self._row(row))))

    def is_sold(self, item: ItemState) -> bool:
        """Whether we know that it is sold."""
        return self.row(item).state is Observed.COMMITTED

    def without_unsold(self, item: ItemState) -> ItemState:
        """The item, no longer wanted unless it is sold."""
        return item if self.is_sold(item) else item._replace(wanted=0)

    def restored(self, item: ItemState, wanted: int, row: int) -> ItemState:
        """The item after a restore from a backup with `wanted` and `row`."""
        return self.with_row(item, service_rules.restore(self._rows[row]))._replace(wanted=wanted)

    def recorded(self) -> Iterator[tuple[Reservation, RevisionOutcome]]:
        """Every row that the exploration has reached, with every outcome that it recorded in that row."""
        for key in self._memo:
            match key:
                case ("record", int(row), int(outcome)):
                    yield self._rows[row], self._outcomes[outcome]

    def shown(self, item: ItemState) -> Progress:
        """The progress that callers see of the item."""
        row = item.ids[-1].row
        return self._memoize(("shown", row, item.wanted), lambda: service_rules.shown(self._rows[row], item.wanted))

    def is_done(self, item: ItemState) -> bool:
        """Whether all rows are settled and the wanted quantity is reserved, sold or rejected."""
        settled = all(row.settled for row in self._rows_of(item))
        return settled and (not item.wanted or self.shown(item).state in SETTLED)

    def find_violation(self, item: ItemState) -> str | None:
        """The invariant that the item violates, or None."""
        return self._memoize(("violation", item), lambda: next(self._find_violations(item), None))

    def steps(self, item: ItemState) -> Sequence[ItemStep]:
        """The steps of the workers, the network, the API and other customers."""
        return self._memoize(("by itself", item), lambda: list(self._own_steps(item)))

    def batches(self, item: ItemState) -> Iterator[ItemStep]:
        """All deliveries of two messages, for different ids, as the entries of one batch call."""
        sent = [self._sent.members(id_state.sent) for id_state in item.ids]
        records = [self._records[id_state.record] for id_state in item.ids]
        for first, second in permutations(range(len(sent)), 2):
            for (_, one), (_, other) in product(sent[first], sent[second]):
                entries = ((first, one), (second, other))
                after, answers = api_rules.apply_batch(records, entries, STOCK - item.elsewhere)
                yield self._delivered(item, entries, after, answers)

    def _delivered(
        self,
        item: ItemState,
        entries: Sequence[tuple[int, Intent]],
        records: Sequence[StoredReservation | None],
        answers: Sequence[tuple[int, Answer]],
    ) -> ItemStep:
        ids = zip(item.ids, records, strict=True)
        after = item._replace(ids=tuple(one._replace(record=self._records.of(record)) for one, record in ids))
        for (_, intent), (which, answer) in zip(entries, answers, strict=True):
            outcome = self._outcomes.of(RevisionOutcome(intent.revision, answer))
            if self._is_overtaken(answer, after, which):
                after = self._recorded(after, which, outcome, Step("abort", True, after)).after
            else:
                id_state = after.ids[which]
                after = with_id_state(after, which, id_state._replace(outcomes=id_state.outcomes | 1 << outcome))
        return Step("apply a batch", True, after, None, entries)

    def _is_overtaken(self, outcome: Answer | NoAnswer, item: ItemState, which: int) -> bool:
        """Whether our own newer revision came first. No rule uses this answer, so it is recorded at once."""
        return (
            isinstance(outcome, StaleRevision) and outcome.current.revision <= self._rows[item.ids[which].row].revision
        )

    def caller_steps(self, item: ItemState) -> Sequence[ItemStep]:
        """The steps of the caller."""
        return self._memoize(("by the caller", item), lambda: list(self._caller_steps(item)))

    def writer_steps(self, item: ItemState) -> Iterator[ItemStep]:
        """The steps of other writers in a checkout: operators, and all who ignore that a reservation is frozen."""
        row = self.row(item)
        if row.frozen:
            yield from self._change("release", item, item.wanted, partial(transitions.release, row, 0))
            yield from self._change("hold again", item, item.wanted, partial(transitions.hold, row, item.wanted, 0))
        elif self._bounds.operators and not row.is_closed:
            released = partial(service_rules.release_by_operator, row)
            yield from self._change("an operator releases", item, item.wanted, released)

    def aged(self, item: ItemState) -> ItemState:
        """The item after one tick."""
        return item._replace(ids=tuple(self._aged(id_state) for id_state in item.ids))

    def _memoize(self, key: Hashable, work: Callable[[], T]) -> T:
        if key not in self._memo:
            self._memo[key] = work()
        value: T = self._memo[key]
        return value

    def _new_id_state(self) -> IdState:
        return IdState(-1, self._records.of(None))

    def _row(self, row: Reservation) -> int:
        return self._rows.of(normalized(row))

    def _rows_of(self, item: ItemState) -> tuple[Reservation, ...]:
        return tuple(self._rows[id_state.row] for id_state in item.ids)

    def _with_row(self, id_state: IdState, row: int) -> IdState:
        """The id with another row, and with the row's due message sent.

        Sending changes no row, and a sent message may arrive at any later time or never. So a state with the message
        sent has all the behaviours of the same state without it, and only the former is explored.
        """
        return id_state._replace(
            row=row, sent=id_state.sent | self._memoize(("due", row), lambda: self._due_messages(row))
        )

    def _due_messages(self, number: int) -> int:
        row = self._rows[number]
        intent = transitions.next_intent(row) if row.due_time is not None else None
        return self._sent.add(0, intent) if intent else 0

    def _put(self, item: ItemState, which: int, row: int) -> ItemState:
        return with_id_state(item, which, self._with_row(item.ids[which], row))

    def _free(self, item: ItemState, which: int) -> int:
        """The stock that one id can get: all that neither other customers nor the item's other ids hold."""
        records = (self._records[id_state.record] for index, id_state in enumerate(item.ids) if index != which)
        return STOCK - item.elsewhere - sum(record.granted for record in records if record)

    def _find_violations(self, item: ItemState) -> Iterator[str]:
        rows = self._rows_of(item)
        records = [self._records[id_state.record] for id_state in item.ids]
        yield from invariants.check_stock(rows, records, item.elsewhere)
        if item.wanted:
            last = len(rows) - 1
            sent = (intent for _, intent in self._sent.members(item.ids[last].sent))
            free = self._free(item, last)
            yield from invariants.check_shown(rows[last], self.shown(item), records[last], sent, free)

    def _own_steps(self, item: ItemState) -> Iterator[ItemStep]:
        for which, id_state in enumerate(item.ids):
            yield from self._renew(item, which, id_state)
            yield from self._deliver(item, which, id_state)
            yield from self._receive(item, which, id_state)
            record = self._records[id_state.record]
            if record and api_rules.may_expire(record):
                after = id_state._replace(record=self._records.of(api_rules.expire(record)))
                yield Step("a hold expires", False, with_id_state(item, which, after))
        if self._bounds.rivals and not item.elsewhere and self._free(item, -1):
            yield Step("another customer takes one", False, item._replace(elsewhere=1))
        if self._bounds.rivals and item.elsewhere:
            yield Step("another customer returns one", False, item._replace(elsewhere=0))

    def _renew(self, item: ItemState, which: int, id_state: IdState) -> Iterator[ItemStep]:
        row = self._rows[id_state.row]
        if row.due_time is None or not row.settled or not self._may_renew(row):
            return
        for claimed in service_rules.claims(row, [intent for _, intent in self._sent.members(id_state.sent)]):
            violation = invariants.check_claim(row, claimed, item.wanted)
            yield Step("renew", True, self._put(item, which, self._row(claimed)), violation)

    def _may_renew(self, row: Reservation) -> bool:
        ended = row.state is Observed.EXPIRED or lapsed(row.expire_time)
        return ended or row.revision % service_rules.RESTORE_STRIDE < self._bounds.renewed

    def _deliver(self, item: ItemState, which: int, id_state: IdState) -> Iterator[ItemStep]:
        free, before = self._free(item, which), self._records[id_state.record]
        for number, intent in self._sent.members(id_state.sent):
            key = ("apply", id_state.record, number, free)
            record, answer, violation = self._memoize(key, partial(self._apply, before, intent, free))
            if self._is_overtaken(self._outcomes[answer].outcome, item, which):
                yield self._recorded(item, which, answer, Step("abort", True, item, None, intent))
                continue
            after = id_state._replace(record=record, outcomes=id_state.outcomes | 1 << answer)
            yield Step("apply", True, with_id_state(item, which, after), violation, intent)
            if self._bounds.short and intent.ttl_us > TICK:
                yield from self._deliver_short(item, which, number)
            undecided = before is None or intent.revision > before.intent.revision
            if undecided and intent.revision <= self._bounds.refused:
                failed = id_state._replace(
                    outcomes=self._outcomes.add(id_state.outcomes, RevisionOutcome(intent.revision, PERMANENT_FAILURE))
                )
                yield Step("fail", False, with_id_state(item, which, failed), None, intent)

    def _deliver_short(self, item: ItemState, which: int, number: int) -> Iterator[ItemStep]:
        """The API grants a hold for less time than it was asked for."""
        id_state, intent = item.ids[which], self._sent[number]
        before = self._records[id_state.record]
        record, _, _ = self._apply(before, intent, self._free(item, which))
        granted, promised = self._records[record], (before.expire_time if before else None) or 0
        if granted and granted != before and granted.expire_time and granted.expire_time > max(TICK, promised):
            short = replace(granted, expire_time=max(TICK, promised))
            outcome = self._outcomes.of(RevisionOutcome(intent.revision, api_rules.decision_of(short)))
            after = IdState(id_state.row, self._records.of(short), id_state.sent, id_state.outcomes | 1 << outcome)
            yield Step("apply, but not for long,", True, with_id_state(item, which, after), None, intent)

    def _apply(self, before: StoredReservation | None, intent: Intent, free: int) -> tuple[int, int, str | None]:
        record, outcome = api_rules.apply(before, intent, free)
        violation = invariants.check_decision(before, record, intent, free)
        return self._records.of(record), self._outcomes.of(RevisionOutcome(intent.revision, outcome)), violation

    def _receive(self, item: ItemState, which: int, id_state: IdState) -> Iterator[ItemStep]:
        for number, intent in self._sent.members(id_state.sent):
            no_answer = self._memoize((("no answer", number)), partial(self._no_answer, intent.revision))
            yield self._recorded(item, which, no_answer, Step("time out", False, item, None, intent))
        for number, outcome in self._outcomes.members(id_state.outcomes):
            yield self._recorded(item, which, number, Step("record", True, item, None, outcome))

    def _no_answer(self, revision: int) -> int:
        return self._outcomes.of(RevisionOutcome(revision, NO_ANSWER))

    def _recorded(self, item: ItemState, which: int, outcome: int, step: ItemStep) -> ItemStep:
        before = item.ids[which].row
        row, violation = self._memoize(("record", before, outcome), partial(self._record, before, outcome))
        if row == before:
            return step
        after = self._put(item, which, row)
        rows = self._rows_of(after)
        if any(row.waiting for row in rows) and not any(row.releasing for row in rows):
            for index, waiting in enumerate(rows):
                after = (
                    self._put(after, index, self._row(transitions.stop_waiting(waiting, 0)))
                    if waiting.waiting
                    else after
                )
        return step._replace(after=after, violation=violation)

    def _record(self, before: int, number: int) -> tuple[int, str | None]:
        row, ended = self._rows[before], self._outcomes[number]
        after = transitions.record_outcome(row, 0, ended.revision, ended.outcome, 0, 0)
        violation = invariants.check_row(row, after) or invariants.check_answer(row, ended.outcome)
        return self._row(after), violation

    def _caller_steps(self, item: ItemState) -> Iterator[ItemStep]:
        rows = self._rows_of(item)
        row = rows[-1]
        if row.state is Observed.COMMITTED:
            return
        if item.wanted:
            yield from self._change("remove", item, 0, partial(transitions.release, row, 0))
        for quantity in self._bounds.quantities:
            if quantity == item.wanted and self.shown(item).state is not ProgressState.REJECTED:
                continue
            if row.is_closed:
                yield from self._add_again(item, service_rules.add_again(rows, quantity), quantity)
            elif row.revision % service_rules.RESTORE_STRIDE < self._bounds.changed:
                yield from self._change(f"want {quantity}", item, quantity, partial(transitions.hold, row, quantity, 0))

    def _add_again(self, item: ItemState, rows: Sequence[Reservation], wanted: int) -> Iterator[ItemStep]:
        if len(rows) > self._bounds.ids:
            return
        ids = item.ids if len(rows) == len(item.ids) else (*item.ids, self._new_id_state())
        last = self._with_row(ids[-1], self._row(rows[-1]))
        yield Step(f"want {wanted} under a new id", False, ItemState(wanted, item.elsewhere, (*ids[:-1], last)))

    def _change(self, verb: str, item: ItemState, wanted: int, change: Callable[[], Reservation]) -> Iterator[ItemStep]:
        try:
            after = change()
        except ValueError:
            # The rule forbids this change in this state.
            return
        violation = invariants.check_row(self.row(item), after)
        yield Step(verb, False, self.with_row(item, after)._replace(wanted=wanted), violation)

    def _aged(self, id_state: IdState) -> IdState:
        outcomes = 0
        for _, one in self._outcomes.members(id_state.outcomes):
            outcomes = self._outcomes.add(outcomes, aged_outcome(one))
        record = self._records.of(aged_record(self._records[id_state.record]))
        return IdState(self._row(aged_row(self._rows[id_state.row])), record, id_state.sent, outcomes)
