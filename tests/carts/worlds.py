"""A world of the reservation protocol: the database, the network, and a Reservation API that keeps its rules."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from cart_grpc.carts.reservation import FINAL, Decision, Disposition, Observed, Refusal, Reservation
from tests.carts.examples import a_hold

STOCK = 2
QUANTITIES = (1, 2)
IDS = ("first", "second")
FOREVER = 1 << 60

HOLD, RELEASE = Disposition.HOLD, Disposition.RELEASE


class Message(NamedTuple):
    """An intent under way; `which` is the index of its reservation."""

    which: int
    revision: int
    disposition: Disposition
    quantity: int


class Decided(NamedTuple):
    """What the Reservation API remembers of an id: the highest message that it decided, and the decision."""

    message: Message
    state: Observed
    granted: int


class Heard(NamedTuple):
    """An answer to the message of a revision; nothing decided means that it was refused."""

    which: int
    revision: int
    decided: Decided | None


class World(NamedTuple):
    """Everything: the database, the network, the Reservation API. `wanted` is 0 while the item is not in the cart."""

    wanted: int
    rows: tuple[Reservation, ...]
    sent: frozenset[Message]
    answers: frozenset[Heard]
    api: tuple[Decided | None, ...]
    elsewhere: int


class Labels(dict[str, str]):
    """No labels, but hashable, so that worlds can be told apart."""

    def __hash__(self) -> int:  # type: ignore[override]
        return 0


def first_worlds() -> Iterator[World]:
    for wanted in QUANTITIES:
        for elsewhere in (0, 1):
            rows = (made(0, wanted, waiting=False),)
            yield World(wanted, rows, frozenset(), frozenset(), (None, None), elsewhere)


def made(which: int, quantity: int, *, waiting: bool) -> Reservation:
    due_at = None if waiting else 0
    return a_hold(quantity, reservation_id=IDS[which], labels=Labels(), waiting=waiting, due_at=due_at)


def plain(row: Reservation) -> Reservation:
    """Without leases and attempts, which nothing here depends on. What is due, is due at once."""
    # When a hold is renewed is not of this world.
    due_at = None if row.due_at is None or row.settled else 0
    return replace(row, finish_time=None, lease_epoch=0, lease_until=None, attempt=0, last_error="", due_at=due_at)


def decide(world: World, message: Message) -> Decided:
    """What the API makes of a revision above all that it has decided for the id."""
    before = world.api[message.which]
    if before and before.state in FINAL:
        return Decided(message, before.state, before.granted)
    if message.disposition is RELEASE:
        return Decided(message, Observed.RELEASED, 0)
    own = before.granted if before else 0
    others = sum(one.granted for one in world.api if one and one is not before)
    fits = message.quantity + others + world.elsewhere <= STOCK
    return Decided(message, Observed.HELD, message.quantity) if fits else Decided(message, Observed.REJECTED, own)


def decision_of(decided: Decided) -> Decision:
    message, state, granted = decided
    return Decision(IDS[message.which], message.revision, state, granted, FOREVER if granted else None, "")


def outcome_of(heard: Heard) -> Decision | Refusal:
    return decision_of(heard.decided) if heard.decided else Refusal("NOT_FOUND", "")


def text_of(message: Message) -> str:
    quantity = f" {message.quantity}" if message.disposition is HOLD else ""
    return f"{IDS[message.which]}@{message.revision} {message.disposition.name}{quantity}"


def told_by(heard: Heard) -> str:
    told = f"{heard.decided.state.name} {heard.decided.granted}" if heard.decided else "refused"
    return f"{IDS[heard.which]}@{heard.revision} {told}"
