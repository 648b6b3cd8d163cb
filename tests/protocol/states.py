"""The states of the protocol model: the database, the network and the Reservation API, in small numbers.

Time is relative: `now` is always 0, and the step "time passes" subtracts one TICK from every time. This is sound, since
the rules only compare times with `now`. It merges states that differ only in their age.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

from cart_grpc.carts.model import Checkout
from cart_grpc.protocol.reservation import Answer, Decision, Disposition, Intent, NoAnswer, Reservation, StaleRevision
from cart_grpc.simulator.rules import StoredReservation
from tests.carts.examples import a_hold

T = TypeVar("T")

# With two pieces a request can ask for some, for all and for too many.
STOCK = 2
# With two ids, one can block the other. A model uses as many as its `Bounds.ids`.
IDS = ("first", "second", "third")
TICK = 600_000_000
# Longer than any exploration: the ttl of a hold that outlasts a checkout.
LASTING = 1 << 50


@dataclass(frozen=True)
class Bounds:
    """The bounds of an exploration. Seals, removals, commits and expired holds may exceed the revisions given here.

    - `changed`: the caller changes the quantity up to this revision.
    - `renewed`: holds that have not expired are renewed up to this revision.
    - `refused`: the API answers with a permanent failure up to this revision.
    - `commits`: a checkout begins up to this revision. `window`: its window is longer than a hold.
    - `short`: the API may hold for less time than it was asked for. `operators`: they release reservations of a
      checkout, and end it.
    - `ids`: how many times the item is added. `items`: how many items the cart has.
    - `ticks`: how many times time passes; each tick is long enough for every hold to expire.
    - `rivals`: whether other customers take a piece and return it.
    - `callers`: whether callers change and remove items.
    - `restores`: whether the database may be lost and restored from a backup.
    """

    changed: int = 1
    renewed: int = 1
    refused: int = 0
    ids: int = 1
    ticks: int = 0
    items: int = 1
    quantities: tuple[int, ...] = (1, 2)
    rivals: bool = False
    commits: int = 0
    window: bool = False
    short: bool = False
    operators: bool = False
    callers: bool = True
    restores: bool = False


class RevisionOutcome(NamedTuple):
    """The outcome of a call for one revision."""

    revision: int
    outcome: Answer | NoAnswer


class IdState(NamedTuple):
    """One reservation id: its row, the API's record of it, and all messages ever sent and answers ever given.

    The values are interned numbers; `sent` and `outcomes` are bit sets of them. The model needs no workers: a worker
    that pauses, crashes or is overtaken is a message or answer that arrives late or never.
    """

    row: int
    record: int
    sent: int = 0
    outcomes: int = 0


class ItemState(NamedTuple):
    """One item: the quantity wanted, the quantity that other customers have, and the ids used for it, oldest first."""

    wanted: int
    elsewhere: int
    ids: tuple[IdState, ...]


Backup = tuple[tuple[int, int], ...]


class ModelState(NamedTuple):
    """A state of the model. `backup` has each item's quantity and row; it is () once restored.

    `checkout` is None while the cart is ACTIVE.
    """

    items: tuple[ItemState, ...]
    checkout: Checkout | None = None
    ticks: int = 0
    backup: Backup | None = None


class Interner(Generic[T]):
    """Maps each value to a small number, so that states are tuples of integers: fast to hash, compare and sort."""

    def __init__(self) -> None:
        self._numbers: dict[T, int] = {}
        self._values: list[T] = []
        self._members: dict[int, tuple[tuple[int, T], ...]] = {}

    def of(self, value: T) -> int:
        """The number of `value`."""
        number = self._numbers.setdefault(value, len(self._values))
        if number == len(self._values):
            self._values.append(value)
        return number

    def __getitem__(self, number: int) -> T:
        return self._values[number]

    def add(self, members: int, value: T) -> int:
        """The bit set `members` with `value` added."""
        return members | 1 << self.of(value)

    def members(self, members: int) -> tuple[tuple[int, T], ...]:
        """The values in the bit set `members`, each with its number."""
        if members not in self._members:
            numbers = (number for number in range(members.bit_length()) if members >> number & 1)
            self._members[members] = tuple((number, self._values[number]) for number in numbers)
        return self._members[members]


def new_row(which: int, quantity: int, *, waiting: bool) -> Reservation:
    """The row of an item that was just added, for the id number `which`."""
    due_time = None if waiting else 0
    return a_hold(quantity, reservation_id=IDS[which], ttl_us=TICK, waiting=waiting, due_time=due_time)


def normalized(row: Reservation) -> Reservation:
    """The row without leases and attempts, on which the model does not depend. A due time becomes 0."""
    due_time = None if row.due_time is None else 0
    return row._replace(
        finish_time=None, lease_epoch=0, lease_expire_time=None, attempt_count=0, last_error="", due_time=due_time
    )


def lapsed(time: int | None) -> bool:
    return time is not None and time <= 0


def aged_row(row: Reservation) -> Reservation:
    return row._replace(expire_time=_aged(row.expire_time))


def aged_record(record: StoredReservation | None) -> StoredReservation | None:
    return record and replace(record, expire_time=_aged(record.expire_time))


def aged_outcome(outcome: RevisionOutcome) -> RevisionOutcome:
    match outcome.outcome:
        case Decision() as decision:
            return outcome._replace(outcome=replace(decision, expire_time=_aged(decision.expire_time)))
        case StaleRevision(current):
            return outcome._replace(outcome=StaleRevision(replace(current, expire_time=_aged(current.expire_time))))
    return outcome


def _aged(time: int | None) -> int | None:
    return time if time is None or time >= LASTING else max(time - TICK, 0)


def describe(verb: str, subject: object) -> str:
    """A step in words. `subject` is a message, an outcome, or None."""
    match subject:
        case Intent(reservation_id, revision, _, quantity, disposition):
            many = "" if disposition is Disposition.RELEASE else f" {quantity}"
            return f"{verb} {reservation_id}@{revision} {disposition.name}{many}"
        case RevisionOutcome(revision, Decision(name, _, state, granted)):
            return f"{verb} {name}@{revision} {state.name} {granted}"
        case RevisionOutcome(revision, StaleRevision(current)):
            return f"{verb} {current.reservation_id}@{revision} ABORTED by {current.revision}"
        case RevisionOutcome(revision):
            return f"{verb} revision {revision} failed"
    return verb


def with_id_state(item: ItemState, which: int, id_state: IdState) -> ItemState:
    ids = item.ids
    return item._replace(ids=(*ids[:which], id_state, *ids[which + 1 :]))


def initial_quantities(bounds: Bounds) -> Iterator[tuple[int, int]]:
    """All initial pairs of the quantity wanted and the quantity that other customers have."""
    for wanted in bounds.quantities:
        for elsewhere in (0, 1):
            yield wanted, elsewhere
