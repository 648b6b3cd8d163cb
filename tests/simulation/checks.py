"""The invariants of a run: checked at every decision, after every commit, at every read, and at the end."""

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from cartgrpc.v1 import cart_pb2
from sqlalchemy import Connection

from cart_grpc.carts.model import ENDED, CartState
from cart_grpc.carts.progress import HOLD_MARGIN_US
from cart_grpc.protocol.reservation import FINAL, Disposition, Observed
from cart_grpc.simulator.rules import StoredReservation
from cart_grpc.simulator.stock import Stock
from cart_grpc.store import schema
from cart_grpc.store.shards import shard_index
from tests.invariants.dump import merge_dumps, read_dump
from tests.invariants.rows import check_tables
from tests.simulation.claim_checks import RISING, ClaimChecks
from tests.simulation.clock import SimulatedClock
from tests.simulation.histories import HistoryChecker, revision_of
from tests.simulation.operations import CallerOperation
from tests.simulation.rows import (
    CartRow,
    CheckoutRow,
    ReservationRow,
    read_carts,
    read_clock,
    read_items,
    read_reservations,
)
from tests.simulation.sale_checks import SaleChecks
from tests.simulation.template import MAIN, in_schema

# User, cart id and item id, and the checkout that it has passed to, if any.
ItemKey = tuple[str, str, str, str]
# These tables have rows of slice 0 in each shard.
OF_EVERY_SHARD = {schema.clock.name, schema.commit_markers.name, schema.pauses.name}


