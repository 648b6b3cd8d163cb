"""The invariants of merges, in every state and at every transaction. They know nothing of how a row is superseded."""

from collections.abc import Iterator, Sequence

from cart_grpc.carts.model import Line
from cart_grpc.carts.progress import held_quantity
from cart_grpc.names import CartKey
from cart_grpc.protocol.reservation import Disposition, Reservation
from cart_grpc.simulator.rules import StoredReservation
from tests.protocol import invariants
from tests.protocol.tables import Tables

KEPT_TOO_LONG = "a reservation without an item is not released although the item's own is decided"
RELEASED_EARLY = "a certain hold is released before the item's own reservation is decided"
SHRUNK = "a merge or a refusal takes a certain hold away"
ASKS_OTHERWISE = "a reservation asks for another quantity than its item has"
ASKED_WITHOUT_END = "the service asks without end for a refused quantity"
UNSEEN = "a reservation changed, but not the revision of its cart"


def check_tables(tables: Tables, records: Sequence[StoredReservation | None]) -> Iterator[str]:
    """Yield the violations about the rows and the records of the Reservation API, in the same order."""
    for row, record in zip(tables.rows, records, strict=True):
        if row.disposition is Disposition.RELEASE and row.settled and record and record.granted:
            yield invariants.LEAKED
        if row.due_time is None and not (row.settled or row.waiting):
            yield invariants.STRANDED
    for line in tables.lines:
        row = line.reservation
        if row.quantity != line.item.quantity and not (row.is_closed or row.seal_reason):
            yield ASKS_OTHERWISE
    for row in tables.itemless:
        if not row.is_closed and not _is_awaited(row, tables):
            yield KEPT_TOO_LONG


def _is_awaited(row: Reservation, tables: Tables) -> bool:
    """Whether the reservation without an item has to wait for the answer to the reservation of its cart's item."""
    line = tables.find_line(row.cart)
    return line is not None and not (line.reservation.settled or line.reservation.is_closed)


def check_merge(before: Tables, after: Tables) -> str | None:
    """Find a violation of a merge: the larger one of the certain holds stays, and so does the other one if needed."""
    for line in after.lines:
        most = max(_certain(old) for old in before.lines)
        certain = _certain(line)
        if certain < min(most, line.item.quantity):
            return SHRUNK
        is_enough = line.reservation.is_closed or certain >= line.item.quantity
        if not is_enough and _released(line.item.cart, before, after):
            return RELEASED_EARLY
    return None


def check_decision(before: Tables, after: Tables) -> str | None:
    """Find a violation of a record of a decision of the Reservation API."""
    for line in after.lines:
        old = before.find_line(line.item.cart)
        if old is None:
            continue
        if _certain(line) < min(_certain(old), line.item.quantity):
            return SHRUNK
        row = line.reservation
        is_decided = row.is_closed or row.observed_revision >= old.reservation.revision
        if not is_decided and _released(line.item.cart, before, after):
            return RELEASED_EARLY
    return None


def _certain(line: Line) -> int:
    return 0 if line.reservation.is_closed else held_quantity(line.reservation, 0)


def _released(cart: CartKey, before: Tables, after: Tables) -> list[Reservation]:
    """The reservations of a cart with a certain hold that a transaction releases."""
    return [
        new
        for old, new in zip(before.rows, after.rows, strict=False)
        if new.cart == cart and not old.is_closed and new.disposition is Disposition.RELEASE and held_quantity(old, 0)
    ]


def asks(before: Tables, after: Tables) -> bool:
    """Whether a transaction asks for a quantity under a new revision. A seal asks for the quantity that is held."""
    return any(
        new.intent_revision > old.intent_revision and new.disposition is Disposition.HOLD and not new.seal_reason
        for old, new in zip(before.rows, after.rows, strict=False)
    )
