"""The model of a cart, its reservations and the Reservation API. It runs the product's own rules.

A caller adds one or two pieces of a sku, changes the quantity, removes the item, adds it again and checks out: the
checkout begins, becomes ready, is completed, cancelled or thawed, fails, and is completed again. Any
number of workers, with no lease between them, send messages and record answers. Every message ever sent may arrive at
any time and repeatedly; so may every answer. Other customers take free stock. Time passes and holds expire. The
database may be lost and restored from a backup. Operators release reservations and end checkouts.

A batch call is no step of its own: it is nothing but its entries, as single messages. Each entry is decided on its own
and answered under its id, and each answer is recorded on its own. Whether a batch is lost, doubled, late, answered in
part or in another order, is the same as a choice of which of its entries and answers arrive, when and how often, and
every such choice is explored. `test_batches` checks this: a batch that is decided in one instant leads to no other
state.
"""

from collections.abc import Iterator, Sequence

from cart_grpc.carts.checkout_calls import CheckoutChange
from cart_grpc.carts.model import Checkout, CheckoutState, Line
from cart_grpc.protocol.reservation import Disposition, Observed, Reservation
from tests.protocol import checkouts, invariants, service_rules
from tests.protocol.explorer import Step
from tests.protocol.items import ItemModel, ItemStep
from tests.protocol.states import (
    STOCK,
    Bounds,
    ItemState,
    ModelState,
    RevisionOutcome,
    describe,
    initial_quantities,
)

SETTLED = (None, CheckoutState.COMPLETED, CheckoutState.CANCELLED)


class CartModel:
    """The states and transitions of a cart within `bounds`."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._items = ItemModel(bounds)

    describe = staticmethod(describe)

    def initial_states(self) -> Iterator[tuple[str, ModelState]]:
        for wanted, elsewhere in initial_quantities(self._bounds):
            item = self._items.first(wanted, elsewhere)
            yield f"add {wanted} of {STOCK - elsewhere}", ModelState((item,) * self._bounds.items)

    def find_violation(self, state: ModelState) -> str | None:
        for item in state.items:
            if invariant := self._items.find_violation(item):
                return invariant
        rows, records = (
            [self._items.row(item) for item in state.items],
            [self._items.record(item) for item in state.items],
        )
        if self._bounds.window and self._is_partly_sold(state):
            return invariants.PARTLY_SOLD
        if self._bounds.window and state.checkout and state.checkout.state is CheckoutState.FAILED:
            return invariants.FAILED_IN_VAIN
        return next(invariants.check_checkout(state.checkout, rows, records), None)

    def _is_partly_sold(self, state: ModelState) -> bool:
        records = [self._items.record(item) for item in state.items]
        commits = [one and one.intent.disposition is Disposition.COMMIT and one.state for one in records]
        released = any(one and one.state is Observed.RELEASED for one in records)
        return Observed.COMMITTED in commits and (released or Observed.REJECTED in commits)

    def recorded(self) -> Iterator[tuple[Reservation, RevisionOutcome]]:
        """Every row that the exploration has reached, with every outcome that it recorded in that row."""
        return self._items.recorded()

    def is_done(self, state: ModelState) -> bool:
        """Whether no checkout is under way and all items are settled."""
        ended = (state.checkout and state.checkout.state) in SETTLED
        return ended and all(self._items.is_done(item) for item in state.items)

    def steps(self, state: ModelState) -> Iterator[Step[ModelState]]:
        several = len(state.items) > 1
        for index, item in enumerate(state.items):
            for step in self._item_steps(item, state.checkout):
                items = (*state.items[:index], step.after, *state.items[index + 1 :])
                # Items are interchangeable, so sort them: their order makes no new state.
                after = state._replace(items=tuple(sorted(items)) if several else items)
                yield Step(step.verb, step.is_fair, after, step.violation, step.subject)
        if self._bounds.commits:
            yield from self._checkout(state)
        if state.ticks < self._bounds.ticks:
            items = tuple(map(self._items.aged, state.items))
            yield Step(
                "time passes", False, ModelState(items, checkouts.aged(state.checkout), state.ticks + 1, state.backup)
            )
        if self._bounds.restores:
            yield from self._restore(state)

    def batches(self, state: ModelState) -> Iterator[Step[ModelState]]:
        """All deliveries of two messages about one item as a batch call. Entries for different skus share nothing."""
        for step in self._items.batches(state.items[0]):
            yield Step(step.verb, step.is_fair, state._replace(items=(step.after,)), step.violation, step.subject)

    def _item_steps(self, item: ItemState, checkout: Checkout | None) -> Iterator[ItemStep]:
        yield from self._items.steps(item)
        if self._bounds.callers and service_rules.accepts_changes(checkout):
            yield from self._items.caller_steps(item)
        if checkout:
            yield from self._items.writer_steps(item)

    def _checkout(self, state: ModelState) -> Iterator[Step[ModelState]]:
        lines = [self._items.line(item) for item in state.items]
        bounds = self._bounds
        for step in checkouts.steps(
            state.checkout, lines, most=bounds.commits, window=bounds.window, operators=bounds.operators
        ):
            items = self._changed(state, lines, step.change) if step.change else state.items
            if items:
                after = checkouts.normalized(step.change) if step.change else state.checkout
                violation = step.violation or self._find_second_sale(state.items, items)
                yield Step(step.verb, step.is_fair, state._replace(items=items, checkout=after), violation)

    def _find_second_sale(self, before: Sequence[ItemState], after: Sequence[ItemState]) -> str | None:
        """A violation if a checkout asks under a new id for an item that is sold under the old one."""
        has_new_ids = [item for item in before if item not in after and self._items.is_sold(item)]
        more = sum(len(item.ids) for item in after) > sum(len(item.ids) for item in before)
        return invariants.SOLD_TWICE if has_new_ids and more else None

    def _changed(
        self, state: ModelState, lines: Sequence[Line], change: CheckoutChange
    ) -> tuple[ItemState, ...] | None:
        """The items after a change of their checkout. None if it needs another id than the bounds allow."""
        items = []
        for item, before, after in zip(state.items, lines, change.lines, strict=True):
            if after.reservation.reservation_id == before.reservation.reservation_id:
                items.append(self._items.with_row(item, after.reservation))
            elif len(item.ids) < self._bounds.ids:
                items.append(self._items.with_new_id(item, after.reservation))
            else:
                return None
        if change.checkout.state is CheckoutState.CANCELLED and change.cart is None:
            # Nobody wants the unsold items any more.
            items = [self._items.without_unsold(item) for item in items]
        return tuple(sorted(items)) if len(items) > 1 else tuple(items)

    def _restore(self, state: ModelState) -> Iterator[Step[ModelState]]:
        if state.backup is None and state.checkout is None:
            backup = tuple((item.wanted, item.ids[-1].row) for item in state.items)
            yield Step("back up", False, state._replace(backup=backup))
        elif state.backup:
            items = tuple(
                self._items.restored(item, wanted, row)
                for item, (wanted, row) in zip(state.items, state.backup, strict=True)
            )
            yield Step("restore", False, ModelState(items, None, state.ticks, ()))
