"""The model of a cart, its reservations and the Reservation API. It runs the product's own rules.

A caller adds one or two pieces of a sku, changes the quantity, removes the item, adds it again and checks out. Any
number of workers, with no lease between them, send messages and record answers. Every message ever sent may arrive at
any time and repeatedly; so may every answer. Other customers take free stock. Time passes and holds expire. The
database may be lost and restored from a backup.

A batch call is no step of its own: it is nothing but its entries, as single messages. Each entry is decided on its own
and answered under its id, and each answer is recorded on its own. Whether a batch is lost, doubled, late, answered in
part or in another order, is the same as a choice of which of its entries and answers arrive, when and how often, and
every such choice is explored. `test_batches` checks this: a batch that is decided in one instant leads to no other
state.
"""

from collections.abc import Callable, Iterator
from functools import partial

from cart_grpc.carts.progress import ProgressState
from cart_grpc.protocol import transitions
from cart_grpc.protocol.reservation import Disposition, Observed, Reservation
from tests.protocol import invariants, service_rules
from tests.protocol.explorer import Step
from tests.protocol.items import ItemModel, ItemStep
from tests.protocol.states import (
    STOCK,
    Bounds,
    ItemState,
    ModelState,
    Phase,
    RevisionOutcome,
    describe,
    initial_quantities,
)


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
        return invariants.PARTLY_SOLD if len(state.items) > 1 and self._is_partly_sold(state) else None

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
        ended = state.phase in (Phase.OPEN, Phase.CHECKED_OUT)
        return ended and all(self._items.is_done(item) for item in state.items)

    def steps(self, state: ModelState) -> Iterator[Step[ModelState]]:
        several = len(state.items) > 1
        for index, item in enumerate(state.items):
            for step in self._item_steps(item, state.phase):
                items = (*state.items[:index], step.after, *state.items[index + 1 :])
                # Items are interchangeable, so sort them: their order makes no new state.
                after = state._replace(items=tuple(sorted(items)) if several else items)
                yield Step(step.verb, step.is_fair, after, step.violation, step.subject)
        if self._bounds.commits:
            yield from self._checkout(state)
        if state.ticks < self._bounds.ticks:
            aged = tuple(map(self._items.aged, state.items))
            yield Step("time passes", False, state._replace(items=aged, ticks=state.ticks + 1))
        if self._bounds.restores:
            yield from self._restore(state)

    def batches(self, state: ModelState) -> Iterator[Step[ModelState]]:
        """All deliveries of two messages about one item as a batch call. Entries for different skus share nothing."""
        for step in self._items.batches(state.items[0]):
            yield Step(step.verb, step.is_fair, state._replace(items=(step.after,)), step.violation, step.subject)

    def _item_steps(self, item: ItemState, phase: Phase) -> Iterator[ItemStep]:
        yield from self._items.steps(item)
        if phase in (Phase.OPEN, Phase.COMPLETING):
            yield from self._items.caller_steps(item)

    def _checkout(self, state: ModelState) -> Iterator[Step[ModelState]]:
        lasts = [(self._items.row(item), item.wanted) for item in state.items]
        early = all(row.revision <= self._bounds.commits for row, _ in lasts)
        begin = Phase.CHECKING_OUT if self._bounds.window else Phase.COMPLETING
        if state.phase is Phase.OPEN and early:
            reserved = all(
                item.wanted and self._items.shown(item).state is ProgressState.RESERVED for item in state.items
            )
            if begin is Phase.CHECKING_OUT and reserved:
                yield from self._change_all("begin checkout", state, begin, service_rules.outlast_checkout)
            elif begin is Phase.COMPLETING and all(wanted for _, wanted in lasts):
                yield from self._change_all("commit", state, begin, partial(transitions.commit, now=0))
        elif state.phase is Phase.CHECKING_OUT:
            yield Step("cancel checkout", True, state._replace(phase=Phase.OPEN))
            if all(service_rules.can_complete(row, wanted) for row, wanted in lasts):
                yield from self._change_all(
                    "complete checkout", state, Phase.COMPLETING, partial(transitions.commit, now=0)
                )
        elif state.phase is Phase.COMPLETING and all(row.settled for row, _ in lasts):
            sold = all(row.state is Observed.COMMITTED for row, _ in lasts)
            text = "checked out" if sold else "the checkout has failed"
            yield Step(text, True, state._replace(phase=Phase.CHECKED_OUT if sold else Phase.OPEN))

    def _change_all(
        self, verb: str, state: ModelState, phase: Phase, change: Callable[[Reservation], Reservation]
    ) -> Iterator[Step[ModelState]]:
        try:
            items = tuple(self._items.with_row(item, change(self._items.row(item))) for item in state.items)
        except ValueError:
            # The rule forbids this change for one of the items.
            return
        yield Step(verb, False, state._replace(items=items, phase=phase))

    def _restore(self, state: ModelState) -> Iterator[Step[ModelState]]:
        if state.backup is None and state.phase is Phase.OPEN:
            backup = tuple((item.wanted, item.ids[-1].row) for item in state.items)
            yield Step("back up", False, state._replace(backup=backup))
        elif state.backup:
            items = tuple(
                self._items.restored(item, wanted, row)
                for item, (wanted, row) in zip(state.items, state.backup, strict=True)
            )
            yield Step("restore", False, ModelState(items, Phase.OPEN, state.ticks, ()))
