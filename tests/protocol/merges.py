"""The model of merges: the reservations of two carts with the same item, at one Reservation API.

A guest's cart is merged into a user's cart while either reservation is due, in flight, granted, refused, sealed,
released or lapsed. Callers change the quantity, remove the item and add it again in both carts, before and after, so a
cart can be merged while the last merge is under way. Every change and every record is the product's own command, on the
rows that it reads: see `tables`.

There are no leases, as in `model`: a row that is due may be sent at any time and again. A message that was sent may
arrive at any time, and again. Of the answers to one reservation, one is on its way: a later one replaces it, or is lost
itself. This excludes nothing: the same message gets the same answer again. An outcome is recorded as that of an
overtaken claim, so it changes no due time. A time-out changes nothing then, and is no step.

Messages and answers that can have no effect any more are forgotten.
"""

from collections.abc import Iterator
from functools import lru_cache

from cart_grpc.carts.model import Line
from cart_grpc.carts.progress import Progress, ProgressState, progress
from cart_grpc.protocol import transitions
from cart_grpc.protocol.reservation import Decision, Intent, Observed, PermanentFailure, Reservation
from cart_grpc.simulator.rules import StoredReservation
from tests.protocol import api_rules, invariants, merge_checks
from tests.protocol.explorer import Step
from tests.protocol.merge_calls import Transactions
from tests.protocol.merge_states import ApiState, MergeBounds, MergeState, Message, Received
from tests.protocol.states import (
    TICK,
    Interner,
    RevisionOutcome,
    aged_outcome,
    aged_record,
    aged_row,
    describe,
)
from tests.protocol.tables import Tables, normalized

PERMANENT_FAILURE = PermanentFailure("NOT_FOUND", "")
SETTLED = (ProgressState.RESERVED, ProgressState.REJECTED)
# New revisions of a refused hold: after each of two merges, one that waits and one that is asked for, and another one
# if it has to be renewed while it waits.
MOST_ASKED = 5

MergeStep = Step[MergeState]


