"""What must be true of a run: at every effect, after every commit, at every read, and at its end."""

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from cartgrpc.v1 import cart_pb2

from cart_grpc.carts.progress import HOLD_MARGIN_US
from cart_grpc.protocol.reservation import FINAL, Disposition, Observed
from cart_grpc.simulator.rules import Record
from cart_grpc.simulator.stock import Stock
from tests.simulation.histories import History, revision_of
from tests.simulation.operations import Operation

State = cart_pb2.Reservation.State
_ROWS = (
    "SELECT reservation_id, revision, intent_revision, observed_revision, lease_epoch, state, disposition, quantity, "
    "granted_quantity, due_time, lease_expire_time, attempt_count, reserved_cap, expire_time, waiting, last_error, "
    "reason, seal_reason, finish_time, uncertain_until FROM reservations"
)
_RISING = (1, 2, 3, 4)
Row = tuple[Any, ...]


class Checks:
    """`violate` hears of each broken promise. The database is read directly, outside every transaction."""

    def __init__(
        self,
        raw: sqlite3.Connection,
        totals: Mapping[str, int],
        violate: Callable[[str], None],
        now: Callable[[], int],
        reasons: Collection[str],
    ) -> None:
        self._raw = raw
        self._totals = totals
        self._violate = violate
        self._now = now
        self._reasons = reasons
        self._rows: dict[str, Row] = {}
        self._carts: dict[Row, Row] = {}
        self._changes = 0
        self._live: defaultdict[Row, dict[str, int]] = defaultdict(dict)
        self._records: dict[str, Record] = {}
        self._items: dict[str, Row] = {}
        # Who committed the claim of a reservation and epoch.
        self._owners: dict[tuple[str, int], str] = {}
        self._revisions: dict[str, int] = {}
        self._claimed: set[tuple[str, str]] = set()
        # By cart: every etag revision that was ever committed, and those at which the cart ended by itself.
        self._etags: defaultdict[str, set[int]] = defaultdict(set)
        self._expired: defaultdict[str, set[int]] = defaultdict(set)
        self._reads: list[tuple[str, int, dict[str, int]]] = []

    # At every effect.

    def decided(self, record: Record, time: int) -> None:
        """One live reservation per item, never more held than there is, none that the database has not heard of."""
        reservation_id = record.intent.reservation_id
        self._records[reservation_id] = record
        item = self._item_of(reservation_id)
        live = self._live[item]
        live.pop(reservation_id, None)
        if record.granted:
            live[reservation_id] = record.granted
        if len(live) > 1:
            self._violate(f"two live reservations for {item}: {live}")
        held = sum(one.granted for one in self._records.values() if one.sku == record.sku)
        row = self._rows.get(reservation_id)
        if row is not None:
            self._check_shown(row)
        if held > self._totals[record.sku]:
            self._violate(f"{held} of {record.sku} are held, and there are {self._totals[record.sku]}")

    def _item_of(self, reservation_id: str) -> Row:
        item = self._items.get(reservation_id)
        if item is None:
            query = "SELECT user_id, cart_id, item_id FROM reservations WHERE reservation_id = ?"
            item = self._raw.execute(query, (reservation_id,)).fetchone()
            if item is None:
                self._violate(f"{reservation_id} was decided, and no row knows it")
                item = ("nobody", "", reservation_id)
            self._items[reservation_id] = item
        return item

    def sent(self, process_name: str, reservation_id: str) -> None:
        """A message is only sent under a claim that was committed."""
        if (process_name, reservation_id) not in self._claimed:
            self._violate(f"{process_name} asked for {reservation_id} without a claim")

    # After every commit.

    def committed(self, process_name: str, began: int) -> Iterable[Row]:
        """What `process_name` committed, in a transaction that `began` then.

        Returns the reservations' rows that are new or changed.
        """
        changes = self._raw.total_changes
        if changes == self._changes:
            return []
        self._changes = changes
        rows = {row[0]: row for row in self._raw.execute(_ROWS)}
        changed = [row for name, row in rows.items() if self._rows.get(name) != row]
        changed_carts = self._check_carts()
        for row in changed:
            before = self._rows.get(row[0])
            self._revisions[row[0]] = row[1]
            self._check_row(before, row)
            self._check_claim(process_name, began, before, row)
            self._check_shown(row)
            if before is not None and self._item_of(row[0])[:2] not in changed_carts:
                self._check_still(began, before)
        for name in self._rows.keys() - rows.keys():
            self._check_gone(self._rows[name])
        self._rows = rows
        return changed

    def _check_row(self, before: Row | None, after: Row) -> None:
        if before is None:
            return
        if any(after[column] < before[column] for column in _RISING):
            self._violate(f"what only rises fell: {before} became {after}")
        if before[5] in FINAL and after[5] != before[5]:
            self._violate(f"a final state was left: {before} became {after}")
        if before[6] == Disposition.RELEASE and after[6] != Disposition.RELEASE:
            self._violate(f"what was to be released is not any more: {before} became {after}")
        record = self._records.get(after[0])
        if after[3] > before[3] and (record is None or record.intent.revision < after[3]):
            self._violate(f"observed what was never decided: {after} beside {record}")

    def _check_claim(self, process_name: str, began: int, before: Row | None, after: Row) -> None:
        """Nobody but its owner touches a claim, unless there is news from the Reservation API or from a caller."""
        # One batch may add, record or release, and claim behind it.
        claimed = after[10] is not None and after[4] > (before[4] if before is not None else 0)
        owner = self._owners.get((before[0], before[4])) if before is not None else None
        if claimed:
            self._owners[after[0], after[4]] = process_name
            self._claimed.add((process_name, after[0]))
        if before is None or before[10] is None or owner == process_name:
            return
        # A late answer for what was claimed ends the claim, whoever brings it.
        answered = after[3] >= before[1]
        if claimed and before[10] > began and after[6] == before[6] and not answered:
            self._violate(f"{process_name} claimed what {owner} had claimed: {before} became {after}")
        if after[1:5] == before[1:5] and after[9:11] != before[9:11]:
            self._violate(f"{process_name} touched a claim of {owner}: {before} became {after}")

    def _check_still(self, began: int, before: Row) -> None:
        """What is neither claimed nor due changes with its cart's revision only: replies are remembered by that."""
        is_due = before[9] is not None and before[9] <= began
        if before[10] is None and not is_due:
            self._violate(f"{before} changed, and the revision of its cart did not rise")

    def _check_shown(self, row: Row) -> None:
        """What callers are shown as reserved is held at this moment."""
        lapsed = row[13] is None or row[13] - HOLD_MARGIN_US <= self._now()
        if lapsed or row[5] not in (Observed.HELD, Observed.REJECTED):
            return
        record, shown = self._records.get(row[0]), min(row[8], row[12])
        if shown > (record.granted if record is not None else 0):
            self._violate(f"{shown} are shown as reserved by {row}, and held is {record}")

    def _check_gone(self, before: Row) -> None:
        if before[5] not in FINAL or before[3] < before[1]:
            self._violate(f"a reservation that was not over is gone: {before}")

    def _check_carts(self) -> Collection[Row]:
        """Returns the carts that are new or changed: user and cart id."""
        changed = set()
        query = "SELECT slice, user_id, cart_id, state, revision, etag_revision, uid, expire_time FROM carts"
        for row in self._raw.execute(query):
            before = self._carts.get(row[:3])
            if before == row:
                continue
            name = f"users/{row[1]}/carts/{row[2]}"
            if before is not None and row[4] <= before[4]:
                self._violate(f"{name} changed and its revision did not rise: {before} became {row}")
            self._carts[row[:3]] = row
            changed.add(row[1:3])
            if before is None or before[5] != row[5]:
                self._etags[name].add(row[5])
                if row[3] == cart_pb2.Cart.STATE_EXPIRED:
                    self._expired[name].add(row[5])
                elif before is not None and _ended_unseen(before, row, self._now()):
                    self._expired[name].add(before[5] + 1)
        return changed

    # At every read.

    def highest_acknowledged(self, operations: Sequence[Operation], cart: str) -> int:
        """The highest revision that a caller was told."""
        return max((revision_of(one) for one in operations if one.cart == cart and one.reply is not None), default=0)

    def read(self, cart: str, found: cart_pb2.Cart, known: int) -> None:
        """What is shown as reserved is held now, and what was acknowledged before is seen."""
        if found.revision < known:
            self._violate(f"{cart}: revision {found.revision} was read after {known} had been acknowledged")
        self._reads.append((found.name, found.revision, {item.name: item.quantity for item in found.items}))

    # At the end.

    @property
    def revision_count(self) -> int:
        """How many messages there were to send, those of purged rows included."""
        return sum(self._revisions.values())

    def unsettled(self) -> list[Row]:
        """The rows that have something left to do."""
        now = self._now()
        return [
            row
            for row in self._rows.values()
            if row[3] < row[1] or (row[9] is not None and (row[9] <= now or _is_lapsed(row, now)))
        ]

    def settled(self, stock: Stock, now: int) -> None:
        """Each item is reserved in full, or says why not, and holds what it says; nothing else holds anything."""
        stock.levels("", now)
        live = {name: record.granted for name, record in self._records.items() if record.granted}
        query = (
            "SELECT i.cart_id, i.user_id, i.sku, i.quantity, r.reservation_id, r.state, r.granted_quantity, "
            "r.expire_time, r.seal_reason, r.reason, r.sku, r.disposition FROM items i "
            "LEFT JOIN reservations r USING (slice, reservation_id)"
        )
        for row in self._raw.execute(query):
            held = live.pop(row[4], 0)
            if row[4] is None or row[2] != row[10] or (row[11] != Disposition.HOLD and not row[8]):
                self._violate(f"an item without a reservation of its own: {row}")
            elif row[5] == Observed.HELD and not row[8]:
                if not held == row[6] == row[3]:
                    self._violate(f"{held} are held for {row}")
            elif not (row[8] or row[9]):
                self._violate(f"neither reserved nor a reason why not: {row}")
            elif held != row[6]:
                self._violate(f"{held} are held for {row}, which was refused")
            elif (row[8] or row[9]) not in self._reasons:
                self._violate(f"refused for no reason that there was: {row}")
        if live:
            self._violate(f"held for nobody: {live}")
        ended = "SELECT i.* FROM items i JOIN carts c USING (slice, user_id, cart_id) WHERE c.state > 6"
        for row in self._raw.execute(ended):
            self._violate(f"an item in a cart that has ended: {row}")

    def expired(self, patience: int) -> None:
        """No cart is still there that was left alone for `patience` microseconds longer than it may be."""
        idle = "SELECT user_id, cart_id, expire_time FROM carts WHERE state = 1 AND expire_time < ?"
        for row in self._raw.execute(idle, (self._now() - patience,)):
            self._violate(f"nobody ended it: {row}")

    def histories(self, operations: Sequence[Operation]) -> None:
        """Every cart is what its acknowledged operations make of it, one after the other, and nothing else."""
        query = "SELECT item_id, quantity FROM items WHERE user_id = ? AND cart_id = ?"
        for cart in sorted({operation.cart for operation in operations}):
            mine = [one for one in operations if one.cart == cart]
            # What became of a call without a request_id cannot be found out.
            if all(operation.resolved for operation in mine):
                _, user, _, cart_id = cart.split("/")
                found = dict(self._raw.execute(query, (user, cart_id)).fetchall())
                history = History(cart, self._etags[cart], self._expired[cart], self._violate)
                history.check([one for one in mine if one.reply is not None], found)


def _ended_unseen(before: Row, after: Row, now: int) -> bool:
    """Whether a cart was ended by itself and begun anew in one transaction, so that its end was never to be seen."""
    was_idle = before[3] == cart_pb2.Cart.STATE_ACTIVE and before[7] is not None and before[7] <= now
    return bool(was_idle and before[6] != after[6])


def _is_lapsed(row: Row, now: int) -> bool:
    """Whether a hold ran out, or is about to, and is to be held again."""
    return row[5] == Observed.EXPIRED or (row[13] is not None and row[13] - HOLD_MARGIN_US <= now)