class Checks:
    """Calls `report_violation` for each broken invariant. It reads the database outside every transaction.

    `totals` is the stock by sku, `reasons` the reasons with which the API may reject an item. `healthy`: there are no
    faults, so that no claim may expire.
    """

    def __init__(
        self,
        raw: sqlite3.Connection,
        totals: Mapping[str, int],
        report_violation: Callable[[str], None],
        log_event: Callable[..., None],
        clock: SimulatedClock,
        reasons: Collection[str],
        *,
        healthy: bool,
    ) -> None:
        self._raw = raw
        self._totals = totals
        self._report_violation = report_violation
        self._now = clock.now
        self._clock = clock
        self._reasons = reasons
        self._claims = ClaimChecks(raw, report_violation, clock, healthy=healthy)
        self._rows: dict[str, ReservationRow] = {}
        self._carts: dict[tuple[str, str], CartRow] = {}
        self._changes = 0
        self.sales = SaleChecks(raw, report_violation, log_event)
        # The names of carts that others were merged into, and of carts that ended and began anew in one transaction.
        self._merge_targets: set[str] = set()
        self._restarted: set[str] = set()
        # How many rows a merge has moved.
        self.move_count = 0
        self._records: dict[str, StoredReservation] = {}
        self._items: dict[str, ItemKey] = {}
        self._revisions: dict[str, int] = {}
        # When a revision was decided first, by the Reservation API's clock.
        self._decision_times: dict[tuple[str, int], int] = {}
        # The reservations whose decision was asked for again while the database's clock was behind.
        self._asked_again: set[str] = set()
        # By cart: all etag revisions that were ever committed, and those at which the cart lost all its items
        # without a call that says so: it expired, was merged, or was sold.
        self._etags: defaultdict[str, set[int]] = defaultdict(set)
        self._expired: defaultdict[str, set[int]] = defaultdict(set)
        # The etag revisions at which a checkout froze the cart, or gave it back.
        self._frozen: defaultdict[str, set[int]] = defaultdict(set)

    # At every decision of the API.

    def check_decision(self, record: StoredReservation) -> None:
        """At most one live reservation per item; no more held than there is; no reservation without a row."""
        reservation_id = record.intent.reservation_id
        self._records[reservation_id] = record
        self._decision_times.setdefault((reservation_id, record.intent.revision), self._clock.api_now())
        item = self._find_item(reservation_id)
        live = {name: one.granted for name, one in self._records.items() if one.granted and self._is_live(name, item)}
        if len(live) > 1:
            self._report_violation(f"two live reservations for {item}: {live}")
        self.sales.check_decision(record, self._rows.get(reservation_id))
        held = sum(one.granted for one in self._records.values() if one.sku == record.sku)
        row = self._rows.get(reservation_id)
        if row is not None:
            self._check_shown(row)
        if held > self._totals[record.sku]:
            self._report_violation(f"{held} of {record.sku} are held, but only {self._totals[record.sku]} exist")

    def _find_item(self, reservation_id: str) -> ItemKey:
        item = self._items.get(reservation_id)
        if item is None:
            self._report_violation(f"the API decided {reservation_id}, which has no row")
            item = ("unknown", "", reservation_id, "")
        return item

    def _is_live(self, reservation_id: str, item: ItemKey) -> bool:
        """Whether a reservation is one of the item's. After a merge, those that others have taken over do not count."""
        row = self._rows.get(reservation_id)
        is_merged = f"users/{item[0]}/carts/{item[1]}" in self._merge_targets
        has_left = row is None or row.superseded_by or row.disposition == Disposition.RELEASE
        return self._items.get(reservation_id) == item and not (is_merged and has_left)

    def check_sent(self, process_name: str, reservation_id: str) -> None:
        """A process sends messages only for reservations that it claimed in a committed transaction."""
        self._claims.check_sent(process_name, reservation_id)

    # After every commit.

    def check_commit(self, process_name: str, began: int) -> Iterable[ReservationRow]:
        """Check a transaction that `process_name` began at `began` and committed now.

        Returns the new and changed rows of reservations.
        """
        changes = self._raw.total_changes
        if changes == self._changes:
            return []
        self._changes = changes
        found = read_reservations(self._raw)
        rows = {row.reservation_id: row for row in found}
        if len(rows) < len(found):
            twice = [row for row in found if row != rows[row.reservation_id]]
            self._report_violation(f"a reservation has two rows: {twice} and others")
        is_move = self._clock.note_rows(read_clock(self._raw))
        changed = [row for name, row in rows.items() if self._rows.get(name) != row]
        self.sales.check_commit(rows.values())
        changed_carts = self._check_carts(began)
        self._clock.note_write({row.shard for row in changed})
        self._claims.note_commit()
        for row in changed:
            before = self._rows.get(row.reservation_id)
            checkout_id = "" if row.is_of_cart else row.checkout_id
            self._items[row.reservation_id] = (row.user_id, row.cart_id, row.item_id, checkout_id)
            self.move_count += before is not None and (before.user_id, before.cart_id) != (row.user_id, row.cart_id)
            self._revisions[row.reservation_id] = row.revision
            self._check_row(before, row)
            if is_move and before is not None:
                self._check_move(before, row)
                continue
            self._claims.check(process_name, began, before, row)
            self._note_asked_again(before, row)
            self._check_shown(row)
            is_of_cart = before is not None and (before.is_of_cart or row.is_of_cart)
            if before is not None and is_of_cart and (before.user_id, before.cart_id) not in changed_carts:
                self._check_unclaimed(began, before)
        for name in self._rows.keys() - rows.keys():
            self._check_purged(self._rows[name])
        self._rows = rows
        return changed

    def _check_row(self, before: ReservationRow | None, after: ReservationRow) -> None:
        if after.due_time is None and not (after.settled or after.waiting):
            self._report_violation(f"a row that is never due has work to do: {after}")
        if after.reserved_cap > after.quantity:
            self._report_violation(f"callers may see more than is intended: {before} became {after}")
        if after.seal_reason and after.seal_reason not in self._reasons:
            self._report_violation(f"sealed for a reason that the plan does not have: {after}")
        if before is None:
            return
        if any(getattr(after, column) < getattr(before, column) for column in RISING):
            self._report_violation(f"a column that only rises fell: {before} became {after}")
        if before.state in FINAL and after.state != before.state:
            self._report_violation(f"a final state changed: {before} became {after}")
        if before.disposition == Disposition.RELEASE and after.disposition != Disposition.RELEASE:
            self._report_violation(f"the intent changed after RELEASE: {before} became {after}")
        record = self._records.get(after.reservation_id)
        observed = after.observed_revision
        if observed > before.observed_revision and (record is None or record.intent.revision < observed):
            self._report_violation(f"the row observed a revision that the API never decided: {after}, {record}")

    def check_stopped(self, process_name: str) -> None:
        """A process that stopped has no claims."""
        self._claims.check_stopped(process_name, self._rows.values(), self._now())

    def _check_move(self, before: ReservationRow, after: ReservationRow) -> None:
        """After a step back of the clock, times only become earlier, and nothing else changes."""
        times = ("due_time", "lease_expire_time", "expire_time", "uncertain_until")
        is_earlier = all((getattr(after, name) or 0) <= (getattr(before, name) or 0) for name in times)
        if not is_earlier or after._replace(**{name: getattr(before, name) for name in times}) != before:
            self._report_violation(f"more than times moved back: {before} became {after}")

    def _note_asked_again(self, before: ReservationRow | None, after: ReservationRow) -> None:
        """Note whether an answer may be older than the claim, and the database's clock is behind the API's.

        Then the answer's age is unknown, and the hold is shown longer than it lasts, by that age at most.
        """
        name, observed = after.reservation_id, after.observed_revision
        if before is not None and observed > before.observed_revision:
            decided = self._decision_times.get((name, observed), 0)
            is_older = self._clock.is_behind and decided < self._claims.times.get(name, 0)
            (self._asked_again.add if is_older else self._asked_again.discard)(name)

    def _check_unclaimed(self, began: int, before: ReservationRow) -> None:
        """An unclaimed row that is not due never changes without raising its cart's revision.

        Cached replies rely on this.
        """
        is_due = before.due_time is not None and before.due_time <= began
        if before.lease_expire_time is None and not is_due:
            self._report_violation(f"{before} changed, but the revision of its cart did not rise")

    def _check_shown(self, row: ReservationRow) -> None:
        """The quantity that callers see as reserved in a cart is held at this moment."""
        lapsed = row.expire_time is None or row.expire_time - HOLD_MARGIN_US <= self._now()
        if lapsed or not row.is_of_cart or row.state not in (Observed.HELD, Observed.REJECTED):
            return
        if self._clock.is_step_open or row.reservation_id in self._asked_again:
            return
        record, shown = self._records.get(row.reservation_id), min(row.granted_quantity, row.reserved_cap)
        if shown > (record.granted if record is not None else 0):
            self._report_violation(f"callers see {shown} as reserved by {row}, but the API has {record}")

    def _check_purged(self, before: ReservationRow) -> None:
        if before.state not in FINAL or not before.settled:
            self._report_violation(f"an unfinished reservation was deleted: {before}")

    def _check_carts(self, began: int) -> Collection[tuple[str, str]]:
        """Returns user and cart id of each new or changed cart."""
        changed = set()
        for row in read_carts(self._raw):
            key = (row.user_id, row.cart_id)
            before = self._carts.get(key)
            if before == row:
                continue
            if before is not None and row.revision <= before.revision:
                self._report_violation(f"{row.name} changed, but its revision did not rise: {before} became {row}")
            self._carts[key] = row
            changed.add(key)
            if before is None or before.etag_revision != row.etag_revision:
                self._etags[row.name].add(row.etag_revision)
                if row.state in (CartState.EXPIRED, CartState.CHECKED_OUT, CartState.MERGED):
                    self._expired[row.name].add(row.etag_revision)
                elif before is not None and self._ended_unseen(before, row, began):
                    self._expired[row.name].add(before.etag_revision + 1)
                elif before is not None and before.uid != row.uid and before.state not in ENDED:
                    self._restarted.add(row.name)
                if CartState.CHECKING_OUT in (row.state, before.state if before else 0):
                    self._frozen[row.name].add(row.etag_revision)
            if row.merged_into:
                self._merge_targets.add(row.merged_into)
        return changed

    def _ended_unseen(self, before: CartRow, after: CartRow, began: int) -> bool:
        """Whether a cart ended and was created anew in one transaction, so that no row ever showed the end.

        `began` is the time in the transaction. The clock may have been set back since.
        """
        if before.uid == after.uid:
            return False
        if before.state == CartState.CHECKING_OUT:
            return self.sales.was_completed(before.uid)
        is_idle = before.expire_time is not None and before.expire_time <= began
        return before.state == CartState.ACTIVE and is_idle

    # At every read.

    def highest_acknowledged(self, operations: Sequence[CallerOperation], cart: str) -> int:
        """The highest revision of `cart` that a caller got in a reply."""
        mine = (one for one in operations if one.cart == cart and one.reply is not None and one.shows_cart)
        return max(map(revision_of, mine), default=0)

    def check_read(self, cart: str, found: cart_pb2.Cart, acknowledged: int) -> None:
        """A read shows at least the revision that was acknowledged before it began."""
        if found.revision < acknowledged:
            self._report_violation(f"{cart}: a read shows {found.revision} after {acknowledged} was acknowledged")

    # At the end.

    @property
    def revision_count(self) -> int:
        """The number of messages that had to be sent, purged rows included."""
        return sum(self._revisions.values())

    def unsettled(self) -> list[ReservationRow | CheckoutRow]:
        """The rows that still have work to do."""
        now = self._now()
        return [*self.sales.running, *self._unsettled_reservations(now)]

    def _unsettled_reservations(self, now: int) -> list[ReservationRow]:
        return [row for row in self._rows.values() if not row.settled or _has_work(row, now)]

    def check_settled(self, stock: Stock, now: int) -> None:
        """Each item is reserved in full or has a reason, and holds the quantity it shows. Nothing else holds stock."""
        stock.levels("", now)
        unsold = {name: one for name, one in self._records.items() if one.state is not Observed.COMMITTED}
        live = {name: record.granted for name, record in unsold.items() if record.granted}
        for row in read_items(self._raw):
            held = live.pop(row.reservation_id or "", 0)
            if row.sku != row.reserved_sku or (row.disposition != Disposition.HOLD and not row.seal_reason):
                self._report_violation(f"an item without a reservation of its own: {row}")
            elif row.state == Observed.HELD and not row.seal_reason:
                # The hold may have ended earlier than it shows: see `_note_asked_again`. Its renewal holds it again.
                ended_early = held == 0 and row.reservation_id in self._asked_again
                if not (ended_early or held == row.granted_quantity == row.quantity):
                    self._report_violation(f"the API holds {held} for {row}")
            elif not (row.seal_reason or row.reason):
                self._report_violation(f"neither reserved nor rejected with a reason: {row}")
            elif held != row.granted_quantity:
                self._report_violation(f"the API holds {held} for {row}, which was rejected")
            elif (row.seal_reason or row.reason) not in self._reasons:
                self._report_violation(f"rejected for a reason that the plan does not have: {row}")
        if live:
            self._report_violation(f"the API holds stock without an item: {live}")
        ended = (
            "SELECT i.* FROM all_items i JOIN all_carts c USING (slice, user_id, cart_id) WHERE c.state NOT IN (1, 4)"
        )
        for item in self._raw.execute(ended):
            self._report_violation(f"an item in an ended cart: {item}")

    def check_sales(self, operations: Sequence[CallerOperation]) -> None:
        """Every acknowledged sale exists exactly once, and nothing else was sold."""
        self.sales.check_end(self._records, operations)

    def check_tables(self, connection: Connection, schemas: Sequence[str | None]) -> None:
        """The tables agree with each other. The totals of carts, checkouts and users equal the sums over their rows.

        `schemas` has one name for each shard. Each row is in the shard of its slice.
        """
        for table in sorted(schema.metadata.tables.keys() - OF_EVERY_SHARD):
            places = f"SELECT DISTINCT shard, slice FROM all_{table}"  # noqa: S608 - our own tables' names
            for shard, slice_ in self._raw.execute(places):
                if shard != (shard_index(slice_, len(schemas)) if len(schemas) > 1 else MAIN):
                    self._report_violation(f"a row of slice {slice_} of {table} is in the shard {shard}")
        dumps = [in_schema(connection, name, read_dump) for name in schemas]
        for difference in check_tables(merge_dumps(dumps)):
            self._report_violation(difference)

    def check_expired(self, patience_us: int) -> None:
        """No active cart is more than `patience_us` past its expire_time."""
        idle = "SELECT user_id, cart_id, expire_time FROM all_carts WHERE state = 1 AND expire_time < ?"
        for row in self._raw.execute(idle, (self._now() - patience_us,)):
            self._report_violation(f"a cart did not expire: {row}")

    def check_histories(self, operations: Sequence[CallerOperation]) -> None:
        """Each cart has exactly the effects of its acknowledged operations, in one order."""
        query = "SELECT item_id, quantity FROM all_items WHERE user_id = ? AND cart_id = ?"
        for cart in sorted({operation.cart for operation in operations}):
            mine = [one for one in operations if one.cart == cart and one.shows_cart]
            if cart in self._restarted and any(getattr(one.request, "source", "") == cart for one in operations):
                # It may have been merged and begun anew in one transaction.
                continue
            # The outcome of a call without a request_id may stay unknown. Then the history cannot be checked.
            if all(operation.resolved for operation in mine):
                _, user, _, cart_id = cart.split("/")
                found = dict(self._raw.execute(query, (user, cart_id)).fetchall())
                etags = self._etags[cart] - self._frozen[cart]
                history = HistoryChecker(cart, etags, self._expired[cart], self._report_violation)
                history.check([one for one in mine if one.reply is not None], found)


def _has_work(row: ReservationRow, now: int) -> bool:
    """Whether a settled row is due, or its hold expired or is about to, and must be renewed."""
    lapsed = row.expire_time is not None and row.expire_time - HOLD_MARGIN_US <= now
    return row.due_time is not None and (row.due_time <= now or row.state == Observed.EXPIRED or lapsed)
