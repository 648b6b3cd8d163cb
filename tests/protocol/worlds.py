"""A world of the reservation protocol: the database, the network, and the Reservation API, within small numbers.

Time has no zero: `now` is always 0, and the step that lets time pass takes one TICK from every time there is. That is
sound, since every rule only asks whether a time has come, and it keeps worlds that differ in their age alone from being
told apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Generic, NamedTuple, TypeVar

from cart_grpc.protocol.reservation import Answer, Decision, Disposition, Intent, NoAnswer, Reservation, StaleRevision
from cart_grpc.simulator.rules import StoredReservation as Record
from tests.carts.examples import a_hold

T = TypeVar("T")

# Two pieces are the fewest of which one can have some, all and too many.
STOCK = 2
# Two ids are the fewest of which one can stand in the other's way.
IDS = ("first", "second", "third")
TICK = 600_000_000
# Longer than any exploration: a hold that outlasts the window of a checkout.
LASTING = 1 << 50


class Phase(IntEnum):
    """Where the cart is in its checkout."""

    OPEN = 0
    CHECKING_OUT = 1
    COMPLETING = 2
    CHECKED_OUT = 3


@dataclass(frozen=True)
class Bounds:
    """What may happen how often. What a seal, a removal, a commit or a lapsed hold adds comes on top.

    `changed`, `renewed`, `refused` and `commits`: up to which revision a caller changes the quantity, a hold that has
    not lapsed is renewed, the API answers an error that it does not remember, and the cart is checked out. `window`:
    whether a checkout waits for its holds to be extended first. `ids`: how often the item is put in. `ticks`: how often
    time passes, each time enough for every hold to run out. `rivals`: whether others take a piece and give it back.
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
    restores: bool = False


class Told(NamedTuple):
    """What became of the message of a revision."""

    revision: int
    outcome: Answer | NoAnswer


class Lane(NamedTuple):
    """One reservation id: its row, what the API remembers of it, and all that was ever sent and answered.

    All by their numbers; what was sent and answered as sets of bits. A worker that reads a row and then stands still,
    crashes or is overtaken is a message that arrives late or never; so there is no need to tell workers apart.
    """

    row: int
    record: int
    sent: int = 0
    told: int = 0


class Item(NamedTuple):
    """How much of one sku is in the cart, and how much of it others have; the ids used for it, oldest first."""

    wanted: int
    elsewhere: int
    lanes: tuple[Lane, ...]


Backup = tuple[tuple[int, int], ...]


class World(NamedTuple):
    """Everything. `ticks` is how often time has passed; `backup` each item's quantity and row, () once restored."""

    items: tuple[Item, ...]
    phase: Phase = Phase.OPEN
    ticks: int = 0
    backup: Backup | None = None


class Numbers(Generic[T]):
    """Gives each value a small number, so that worlds are tuples of integers: quick to compare, and always in order."""

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
        """The set `members` with `value` in it."""
        return members | 1 << self.of(value)

    def members(self, members: int) -> tuple[tuple[int, T], ...]:
        """The values in the set `members`, each with its number."""
        if members not in self._members:
            numbers = (number for number in range(members.bit_length()) if members >> number & 1)
            self._members[members] = tuple((number, self._values[number]) for number in numbers)
        return self._members[members]


def made(which: int, quantity: int, *, waiting: bool) -> Reservation:
    """The row of an item that was just put in."""
    due_time = None if waiting else 0
    return a_hold(quantity, reservation_id=IDS[which], ttl_us=TICK, waiting=waiting, due_time=due_time)


def plain(row: Reservation) -> Reservation:
    """Without leases and attempts, which nothing here depends on. What is due, is due at once."""
    due_time = None if row.due_time is None else 0
    return row._replace(
        finish_time=None, lease_epoch=0, lease_expire_time=None, attempt_count=0, last_error="", due_time=due_time
    )


def lapsed(time: int | None) -> bool:
    return time is not None and time <= 0


def aged_row(row: Reservation) -> Reservation:
    return row._replace(expire_time=_aged(row.expire_time))


def aged_record(record: Record | None) -> Record | None:
    return record and replace(record, expire_time=_aged(record.expire_time))


def aged_answer(told: Told) -> Told:
    match told.outcome:
        case Decision() as decision:
            return told._replace(outcome=replace(decision, expire_time=_aged(decision.expire_time)))
        case StaleRevision(current):
            return told._replace(outcome=StaleRevision(replace(current, expire_time=_aged(current.expire_time))))
    return told


def _aged(time: int | None) -> int | None:
    return time if time is None or time >= LASTING else max(time - TICK, 0)


def text_of(verb: str, what: object) -> str:
    """A step in words. `what` is a message, or an answer to a reservation's message, or nothing that needs words."""
    match what:
        case Intent(reservation_id, revision, _, quantity, disposition):
            many = "" if disposition is Disposition.RELEASE else f" {quantity}"
            return f"{verb} {reservation_id}@{revision} {disposition.name}{many}"
        case Told(revision, Decision(name, _, state, granted)):
            return f"{verb} {name}@{revision} {state.name} {granted}"
        case Told(revision, StaleRevision(current)):
            return f"{verb} {current.reservation_id}@{revision} ABORTED by {current.revision}"
        case Told(revision):
            return f"{verb} revision {revision} refused"
    return verb


def with_lane(item: Item, which: int, lane: Lane) -> Item:
    lanes = item.lanes
    return item._replace(lanes=(*lanes[:which], lane, *lanes[which + 1 :]))


def firsts(bounds: Bounds) -> Iterator[tuple[int, int]]:
    """How many are wanted, and how many others have, when a world begins."""
    for wanted in bounds.quantities:
        for elsewhere in (0, 1):
            yield wanted, elsewhere
