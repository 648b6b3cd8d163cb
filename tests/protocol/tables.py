"""The tables of the model of merges, and a transaction: the product's own commands, on the rows that they read.

`transact` does what `store.batch` does with one command. `load` reads as few rows as `store.queries`, so a command that
does not name a row does not find it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from cart_grpc.carts.calls import Call, Limits
from cart_grpc.carts.model import Cart, Item, Line
from cart_grpc.carts.refusals import CallRefused
from cart_grpc.commands import apply_transition
from cart_grpc.commands.command import Command
from cart_grpc.commands.mutation import Mutation
from cart_grpc.commands.unit_of_work import ReadSet, UnitOfWork
from cart_grpc.names import CartKey
from cart_grpc.protocol.reservation import Reservation
from tests.protocol.states import TICK


class _NoEntries(Mapping[str, str]):
    """The labels and options of the model: none. A dict has no hash."""

    def __getitem__(self, key: str) -> str:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __hash__(self) -> int:
        return 0


NO_ENTRIES = _NoEntries()


class Tables(NamedTuple):
    """The rows of all tables. Reservations are in the order in which they were made: each keeps its index."""

    carts: tuple[Cart, ...] = ()
    items: tuple[Item, ...] = ()
    rows: tuple[Reservation, ...] = ()

    @property
    def lines(self) -> list[Line]:
        """All items with their reservations."""
        by_id = {row.reservation_id: row for row in self.rows}
        return [Line(item, by_id[item.reservation_id]) for item in self.items]

    @property
    def itemless(self) -> list[Reservation]:
        """The reservations that belong to no item."""
        of_items = {item.reservation_id for item in self.items}
        return [row for row in self.rows if row.reservation_id not in of_items]

    def find_line(self, cart: CartKey) -> Line | None:
        """The line of a cart. A cart of the model has one at most."""
        return next((line for line in self.lines if line.item.cart == cart), None)


class Transaction(NamedTuple):
    """The tables after a transaction. `is_unseen`: a reservation changed, but not the revision of its cart."""

    after: Tables
    is_unseen: bool = False


def mutation(call: Call, limits: Limits) -> Mutation:
    """The command of a call whose reply nobody reads."""
    return Mutation(call, lambda *_: b"", limits)


def transact(tables: Tables, command: Command[Any]) -> Transaction | None:
    """The tables after `command` at time 0. None if it is refused."""
    reads = ReadSet()
    command.add_reads(reads)
    unit = load(tables, reads)
    try:
        command.run(unit, 0, _new_id(tables))
    except CallRefused:
        return None
    apply_transition.release_superseded(unit, 0)
    return Transaction(_write(tables, unit), _is_unseen(tables, unit))


def load(tables: Tables, reads: ReadSet) -> UnitOfWork:
    """The rows that `reads` names: items with their reservations, and the reconciling ones of their skus."""
    unit = UnitOfWork()
    for cart in tables.carts:
        if cart.key in reads.carts:
            unit.carts[cart.key] = cart
    items = [
        item for item in tables.items if (item.cart, item.item_id) in reads.items or item.cart in reads.whole_carts
    ]
    for item in items:
        unit.load_item(item)
    ids = {item.reservation_id for item in items}
    owned = {(cart.user, reservation_id) for cart, reservation_id in reads.reservations}
    skus = reads.skus | {(item.cart, item.sku) for item in items}
    for row in tables.rows:
        is_reconciling = row.reconciling or row.superseded_by
        of_cart = row.cart in reads.whole_carts or (row.cart, row.sku) in skus
        is_named = row.reservation_id in ids or (row.cart.user, row.reservation_id) in owned
        if is_named or (is_reconciling and of_cart):
            unit.load_reservation(row)
    return unit


def _new_id(tables: Tables) -> Callable[[], str]:
    # A transaction makes one reservation at most, and nothing else needs an id of its own.
    return lambda: f"r{len(tables.rows)}"


def _write(tables: Tables, unit: UnitOfWork) -> Tables:
    carts = {cart.key: cart for cart in tables.carts} | unit.carts
    items = {(item.cart, item.item_id): item for item in tables.items}
    for cart, item_id in unit.changed_items:
        items.pop((cart, item_id), None)
        if item_id in unit.items[cart]:
            items[cart, item_id] = unit.items[cart][item_id]
    rows = {row.reservation_id: row for row in tables.rows}
    rows |= {reservation_id: unit.reservations[reservation_id] for reservation_id in unit.changed_reservations}
    return Tables(
        tuple(_normalized_cart(carts[key]) for key in sorted(carts)),
        tuple(items[key]._replace(uid="", options=NO_ENTRIES, labels=NO_ENTRIES) for key in sorted(items)),
        tuple(map(normalized, rows.values())),
    )


def _is_unseen(tables: Tables, unit: UnitOfWork) -> bool:
    """Whether a reservation changed, but not the revision of its cart. No reservation of the model is claimed."""
    before = {row.reservation_id: row for row in tables.rows}
    changed: set[CartKey] = set()
    for row in map(unit.reservations.__getitem__, unit.changed_reservations):
        old = before.get(row.reservation_id)
        changed |= {row.cart, old.cart if old else row.cart} if row != old else set()
    return any(
        cart.key in changed and unit.carts.get(cart.key, cart).revision == cart.revision for cart in tables.carts
    )


def _normalized_cart(cart: Cart) -> Cart:
    return cart._replace(uid="", labels=NO_ENTRIES, revision=1, etag_revision=1)


def normalized(row: Reservation) -> Reservation:
    """The row without leases and attempts. Its due time is in whole ticks."""
    due_time = None if row.due_time is None else max(-(-row.due_time // TICK), 0) * TICK
    return row._replace(lease_epoch=0, lease_expire_time=None, attempt_count=0, last_error="", due_time=due_time)
