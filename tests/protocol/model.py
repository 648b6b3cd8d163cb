"""All that can happen to a cart, its reservations and the Reservation API: the real rules, a network without mercy.

A caller puts one or two of a sku into the cart, changes its mind, takes it out, puts it in again, checks out. Any
number of workers, with no lease between them, send what is to be said and record what was answered. Every message ever
sent may arrive at any time, again and again; so may every answer. Others take what is free. Time passes, and holds run
out. The database may be lost and restored from a backup.
"""

from collections.abc import Callable, Iterator
from functools import partial

from cart_grpc.carts.progress import ProgressState
from cart_grpc.protocol import transitions
from cart_grpc.protocol.reservation import Disposition, Observed, Reservation
from tests.protocol import practice, promises
from tests.protocol.explorer import Step
from tests.protocol.items import ItemModel, ItemStep
from tests.protocol.worlds import STOCK, Bounds, Item, Phase, World, firsts, text_of


class CartModel:
    """The worlds of a cart within `bounds`."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._items = ItemModel(bounds)

    text_of = staticmethod(text_of)

    def firsts(self) -> Iterator[tuple[str, World]]:
        for wanted, elsewhere in firsts(self._bounds):
            item = self._items.first(wanted, elsewhere)
            yield f"add {wanted} of {STOCK - elsewhere}", World((item,) * self._bounds.items)

    def broken(self, world: World) -> str | None:
        for item in world.items:
            if promise := self._items.broken(item):
                return promise
        return promises.TORN if len(world.items) > 1 and self._is_torn(world) else None

    def _is_torn(self, world: World) -> bool:
        records = [self._items.record(item) for item in world.items]
        commits = [one and one.intent.disposition is Disposition.COMMIT and one.state for one in records]
        released = any(one and one.state is Observed.RELEASED for one in records)
        return Observed.COMMITTED in commits and (released or Observed.REJECTED in commits)

    def is_done(self, world: World) -> bool:
        """No checkout is under way, and nothing is left to do for any item."""
        over = world.phase in (Phase.OPEN, Phase.CHECKED_OUT)
        return over and all(self._items.is_done(item) for item in world.items)

    def steps(self, world: World) -> Iterator[Step[World]]:
        several = len(world.items) > 1
        for index, item in enumerate(world.items):
            for step in self._item_steps(item, world.phase):
                items = (*world.items[:index], step.after, *world.items[index + 1 :])
                # Items are alike: which of them is named first makes no difference.
                after = world._replace(items=tuple(sorted(items)) if several else items)
                yield Step(step.verb, step.helps, after, step.broken, step.what)
        if self._bounds.commits:
            yield from self._checkout(world)
        if world.ticks < self._bounds.ticks:
            aged = tuple(map(self._items.aged, world.items))
            yield Step("time passes", False, world._replace(items=aged, ticks=world.ticks + 1))
        if self._bounds.restores:
            yield from self._restore(world)

    def _item_steps(self, item: Item, phase: Phase) -> Iterator[ItemStep]:
        yield from self._items.steps(item)
        if phase in (Phase.OPEN, Phase.COMPLETING):
            yield from self._items.caller_steps(item)

    def _checkout(self, world: World) -> Iterator[Step[World]]:
        lasts = [(self._items.row(item), item.wanted) for item in world.items]
        early = all(row.revision <= self._bounds.commits for row, _ in lasts)
        begin = Phase.CHECKING_OUT if self._bounds.window else Phase.COMPLETING
        if world.phase is Phase.OPEN and early:
            reserved = all(
                item.wanted and self._items.shown(item).state is ProgressState.RESERVED for item in world.items
            )
            if begin is Phase.CHECKING_OUT and reserved:
                yield from self._turn("begin checkout", world, begin, practice.extend)
            elif begin is Phase.COMPLETING and all(wanted for _, wanted in lasts):
                yield from self._turn("commit", world, begin, partial(transitions.commit, now=0))
        elif world.phase is Phase.CHECKING_OUT:
            yield Step("cancel checkout", True, world._replace(phase=Phase.OPEN))
            if all(practice.can_complete(row, wanted) for row, wanted in lasts):
                yield from self._turn("complete checkout", world, Phase.COMPLETING, partial(transitions.commit, now=0))
        elif world.phase is Phase.COMPLETING and all(row.settled for row, _ in lasts):
            sold = all(row.state is Observed.COMMITTED for row, _ in lasts)
            text = "checked out" if sold else "the checkout has failed"
            yield Step(text, True, world._replace(phase=Phase.CHECKED_OUT if sold else Phase.OPEN))

    def _turn(
        self, verb: str, world: World, phase: Phase, change: Callable[[Reservation], Reservation]
    ) -> Iterator[Step[World]]:
        try:
            items = tuple(self._items.with_row(item, change(self._items.row(item))) for item in world.items)
        except ValueError:
            # The rule itself forbids it for one of them.
            return
        yield Step(verb, False, world._replace(items=items, phase=phase))

    def _restore(self, world: World) -> Iterator[Step[World]]:
        if world.backup is None and world.phase is Phase.OPEN:
            backup = tuple((item.wanted, item.lanes[-1].row) for item in world.items)
            yield Step("back up", False, world._replace(backup=backup))
        elif world.backup:
            items = tuple(
                self._items.restored(item, wanted, row)
                for item, (wanted, row) in zip(world.items, world.backup, strict=True)
            )
            yield Step("restore", False, World(items, Phase.OPEN, world.ticks, ()))
