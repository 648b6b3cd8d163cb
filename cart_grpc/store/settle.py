"""Recording without reading: the common answers of a batch are one guarded UPDATE.

Most answers are decisions for the revision that was sent, and come while their claim is still in force. Such a row is
as the claim returned it, so the row after the record is known before the row is read. `settle` writes these rows if the
guard of `settle_statements` finds them unchanged. The batch folds all other records as usual. To read and write whole
rows takes twice the CPU: see docs/performance.md.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from cart_grpc.commands.record import Recorded, RecordOutcome, Settlement
from cart_grpc.names import CartKey
from cart_grpc.store.queries import WriteQueries


class Settled(NamedTuple):
    """The settled records of a batch.

    `answers`: a Recorded for each record that is settled, None for each that is to be folded. `changed`: the carts of
    the settled records. `due`: a settled reservation is due.
    """

    answers: Sequence[Recorded | None]
    changed: frozenset[CartKey]
    due: bool


def settle(queries: WriteQueries, connection: Connection, records: Sequence[RecordOutcome], now: int) -> Settled:
    """Settle the common ones of `records`, whose users are locked, and raise the revisions of their carts."""
    offers: list[Settlement | None] = []
    seen: set[str] = set()
    for record in records:
        # A second record of the same reservation must see the first.
        is_first = record.claimed.reservation_id not in seen
        seen.add(record.claimed.reservation_id)
        offers.append(_find_settlement(record, now) if is_first else None)
    changes = [
        (record.claimed, offer.reservation, offer.is_visible)
        for record, offer in zip(records, offers, strict=True)
        if offer
    ]
    written = queries.settle(connection, changes) if changes else set()
    settled = [offer if offer and offer.reservation.reservation_id in written else None for offer in offers]
    rows = [each.reservation for each in settled if each]
    return Settled(
        [each.recorded if each else None for each in settled],
        frozenset(row.cart for row in rows),
        any(row.due_time is not None and row.due_time <= now for row in rows),
    )


def _find_settlement(record: RecordOutcome, now: int) -> Settlement | None:
    try:
        return record.settle(now)
    except Exception:  # noqa: BLE001 - a bug in one record must not fail the others: it is folded, and answered alone
        return None
