"""The memory of the simulator: reservations, stock and effects. Synchronous; the time is an argument.

Every change is an Entry, which is logged before it is applied. Applying the same entries again rebuilds the same
memory. The simulator never forgets: its memory grows with the number of decisions.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from cart_grpc.protocol.reservation import Disposition, Intent, Observed
from cart_grpc.simulator import rules
from cart_grpc.simulator.errors import BodyMismatch, RevisionTooLow
from cart_grpc.simulator.rules import StoredReservation


@dataclass(frozen=True, slots=True)
class Decided:
    """At `time`, a revision was decided or a hold expired; the result is `reservation`."""

    time: int
    reservation: StoredReservation


@dataclass(frozen=True, slots=True)
class StockSet:
    """At `time`, the stock of `sku` was set to `total` units: available, held and sold."""

    time: int
    sku: str
    total: int


Entry = Decided | StockSet


@dataclass(frozen=True, slots=True)
class Effect:
    """A decision or the expiry of a hold, with the number of units held or sold before and after it."""

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
"""The label with the id that a `basic` client chose. Several reservations may have the same id."""


@dataclass(frozen=True, slots=True)
class Levels:
    """The number of units of a sku that are available, held and sold.

    `available` is negative if a restart set the stock below the number of units held and sold.
    """

    available: int
    held: int
    committed: int


def _discard(_entry: Entry) -> None:
    """Log nothing: the memory ends with the process."""


class Stock:
    """A Reservation API without a network.

    `totals` is the number of units of each sku; every other sku has `default_total` units, or is unknown if that is
    None. `entries` are those of an earlier process, oldest first. `log` receives each new entry before it takes effect;
    if it raises, nothing changes.
    """

    def __init__(
        self,
        totals: Mapping[str, int] | None = None,
        *,
        default_total: int | None = 1_000_000,
        entries: Iterable[Entry] = (),
        log: Callable[[Entry], None] = _discard,
    ) -> None:
        self._totals = dict(totals or {})
        self._default_total = default_total
        self._reservations: dict[str, StoredReservation] = {}
        self._by_basic_id: defaultdict[str, list[str]] = defaultdict(list)
        self._held: Counter[str] = Counter()
        self._committed: Counter[str] = Counter()
        self._expiries: list[tuple[int, str]] = []
        self._effects: list[Effect] = []
        self._time = 0
        self._log = log
        for entry in entries:
            self._apply_entry(entry)

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        """Decide `intent` at `now` (microseconds), or return the reservation as of now if it was decided before.

        `sold_out` refuses a HOLD that was never decided. Raises RevisionTooLow if a higher revision was decided, and
        BodyMismatch if this revision was decided for a different body. Neither has an effect.
        """
        now = self._expire_due(now)
        before = self._reservations.get(intent.reservation_id)
        if before is not None:
            if intent.revision < before.intent.revision:
                raise RevisionTooLow(before)
            if intent.revision == before.intent.revision:
                if intent != before.intent:
                    raise BodyMismatch(intent.revision)
                return before
        after = rules.decide(
            before,
            intent,
            available=self._find_available(intent.sku),
            now=now,
            sold_out=sold_out and intent.disposition is Disposition.HOLD,
        )
        self._write(Decided(now, after))
        return after

    def find(self, reservation_id: str, now: int) -> StoredReservation | None:
        """Return the reservation as of `now`, None if the id is unknown."""
        self._expire_due(now)
        return self._reservations.get(reservation_id)

    def reserve(self, basic_id: str, sku: str, quantity: int, now: int, *, sold_out: bool = False) -> StoredReservation:
        """Reserve by the `basic` contract: a new reservation per call, without expiry. Its id is the next number."""
        labels = {BASIC_ID: basic_id}
        intent = Intent(str(len(self._reservations) + 1), 1, sku, quantity, Disposition.HOLD, 0, labels)
        return self.apply(intent, now, sold_out=sold_out)

    def find_live(self, basic_id: str, now: int) -> list[StoredReservation]:
        """Return the live reservations of a `basic` client's id, oldest first."""
        self._expire_due(now)
        found = (self._reservations[number] for number in self._by_basic_id.get(basic_id, ()))
        return [each for each in found if each.granted]

    def delete(self, number: str, now: int) -> StoredReservation | None:
        """Release a reservation that `reserve` made. Returns None if it holds nothing."""
        before = self.find(number, now)
        if before is None or not before.granted or BASIC_ID not in before.intent.labels:
            return None
        return self.apply(replace(before.intent, revision=2, disposition=Disposition.RELEASE), now)

    def set_stock(self, sku: str, quantity: int, now: int) -> None:
        """Make `quantity` units of `sku` available, in addition to those held and sold."""
        now = self._expire_due(now)
        self._write(StockSet(now, sku, quantity + self._held[sku] + self._committed[sku]))

    def levels(self, sku: str, now: int) -> Levels:
        """Return the stock of `sku` as of `now`. An unknown sku has 0 available units."""
        self._expire_due(now)
        return Levels(self._find_available(sku) or 0, self._held[sku], self._committed[sku])

    def effects(self, after_sequence: int, limit: int, now: int) -> list[Effect]:
        """Return up to `limit` effects with a sequence above `after_sequence`, in order."""
        self._expire_due(now)
        start = max(after_sequence, 0)
        return self._effects[start : start + limit]

    def _expire_due(self, now: int) -> int:
        """Expire the holds that have ended by `now`. Returns the time, which never goes back."""
        now = max(now, self._time)
        while self._expiries and self._expiries[0][0] <= now:
            time, reservation_id = self._expiries[0]
            stored = self._reservations[reservation_id]
            if stored.expire_time == time:
                self._write(Decided(time, rules.expire(stored)))
            heapq.heappop(self._expiries)
        self._time = now
        return now

    def _find_available(self, sku: str) -> int | None:
        total = self._totals.get(sku, self._default_total)
        return None if total is None else total - self._held[sku] - self._committed[sku]

    def _write(self, entry: Entry) -> None:
        self._log(entry)
        self._apply_entry(entry)

    def _apply_entry(self, entry: Entry) -> None:
        self._time = max(self._time, entry.time)
        if isinstance(entry, StockSet):
            self._totals[entry.sku] = entry.total
            return
        after = entry.reservation
        before = self._reservations.get(after.intent.reservation_id)
        self._reservations[after.intent.reservation_id] = after
        if before is not None:
            self._count(before, -before.granted)
        elif (basic_id := after.intent.labels.get(BASIC_ID)) is not None:
            self._by_basic_id[basic_id].append(after.intent.reservation_id)
        self._count(after, after.granted)
        if after.expire_time is not None:
            heapq.heappush(self._expiries, (after.expire_time, after.intent.reservation_id))
        self._effects.append(_to_effect(len(self._effects) + 1, entry.time, before, after))

    def _count(self, stored: StoredReservation, quantity: int) -> None:
        (self._committed if stored.state is Observed.COMMITTED else self._held)[stored.sku] += quantity


def _to_effect(sequence: int, time: int, before: StoredReservation | None, after: StoredReservation) -> Effect:
    expired = before is not None and before.intent.revision == after.intent.revision
    return Effect(
        sequence=sequence,
        time=time,
        reservation_id=after.intent.reservation_id,
        revision=after.granted_revision if expired else after.intent.revision,
        sku=after.sku,
        state=Observed.EXPIRED if expired else after.state,
        quantity_before=before.granted if before is not None else 0,
        quantity_after=after.granted,
        labels=after.intent.labels,
    )
