"""The simulator's memory: reservations, stock and the log of effects. Synchronous; time comes in as an argument.

Everything that changes it is an Entry, written to the log before memory follows, so that applying the same entries
again rebuilds the same memory. Nothing is ever forgotten, so rule 7's watermark does nothing here, and memory grows
with the number of decisions.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from cart_grpc.protocol.reservation import Disposition, Intent, Observed
from cart_grpc.simulator import rules
from cart_grpc.simulator.errors import BodyMismatch, Stale
from cart_grpc.simulator.rules import Record


@dataclass(frozen=True, slots=True)
class Decided:
    """A revision was decided, or a hold ran out, at `time`: now it is `record`."""

    time: int
    record: Record


@dataclass(frozen=True, slots=True)
class StockSet:
    """There are `total` pieces of `sku` altogether: free, held and sold."""

    time: int
    sku: str
    total: int


Entry = Decided | StockSet


@dataclass(frozen=True, slots=True)
class Effect:
    """A decision, or the end of a hold, and how many pieces were held or sold before and after it."""

    sequence: int
    time: int
    reservation_id: str
    revision: int
    sku: str
    state: Observed
    quantity_before: int
    quantity_after: int
    labels: Mapping[str, str]


BASIC_ID = "basic.id"
"""The label that has the id of the `basic` contract's caller: many reservations may have the same."""


@dataclass(frozen=True, slots=True)
class Levels:
    """How many pieces of a sku are free (below 0 when the stock was cut under what is held), held and sold."""

    available: int
    held: int
    committed: int


def _forget(_entry: Entry) -> None:
    """Memory alone: no log outlives the process."""


class Stock:
    """A Reservation API without its network.

    `totals` says how many pieces there are of each sku, `default_total` of any other, None if there are no others.
    `entries` are those of an earlier life, oldest first; `log` is given each new one and raises if it cannot keep it,
    in which case nothing changes.
    """

    def __init__(
        self,
        totals: Mapping[str, int] | None = None,
        *,
        default_total: int | None = 1_000_000,
        entries: Iterable[Entry] = (),
        log: Callable[[Entry], None] = _forget,
    ) -> None:
        self._totals = dict(totals or {})
        self._default_total = default_total
        self._records: dict[str, Record] = {}
        self._by_basic_id: defaultdict[str, list[str]] = defaultdict(list)
        self._held: Counter[str] = Counter()
        self._committed: Counter[str] = Counter()
        self._expiries: list[tuple[int, str]] = []
        self._effects: list[Effect] = []
        self._time = 0
        self._log = log
        for entry in entries:
            self._follow(entry)

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> Record:
        """Decide `intent` at `now` (microseconds) and return what it came to, as of now.

        `sold_out` refuses a HOLD never decided before. Raises Stale for a revision lower than one decided, and
        BodyMismatch for one that was decided for another body; neither has an effect.
        """
        now = self._advance(now)
        before = self._records.get(intent.reservation_id)
        if before is not None:
            if intent.revision < before.intent.revision:
                raise Stale(before)
            if intent.revision == before.intent.revision:
                if intent != before.intent:
                    raise BodyMismatch(intent.revision)
                return before
        after = rules.decide(
            before,
            intent,
            free=self._find_free(intent.sku),
            now=now,
            sold_out=sold_out and intent.disposition is Disposition.HOLD,
        )
        self._keep(Decided(now, after))
        return after

    def find(self, reservation_id: str, now: int) -> Record | None:
        """Return the reservation as of `now`, None if nothing was ever decided about it."""
        self._advance(now)
        return self._records.get(reservation_id)

    def reserve(self, basic_id: str, sku: str, quantity: int, now: int, *, sold_out: bool = False) -> Record:
        """Reserve for the `basic` contract, once more each time, under a number that is the next, and for good."""
        labels = {BASIC_ID: basic_id}
        intent = Intent(str(len(self._records) + 1), 1, sku, quantity, Disposition.HOLD, 0, labels)
        return self.apply(intent, now, sold_out=sold_out)

    def find_live(self, basic_id: str, now: int) -> list[Record]:
        """Return what the `basic` contract holds for an id, oldest first."""
        self._advance(now)
        records = (self._records[number] for number in self._by_basic_id.get(basic_id, ()))
        return [record for record in records if record.granted]

    def give_back(self, number: str, now: int) -> Record | None:
        """End what `reserve` began; None where it holds nothing."""
        before = self.find(number, now)
        if before is None or not before.granted or BASIC_ID not in before.intent.labels:
            return None
        return self.apply(replace(before.intent, revision=2, disposition=Disposition.RELEASE), now)

    def set_stock(self, sku: str, quantity: int, now: int) -> None:
        """Make `quantity` pieces of `sku` free; what is held and sold stays so."""
        now = self._advance(now)
        self._keep(StockSet(now, sku, quantity + self._held[sku] + self._committed[sku]))

    def levels(self, sku: str, now: int) -> Levels:
        """Return the stock of `sku` as of `now`; an unknown sku has none."""
        self._advance(now)
        return Levels(self._find_free(sku) or 0, self._held[sku], self._committed[sku])

    def effects(self, after_sequence: int, limit: int, now: int) -> list[Effect]:
        """Return up to `limit` effects with a sequence above `after_sequence`, in order."""
        self._advance(now)
        start = max(after_sequence, 0)
        return self._effects[start : start + limit]

    def _advance(self, now: int) -> int:
        """End the holds that are due, and return the time, which never goes back."""
        now = max(now, self._time)
        while self._expiries and self._expiries[0][0] <= now:
            time, reservation_id = self._expiries[0]
            record = self._records[reservation_id]
            if record.expire_time == time:
                self._keep(Decided(time, rules.expire(record)))
            heapq.heappop(self._expiries)
        self._time = now
        return now

    def _find_free(self, sku: str) -> int | None:
        total = self._totals.get(sku, self._default_total)
        return None if total is None else total - self._held[sku] - self._committed[sku]

    def _keep(self, entry: Entry) -> None:
        self._log(entry)
        self._follow(entry)

    def _follow(self, entry: Entry) -> None:
        self._time = max(self._time, entry.time)
        if isinstance(entry, StockSet):
            self._totals[entry.sku] = entry.total
            return
        after = entry.record
        before = self._records.get(after.intent.reservation_id)
        self._records[after.intent.reservation_id] = after
        if before is not None:
            self._count(before, -before.granted)
        elif (basic_id := after.intent.labels.get(BASIC_ID)) is not None:
            self._by_basic_id[basic_id].append(after.intent.reservation_id)
        self._count(after, after.granted)
        if after.expire_time is not None:
            heapq.heappush(self._expiries, (after.expire_time, after.intent.reservation_id))
        self._effects.append(_to_effect(len(self._effects) + 1, entry.time, before, after))

    def _count(self, record: Record, quantity: int) -> None:
        (self._committed if record.state is Observed.COMMITTED else self._held)[record.sku] += quantity


def _to_effect(sequence: int, time: int, before: Record | None, after: Record) -> Effect:
    ran_out = before is not None and before.intent.revision == after.intent.revision
    return Effect(
        sequence=sequence,
        time=time,
        reservation_id=after.intent.reservation_id,
        revision=after.granted_revision if ran_out else after.intent.revision,
        sku=after.sku,
        state=Observed.EXPIRED if ran_out else after.state,
        quantity_before=before.granted if before is not None else 0,
        quantity_after=after.granted,
        labels=after.intent.labels,
    )
