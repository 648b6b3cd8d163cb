"""The transactions of the model of merges: calls of callers and operators, and records of answers.

Results are memoized by the interned number of the tables.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from cart_grpc.carts.calls import (
    AddItems,
    Call,
    ItemUpdate,
    Limits,
    MergeCarts,
    RemoveItem,
    UpdateItem,
    addition,
)
from cart_grpc.carts.model import Cart
from cart_grpc.commands.operator import Release
from cart_grpc.commands.record import RecordOutcome
from cart_grpc.names import CartKey
from cart_grpc.protocol.reservation import Answer, Decision, NoAnswer, Reservation
from tests.carts.examples import SKU
from tests.protocol import invariants, merge_checks
from tests.protocol.merge_states import GUEST, USER, MergeBounds, Message
from tests.protocol.states import TICK, Interner
from tests.protocol.tables import Tables, Transaction, mutation, transact

# No claim of the model has this epoch.
OVERTAKEN = -1


class Changed(NamedTuple):
    """The number of the tables after a transaction, and the invariant that it breaks, if any.

    `asks`: it asks for a quantity again.
    """

    tables: int
    violation: str | None = None
    asks: bool = False


class Transactions:
    """All transactions within `bounds`, on tables by their number in `tables`."""

    def __init__(self, bounds: MergeBounds, tables: Interner[Tables]) -> None:
        self._bounds = bounds
        self._limits = Limits(max_quantity_per_item=bounds.most, hold_ttl_us=2 * TICK)
        self._tables = tables
        self._calls_from: dict[int, Sequence[tuple[str, Changed]]] = {}
        self._records: dict[tuple[int, int, Message, Answer | NoAnswer], Changed] = {}

    def initial(self) -> Iterator[tuple[str, int]]:
        """The tables after the user and the guest have added the item, each with a description."""
        for ours, theirs in self._bounds.quantities:
            tables = Tables()
            for cart, quantity in ((USER, ours), (GUEST, theirs)):
                added = transact(tables, mutation(_add(cart, quantity), self._limits)) if quantity else None
                tables = added.after if added else tables
            yield f"the user has {ours}, the guest has {theirs}", self._tables.of(tables)

    def calls(self, number: int) -> Sequence[tuple[str, Changed]]:
        """The changes of callers and operators, each with a description."""
        if number not in self._calls_from:
            self._calls_from[number] = [each for each in self._calls(number) if each[1].tables != number]
        return self._calls_from[number]

    def record(self, number: int, index: int, message: Message, outcome: Answer | NoAnswer) -> Changed:
        """Record the outcome of a call for one reservation, as an overtaken claim."""
        key = (number, index, message, outcome)
        if key not in self._records:
            row = self._tables[number].rows[index]
            command = RecordOutcome(_claimed(row, message), outcome, retry_delay_us=0, jitter=0)
            check = merge_checks.check_decision if isinstance(outcome, Decision) else None
            self._records[key] = self._checked(number, transact(self._tables[number], command), check)
        return self._records[key]

    def _calls(self, number: int) -> Iterator[tuple[str, Changed]]:
        tables = self._tables[number]
        for verb, call in self._calls_of_callers(tables):
            check = merge_checks.check_merge if isinstance(call, MergeCarts) else None
            yield verb, self._checked(number, transact(tables, mutation(call, self._limits)), check)
        for row in tables.rows if self._bounds.operators else ():
            done = transact(tables, Release(row, "", force=False))
            yield f"an operator releases {row.reservation_id}", self._checked(number, done, None)

    def _calls_of_callers(self, tables: Tables) -> Iterator[tuple[str, Call]]:
        if tables.find_line(GUEST):
            yield "merge", MergeCarts(USER, GUEST)
        for cart in tables.carts:
            yield from self._calls_of(cart, tables)

    def _calls_of(self, cart: Cart, tables: Tables) -> Iterator[tuple[str, Call]]:
        who, line = cart.key.user_id, tables.find_line(cart.key)
        if line is None:
            if len(tables.rows) < self._bounds.rows:
                yield f"the {who} adds 1", _add(cart.key, 1)
            return
        if self._bounds.removed:
            yield f"the {who} removes", RemoveItem(cart.key, line.item.item_id)
        if line.reservation.revision < self._bounds.changed:
            for quantity in {1, self._bounds.stock} - {line.item.quantity}:
                update = ItemUpdate(frozenset({"quantity"}), quantity)
                yield f"the {who} wants {quantity}", UpdateItem(cart.key, line.item.item_id, update)

    def _checked(
        self, number: int, done: Transaction | None, check: Callable[[Tables, Tables], str | None] | None
    ) -> Changed:
        if done is None:
            return Changed(number)
        before, after = self._tables[number], done.after
        of_rows = (invariants.check_row(*pair) for pair in zip(before.rows, after.rows, strict=False))
        violation = next(filter(None, of_rows), None)
        violation = violation or (check(before, after) if check else None)
        violation = violation or (merge_checks.UNSEEN if done.is_unseen else None)
        return Changed(self._tables.of(after), violation, merge_checks.asks(before, after))


def _add(cart: CartKey, quantity: int) -> AddItems:
    return AddItems(cart, (addition(SKU, {}, quantity, None, None),))


def _claimed(row: Reservation, message: Message) -> Reservation:
    """The row as it was claimed for `message`, as far as a record depends on it."""
    intent = message.intent
    return row._replace(
        cart=message.cart,
        supersedes=message.supersedes,
        disposition=intent.disposition,
        quantity=intent.quantity,
        revision=intent.revision,
        lease_epoch=OVERTAKEN,
    )
