"""All that can happen to one item: the real rules, a network without mercy, and a caller who cannot decide.

Whatever depends on small numbers alone is worked out once.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from cart_grpc.carts.progress import Progress, ProgressState
from cart_grpc.protocol import transitions
from cart_grpc.protocol.reservation import Intent, NoAnswer, Observed, PermanentFailure, Reservation, StaleRevision
from cart_grpc.simulator.rules import StoredReservation as Record
from tests.protocol import api, practice, promises
from tests.protocol.explorer import Step
from tests.protocol.worlds import (
    STOCK,
    Bounds,
    Item,
    Lane,
    Numbers,
    Told,
    aged_answer,
    aged_record,
    aged_row,
    lapsed,
    made,
    plain,
    with_lane,
)

SILENCE = NoAnswer("DEADLINE_EXCEEDED", "")
NEVER = PermanentFailure("NOT_FOUND", "")
SETTLED = (ProgressState.RESERVED, ProgressState.REJECTED, ProgressState.COMMITTED)

T = TypeVar("T")
ItemStep = Step[Item]


class ItemModel:
    """What can become of an item within `bounds`, and whether its promises are kept."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._rows: Numbers[Reservation] = Numbers()
        self._records: Numbers[Record | None] = Numbers()
        self._sent: Numbers[Intent] = Numbers()
        self._told: Numbers[Told] = Numbers()
        self._remembered: dict[Hashable, Any] = {}

    def first(self, wanted: int, elsewhere: int) -> Item:
        """An item that was just put in."""
        row = self._row(made(0, wanted, waiting=False))
        return Item(wanted, elsewhere, (self._with_row(self._new_lane(), row),))

    def row(self, item: Item) -> Reservation:
        """The row of the latest id."""
        return self._rows[item.lanes[-1].row]

    def record(self, item: Item) -> Record | None:
        """What the API remembers of the latest id."""
        return self._records[item.lanes[-1].record]

    def with_row(self, item: Item, row: Reservation) -> Item:
        """The item with another row for the latest id."""
        return self._put(item, len(item.lanes) - 1, self._row(row))

    def restored(self, item: Item, wanted: int, row: int) -> Item:
        """The item as a backup has it."""
        return self.with_row(item, practice.restore(self._rows[row]))._replace(wanted=wanted)

    def shown(self, item: Item) -> Progress:
        """What callers see of the item."""
        row = item.lanes[-1].row
        return self._once(("shown", row, item.wanted), lambda: practice.shown(self._rows[row], item.wanted))

    def is_done(self, item: Item) -> bool:
        """Intent and observed agree, and what is wanted is reserved, sold or refused."""
        settled = all(row.settled for row in self._rows_of(item))
        return settled and (not item.wanted or self.shown(item).state in SETTLED)

    def broken(self, item: Item) -> str | None:
        """The promise about this item that is broken, if one is."""
        return self._once(("broken", item), lambda: next(self._broken_of(item), None))

    def steps(self, item: Item) -> Sequence[ItemStep]:
        """What can happen to the item by itself."""
        return self._once(("by itself", item), lambda: list(self._what_happens(item)))

    def caller_steps(self, item: Item) -> Sequence[ItemStep]:
        """What a caller can do to the item."""
        return self._once(("by the caller", item), lambda: list(self._what_the_caller_does(item)))

    def aged(self, item: Item) -> Item:
        """The item once time has passed."""
        return item._replace(lanes=tuple(self._aged(lane) for lane in item.lanes))

    def _once(self, key: Hashable, work: Callable[[], T]) -> T:
        if key not in self._remembered:
            self._remembered[key] = work()
        value: T = self._remembered[key]
        return value

    def _new_lane(self) -> Lane:
        return Lane(-1, self._records.of(None))

    def _row(self, row: Reservation) -> int:
        return self._rows.of(plain(row))

    def _rows_of(self, item: Item) -> tuple[Reservation, ...]:
        return tuple(self._rows[lane.row] for lane in item.lanes)

    def _with_row(self, lane: Lane, row: int) -> Lane:
        """The lane with another row, and with what is due sent.

        Sending changes no row and takes no message back, so a world in which what is due was sent already can do all
        that one can in which it was not yet: only the former are looked at.
        """
        return lane._replace(row=row, sent=lane.sent | self._once(("due", row), lambda: self._what_is_due(row)))

    def _what_is_due(self, number: int) -> int:
        row = self._rows[number]
        intent = transitions.next_intent(row) if row.due_time is not None else None
        return self._sent.add(0, intent) if intent else 0

    def _put(self, item: Item, which: int, row: int) -> Item:
        return with_lane(item, which, self._with_row(item.lanes[which], row))

    def _free(self, item: Item, which: int) -> int:
        """How much is there for one id: all that neither others have nor the item's other ids."""
        records = (self._records[lane.record] for index, lane in enumerate(item.lanes) if index != which)
        return STOCK - item.elsewhere - sum(record.granted for record in records if record)

    def _broken_of(self, item: Item) -> Iterator[str]:
        rows = self._rows_of(item)
        records = [self._records[lane.record] for lane in item.lanes]
        yield from promises.broken_by_stock(rows, records, item.elsewhere)
        if item.wanted:
            last = len(rows) - 1
            sent = (intent for _, intent in self._sent.members(item.lanes[last].sent))
            free = self._free(item, last)
            yield from promises.broken_to_the_caller(rows[last], self.shown(item), records[last], sent, free)

    def _what_happens(self, item: Item) -> Iterator[ItemStep]:
        for which, lane in enumerate(item.lanes):
            yield from self._renew(item, which, lane)
            yield from self._deliver(item, which, lane)
            yield from self._hear(item, which, lane)
            record = self._records[lane.record]
            if record and api.may_run_out(record):
                after = lane._replace(record=self._records.of(api.run_out(record)))
                yield Step("a hold runs out", False, with_lane(item, which, after))
        if self._bounds.rivals and not item.elsewhere and self._free(item, -1):
            yield Step("somebody else takes one", False, item._replace(elsewhere=1))
        if self._bounds.rivals and item.elsewhere:
            yield Step("somebody else gives one back", False, item._replace(elsewhere=0))

    def _renew(self, item: Item, which: int, lane: Lane) -> Iterator[ItemStep]:
        row = self._rows[lane.row]
        if row.due_time is None or not row.settled or not self._may_renew(row):
            return
        for claimed in practice.claims(row, [intent for _, intent in self._sent.members(lane.sent)]):
            broken = promises.broken_by_claiming(row, claimed, item.wanted)
            yield Step("renew", True, self._put(item, which, self._row(claimed)), broken)

    def _may_renew(self, row: Reservation) -> bool:
        ended = row.state is Observed.EXPIRED or lapsed(row.expire_time)
        return ended or row.revision % practice.STRIDE < self._bounds.renewed

    def _deliver(self, item: Item, which: int, lane: Lane) -> Iterator[ItemStep]:
        free, before = self._free(item, which), self._records[lane.record]
        for number, intent in self._sent.members(lane.sent):
            key = ("apply", lane.record, number, free)
            record, told, broken = self._once(key, partial(self._apply, before, intent, free))
            outcome = self._told[told].outcome
            if isinstance(outcome, StaleRevision) and outcome.current.revision <= self._rows[lane.row].revision:
                # That we overtook ourselves is told at once: no rule does anything with it, soon or late.
                yield self._recorded(item, which, told, Step("abort", True, item, None, intent))
                continue
            after = lane._replace(record=record, told=lane.told | 1 << told)
            yield Step("apply", True, with_lane(item, which, after), broken, intent)
            undecided = before is None or intent.revision > before.intent.revision
            if undecided and intent.revision <= self._bounds.refused:
                refused = lane._replace(told=self._told.add(lane.told, Told(intent.revision, NEVER)))
                yield Step("refuse", False, with_lane(item, which, refused), None, intent)

    def _apply(self, before: Record | None, intent: Intent, free: int) -> tuple[int, int, str | None]:
        record, outcome = api.apply(before, intent, free)
        broken = promises.broken_by_deciding(before, record, intent, free)
        return self._records.of(record), self._told.of(Told(intent.revision, outcome)), broken

    def _hear(self, item: Item, which: int, lane: Lane) -> Iterator[ItemStep]:
        for number, intent in self._sent.members(lane.sent):
            silence = self._once(("silence", number), lambda r=intent.revision: self._told.of(Told(r, SILENCE)))  # type: ignore[misc]
            yield self._recorded(item, which, silence, Step("time out", False, item, None, intent))
        for number, told in self._told.members(lane.told):
            yield self._recorded(item, which, number, Step("record", True, item, None, told))

    def _recorded(self, item: Item, which: int, told: int, step: ItemStep) -> ItemStep:
        before = item.lanes[which].row
        row, broken = self._once(("record", before, told), partial(self._join, before, told))
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
        return step._replace(after=after, broken=broken)

    def _join(self, before: int, number: int) -> tuple[int, str | None]:
        row, told = self._rows[before], self._told[number]
        after = transitions.record_outcome(row, 0, told.revision, told.outcome, 0, 0)
        broken = promises.broken_by_recording(row, after) or promises.broken_by_answering(row, told.outcome)
        return self._row(after), broken

    def _what_the_caller_does(self, item: Item) -> Iterator[ItemStep]:
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
                yield from self._put_in_again(item, practice.put_in_again(rows, quantity), quantity)
            elif row.revision % practice.STRIDE < self._bounds.changed:
                yield from self._change(f"want {quantity}", item, quantity, partial(transitions.hold, row, quantity, 0))

    def _put_in_again(self, item: Item, rows: Sequence[Reservation], wanted: int) -> Iterator[ItemStep]:
        if len(rows) > self._bounds.ids:
            return
        lanes = item.lanes if len(rows) == len(item.lanes) else (*item.lanes, self._new_lane())
        last = self._with_row(lanes[-1], self._row(rows[-1]))
        yield Step(f"want {wanted} under a new id", False, Item(wanted, item.elsewhere, (*lanes[:-1], last)))

    def _change(self, verb: str, item: Item, wanted: int, change: Callable[[], Reservation]) -> Iterator[ItemStep]:
        try:
            after = change()
        except ValueError:
            # The rule itself keeps every writer from it.
            return
        broken = promises.broken_by_recording(self.row(item), after)
        yield Step(verb, False, self.with_row(item, after)._replace(wanted=wanted), broken)

    def _aged(self, lane: Lane) -> Lane:
        told = 0
        for _, one in self._told.members(lane.told):
            told = self._told.add(told, aged_answer(one))
        record = self._records.of(aged_record(self._records[lane.record]))
        return Lane(self._row(aged_row(self._rows[lane.row])), record, lane.sent, told)
