"""What is promised of the stock, of the rows, and to the caller: in every world, and at every step."""

from collections.abc import Iterable, Iterator, Sequence

from cart_grpc.carts.progress import Progress, ProgressState
from cart_grpc.protocol import transitions
from cart_grpc.protocol.reservation import FINAL, Answer, Decision, Disposition, Intent, NoAnswer, Observed, Reservation
from cart_grpc.simulator.rules import StoredReservation as Record
from tests.protocol import api, practice
from tests.protocol.worlds import STOCK, lapsed

TWICE = "two reservations of one item at once"
OVERSOLD = "more is held and sold than there is"
OWN_WAY = "our own hold was what made it out of stock"
LEAKED = "something is held for what is released"
SOLD_ANYWAY = "what was taken out of the cart is sold"
STRANDED = "a row that has something to say is never due"
OVERSTATED = "more is shown as reserved than is held"
HIDDEN = "more is held than a rejected item shows"
NOT_OVER = "a message under way can still take effect for a rejected item"
FALLEN = "what only rises has fallen"
UNDONE = "what was final has changed"
FLICKER = "a renewal shows"
UNHEARD = "what is sold and was not to be sold raises no alarm"
TORN = "one item is sold without the other"

Records = Sequence[Record | None]


def broken_by_stock(rows: Sequence[Reservation], records: Records, elsewhere: int) -> Iterator[str]:
    """Promises about one item's stock. `rows` and `records` are those of the ids used for it, oldest first."""
    granted = [record.granted if record else 0 for record in records]
    if sum(map(bool, granted)) > 1:
        yield TWICE
    if sum(granted) + elsewhere > STOCK:
        yield OVERSOLD
    for row, record in zip(rows, records, strict=True):
        released = row.disposition is Disposition.RELEASE
        if released and record and record.state is Observed.COMMITTED:
            if row.revision < practice.STRIDE:
                # A restored database may not know of the sale.
                yield SOLD_ANYWAY
        elif released and row.settled and record and record.granted:
            yield LEAKED
        if row.due_time is None and not (row.settled or row.waiting):
            yield STRANDED


def broken_to_the_caller(
    row: Reservation, shown: Progress, record: Record | None, sent: Iterable[Intent], free: int
) -> Iterator[str]:
    """Promises about what is shown of an item that is in the cart, of which others leave `free`."""
    held = record.granted if record else 0
    if shown.reserved_quantity > held:
        yield OVERSTATED
    if shown.state is not ProgressState.REJECTED or _is_being_renewed(row, record):
        return
    if record and shown.reserved_quantity != held and not lapsed(record.expire_time):
        yield HIDDEN
    for intent in sent:
        # A renewal asks again for what was refused: that is no message of old.
        undecided = record is None or intent.revision > record.intent.revision
        if undecided and intent.revision <= row.intent_revision and api.decide(record, intent, free).granted != held:
            yield NOT_OVER


def _is_being_renewed(row: Reservation, record: Record | None) -> bool:
    return record is not None and record.intent.revision > row.intent_revision


def broken_by_answering(row: Reservation, outcome: Answer | NoAnswer) -> str | None:
    """Whoever is told of a sale that nobody wanted hears of it."""
    unwanted = row.disposition is not Disposition.COMMIT and row.state is not Observed.COMMITTED
    sold = isinstance(outcome, Decision) and outcome.state is Observed.COMMITTED
    return UNHEARD if unwanted and sold and transitions.find_alarm(row, outcome) is None else None


def broken_by_recording(before: Reservation, after: Reservation) -> str | None:
    """Promises that a row keeps from one state to the next."""
    for name in ("revision", "intent_revision", "observed_revision"):
        if getattr(after, name) < getattr(before, name):
            return FALLEN
    return UNDONE if before.state in FINAL and after.state is not before.state else None


def broken_by_deciding(before: Record | None, after: Record | None, intent: Intent, free: int) -> str | None:
    """Promises that the API keeps with a decision on `intent`, of which `free` were to be had."""
    if before is None:
        new = after
    else:
        if before.state in FINAL and (after is None or after.state is not before.state):
            return UNDONE
        new = after if after != before else None
    refused = new is not None and new.intent == intent and new.state is Observed.REJECTED
    return OWN_WAY if refused and intent.quantity <= free else None


def broken_by_claiming(before: Reservation, after: Reservation, wanted: int) -> str | None:
    """A claim is seen by nobody."""
    seen = [(row.reconciling, practice.shown(row, wanted)) for row in (before, after)]
    return FLICKER if wanted and seen[0] != seen[1] else None
