"""The invariants of checkouts: a decided sale is never undone, exists once, and nothing else is sold."""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cart_grpc.carts.model import CartState, CheckoutState
from cart_grpc.protocol.reservation import Disposition, Observed
from cart_grpc.simulator.rules import StoredReservation
from tests.simulation.operations import CallerOperation
from tests.simulation.rows import CheckoutRow, ReservationRow, read_carts, read_checkout_items, read_checkouts

State = CheckoutState
RUNNING = (State.OPEN, State.COMPLETING, State.FAILED)
# The states that may follow. One transaction can make several steps.
_NEXT = {
    State.OPEN: {State.COMPLETING, State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED},
    State.COMPLETING: {State.COMPLETED, State.FAILED, State.CANCELLED},
    State.FAILED: {State.COMPLETING, State.COMPLETED, State.CANCELLED},
}


class SaleChecks:
    """Calls `report_violation` for each broken invariant, and `log_event` for each step of a checkout."""

    def __init__(
        self, raw: sqlite3.Connection, report_violation: Callable[[str], None], log_event: Callable[..., None]
    ) -> None:
        self._raw = raw
        self._log_event = log_event
        self._report_violation = report_violation
        self._checkouts: dict[str, CheckoutRow] = {}

    @property
    def running(self) -> Sequence[CheckoutRow]:
        """The checkouts that have not ended."""
        return [row for row in self._checkouts.values() if row.state in RUNNING]

    def was_completed(self, cart_uid: str) -> bool:
        """Whether a checkout of this cart was completed."""
        return any(row.cart_uid == cart_uid and row.order_reference for row in self._checkouts.values())

    def check_commit(self, reservations: Iterable[ReservationRow]) -> None:
        """A checkout takes the steps of its lifecycle, and keeps its order_reference. A frozen cart has one.

        `reservations` are all rows. A checkout is ready or COMPLETED only if its reservations say so.
        """
        of_checkout: defaultdict[str, list[ReservationRow]] = defaultdict(list)
        for one in reservations:
            of_checkout[one.checkout_id].append(one)
        for row in read_checkouts(self._raw):
            before = self._checkouts.get(row.checkout_id)
            self._checkouts[row.checkout_id] = row
            if before is None or (before.state, before.is_ready) != (row.state, row.is_ready):
                self._check_reservations(row, of_checkout[row.checkout_id])
            if before is None or before == row:
                continue
            if row.state != before.state:
                self._check_step(before, row)
            if before.order_reference not in ("", row.order_reference):
                self._report_violation(f"the order of a sale changed: {before} became {row}")
        open_ids = {row.checkout_id for row in self._checkouts.values() if row.state == State.OPEN}
        for checkout_id in of_checkout.keys() - open_ids - {""}:
            if kept := [one for one in of_checkout[checkout_id] if one.disposition == Disposition.HOLD]:
                self._report_violation(f"holds of a checkout that is not open: {kept}")
        frozen = {row.uid for row in read_carts(self._raw) if row.state == CartState.CHECKING_OUT}
        opened = Counter(row.cart_uid for row in self._checkouts.values() if row.state == State.OPEN)
        if Counter(frozen) != opened:
            self._report_violation(f"the frozen carts are {frozen}, but the open checkouts have {opened}")

    def _check_step(self, before: CheckoutRow, after: CheckoutRow) -> None:
        old, new = State(before.state), State(after.state)
        self._log_event("checkout", f"{old.name} became {new.name}", after.checkout_id)
        if new not in _NEXT.get(old, ()):
            self._report_violation(f"a checkout left its lifecycle: {before} became {after}")

    def _check_reservations(self, row: CheckoutRow, reservations: Sequence[ReservationRow]) -> None:
        is_short = [one for one in reservations if one.expire_time is not None and one.expire_time < row.expire_time]
        if row.state == State.OPEN and row.is_ready and is_short:
            self._report_violation(f"{row} is ready, but a hold ends before its window: {is_short}")
        unsold = [one for one in reservations if one.state != Observed.COMMITTED]
        if row.state == State.COMPLETED and [one for one in unsold if one.disposition == Disposition.COMMIT]:
            self._report_violation(f"{row} is COMPLETED, but not sold: {unsold}")

    def check_decision(self, record: StoredReservation, row: ReservationRow | None) -> None:
        """The API sells nothing that we want to be released, or only held."""
        if record.state is Observed.COMMITTED and row is not None and row.disposition != Disposition.COMMIT:
            self._report_violation(f"{record} was sold, but {row}")

    def check_end(self, records: Mapping[str, StoredReservation], operations: Sequence[CallerOperation]) -> None:
        """Every sale exists exactly once, and nothing else was sold."""
        sold = {name: record for name, record in records.items() if record.state is Observed.COMMITTED}
        items: defaultdict[str, list[tuple[str, int, str]]] = defaultdict(list)
        for checkout_id, sku, quantity, name in read_checkout_items(self._raw):
            items[checkout_id].append((sku, quantity, name))
        owners = Counter(name for of_one in items.values() for _, _, name in of_one)
        if twice := [name for name, count in owners.items() if count > 1]:
            self._report_violation(f"several items have the reservations {twice}")
        if sold.keys() - owners.keys():
            self._report_violation(f"sold without a checkout: {[sold[name] for name in sold.keys() - owners.keys()]}")
        for row in self._checkouts.values():
            self._check_items(row, items[row.checkout_id], records)
        for operation in operations:
            if operation.method == "CompleteCheckout" and operation.reply is not None:
                self._check_acknowledged(operation)

    def _check_items(
        self, row: CheckoutRow, items: Sequence[tuple[str, int, str]], records: Mapping[str, StoredReservation]
    ) -> None:
        if row.state in RUNNING:
            self._report_violation(f"a checkout did not end: {row}")
        if bool(items) != bool(row.order_reference):
            self._report_violation(f"{row} has the items {items}")
        for sku, quantity, name in items:
            record = records.get(name)
            is_sold = record is not None and record.state is Observed.COMMITTED
            if is_sold and record and (record.sku, record.granted) != (sku, quantity):
                self._report_violation(f"{row} sold {quantity} of {sku}, but the API has {record}")
            if not is_sold and (row.state == State.COMPLETED or (record and record.granted)):
                self._report_violation(f"{row}: {quantity} of {sku} are not sold, the API has {record}")

    def _check_acknowledged(self, operation: CallerOperation) -> None:
        request: Any = operation.request
        row = self._checkouts.get(request.name.rpartition("/")[2])
        if row is None or row.order_reference != request.order_reference:
            self._report_violation(f"{request} was acknowledged, but {row}")
        elif any(cart.uid == row.cart_uid and cart.state != CartState.CHECKED_OUT for cart in read_carts(self._raw)):
            self._report_violation(f"{row} was completed, but its cart is still there")