class MergeModel:
    """The states and transitions of two carts and one item within `bounds`."""

    def __init__(self, bounds: MergeBounds) -> None:
        self._bounds = bounds
        self._tables: Interner[Tables] = Interner()
        self._transactions = Transactions(bounds, self._tables)
        self._records: Interner[StoredReservation | None] = Interner()
        self._sent: Interner[Message] = Interner()
        self._outcomes: Interner[RevisionOutcome] = Interner()
        self._due = lru_cache(None)(self._find_due)
        self._useful = lru_cache(None)(self._without_useless)
        self._apply = lru_cache(None)(self._apply_message)

    describe = staticmethod(describe)

    def initial_states(self) -> Iterator[tuple[str, MergeState]]:
        for text, tables in self._transactions.initial():
            for elsewhere in (0, 1):
                state = MergeState(tables, (), elsewhere)
                yield f"{text} of {self._bounds.stock - elsewhere}", self._with(state, tables)

    def is_done(self, state: MergeState) -> bool:
        """Whether all rows are settled, callers see that, and only the reservations of items hold anything."""
        tables = self._tables[state.tables]
        if not all(row.settled for row in tables.rows):
            return False
        of_items = {item.reservation_id for item in tables.items}
        held = {row.reservation_id for row, one in zip(tables.rows, state.ids, strict=True) if self._granted(one)}
        return held <= of_items and all(progress(line, 0).state in SETTLED for line in tables.lines)

    def find_violation(self, state: MergeState) -> str | None:
        return next(self._find_violations(state), None)

    def _find_violations(self, state: MergeState) -> Iterator[str]:
        tables = self._tables[state.tables]
        yield from merge_checks.check_tables(tables, [self._records[one.record] for one in state.ids])
        for line in tables.lines:
            index, shown = tables.rows.index(line.reservation), progress(line, 0)
            one = state.ids[index]
            sent = (message.intent for _, message in self._sent.members(one.sent))
            record = self._records[one.record]
            yield from invariants.check_shown(line.reservation, shown, record, sent, self._free(state, index))
            if one.is_blocked and _is_refused(line, shown):
                yield invariants.BLOCKED_BY_OWN_HOLD

    def steps(self, state: MergeState) -> Iterator[MergeStep]:
        for index in range(len(state.ids)):
            yield from self._renew(state, index)
            yield from self._deliver(state, index)
            yield from self._record(state, index)
            yield from self._expire(state, index)
        for verb, changed in self._transactions.calls(state.tables):
            yield Step(verb, False, self._with(state._replace(asked=0), changed.tables), changed.violation)
        if self._bounds.rivals and not state.elsewhere and self._free(state, None):
            yield Step("another customer takes one", False, state._replace(elsewhere=1))
        if self._bounds.rivals and state.elsewhere:
            yield Step("another customer returns one", False, state._replace(elsewhere=0))
        if state.ticks < self._bounds.ticks:
            yield Step("time passes", False, self._aged(state))

    def _granted(self, one: ApiState) -> int:
        record = self._records[one.record]
        return record.granted if record else 0

    def _free(self, state: MergeState, index: int | None) -> int:
        """The stock that one reservation can get: all that neither other customers nor the other ones hold."""
        held = (self._granted(one) for other, one in enumerate(state.ids) if other != index)
        return self._bounds.stock - state.elsewhere - sum(held)

    def _renew(self, state: MergeState, index: int) -> Iterator[MergeStep]:
        tables = self._tables[state.tables]
        row = tables.rows[index]
        if row.settled and row.due_time == 0:
            claimed = transitions.claim(row, 0, TICK)._replace(due_time=0)
            rows = (*tables.rows[:index], normalized(claimed), *tables.rows[index + 1 :])
            yield Step(
                f"renew {row.reservation_id}", True, self._with(state, self._tables.of(tables._replace(rows=rows)))
            )

    def _deliver(self, state: MergeState, index: int) -> Iterator[MergeStep]:
        one, free = state.ids[index], self._free(state, index)
        before = self._records[one.record]
        for number, message in self._sent.members(one.sent):
            intent, after = message.intent, one
            record, outcome, violation = self._apply(one.record, intent, free)
            if record != one.record:
                after = one._replace(record=record, is_blocked=self._is_blocked(state, index, record))
                yield Step("apply, without an answer,", False, self._put(state, index, after), violation, intent)
            answered = after._replace(answer=Received(number, outcome))
            yield Step("apply", True, self._put(state, index, answered), violation, intent)
            undecided = before is None or intent.revision > before.intent.revision
            if undecided and intent.revision <= self._bounds.refused:
                failure = self._outcomes.of(RevisionOutcome(intent.revision, PERMANENT_FAILURE))
                failed = self._put(state, index, one._replace(answer=Received(number, failure)))
                yield Step("fail", False, failed, None, intent)

    def _apply_message(self, number: int, intent: Intent, free: int) -> tuple[int, int, str | None]:
        before = self._records[number]
        record, outcome = api_rules.apply(before, intent, free)
        violation = invariants.check_decision(before, record, intent, free)
        return self._records.of(record), self._outcomes.of(RevisionOutcome(intent.revision, outcome)), violation

    def _is_blocked(self, state: MergeState, index: int, record: int) -> bool:
        """Whether a refusal would have been a grant without the other reservations of the same cart.

        A hold that has lapsed is asked for again by a renewal. That may be refused because of a reservation whose
        release got no answer for so long.
        """
        decided, rows = self._records[record], self._tables[state.tables].rows
        if decided is None or decided.state is not Observed.REJECTED:
            return False
        if decided.intent.revision != rows[index].intent_revision:
            return False
        others = sum(
            self._granted(one)
            for other, (row, one) in enumerate(zip(rows, state.ids, strict=True))
            if other != index and row.cart == rows[index].cart
        )
        return decided.intent.quantity <= self._free(state, index) + others

    def _record(self, state: MergeState, index: int) -> Iterator[MergeStep]:
        answer = state.ids[index].answer
        if answer is None:
            return
        message, ended = self._sent[answer.message], self._outcomes[answer.outcome]
        changed = self._transactions.record(state.tables, index, message, ended.outcome)
        asked = state.asked + (changed.asks and isinstance(ended.outcome, Decision))
        violation = changed.violation or (merge_checks.ASKED_WITHOUT_END if asked > MOST_ASKED else None)
        known = self._put(state, index, state.ids[index]._replace(answer=None))._replace(asked=asked)
        yield Step("record", True, self._with(known, changed.tables), violation, ended)

    def _expire(self, state: MergeState, index: int) -> Iterator[MergeStep]:
        record = self._records[state.ids[index].record]
        if record and api_rules.may_expire(record):
            expired = state.ids[index]._replace(record=self._records.of(api_rules.expire(record)))
            name = record.intent.reservation_id
            yield Step(f"the hold of {name} expires", False, self._put(state, index, expired))

    def _with(self, state: MergeState, tables: int) -> MergeState:
        """The state with other tables, and with the messages of all due rows sent: see `ItemModel`."""
        due = self._due(tables)
        ids = (*state.ids, *(ApiState(self._records.of(None)) for _ in due[len(state.ids) :]))
        sent = (one._replace(sent=one.sent | more) for one, more in zip(ids, due, strict=True))
        return state._replace(
            tables=tables, ids=tuple(self._useful(tables, index, one) for index, one in enumerate(sent))
        )

    def _find_due(self, tables: int) -> tuple[int, ...]:
        return tuple(map(self._find_message, self._tables[tables].rows))

    def _find_message(self, row: Reservation) -> int:
        intent = transitions.next_intent(row) if row.due_time == 0 else None
        return self._sent.add(0, Message(row.cart, row.supersedes, intent)) if intent else 0

    def _put(self, state: MergeState, index: int, one: ApiState) -> MergeState:
        one = self._useful(state.tables, index, one)
        return state._replace(ids=(*state.ids[:index], one, *state.ids[index + 1 :]))

    def _without_useless(self, tables: int, index: int, one: ApiState) -> ApiState:
        """Without the messages and the answer that can have no effect any more."""
        row, record = self._tables[tables].rows[index], self._records[one.record]
        decided = record.intent.revision if record else 0
        messages = self._sent.members(one.sent)
        current = {message.intent.revision for _, message in messages if message.cart == row.cart}
        sent = 0
        for number, message in messages:
            revision = message.intent.revision
            is_twin = message.cart != row.cart and revision in current
            if revision > decided or revision == decided > row.observed_revision:
                sent |= 0 if is_twin else 1 << number
        answer = one.answer
        if answer:
            outcome = self._outcomes[answer.outcome].outcome
            is_useless = self._transactions.record(tables, index, self._sent[answer.message], outcome).tables == tables
            answer = None if is_useless else answer
        return one._replace(sent=sent, answer=answer)

    def _aged(self, state: MergeState) -> MergeState:
        tables = self._tables[state.tables]
        rows = tuple(map(_aged_row, tables.rows))
        aged = state._replace(ids=tuple(map(self._aged_id, state.ids)), ticks=state.ticks + 1, asked=0)
        return self._with(aged, self._tables.of(tables._replace(rows=rows)))

    def _aged_id(self, one: ApiState) -> ApiState:
        answer = one.answer
        if answer:
            answer = answer._replace(outcome=self._outcomes.of(aged_outcome(self._outcomes[answer.outcome])))
        return one._replace(record=self._records.of(aged_record(self._records[one.record])), answer=answer)


def _is_refused(line: Line, shown: Progress) -> bool:
    row = line.reservation
    return shown.state is ProgressState.REJECTED and row.settled and not (row.is_closed or row.seal_reason)


def _aged_row(row: Reservation) -> Reservation:
    return aged_row(row)._replace(due_time=row.due_time and max(row.due_time - TICK, 0))
