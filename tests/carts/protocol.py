"""Every world that the reservation protocol can come to, within small bounds: the real rules, a network without mercy.

One sku, of which two pieces are to be had. A caller puts one or two of it into the cart, changes its mind, takes it
out, puts it in again. Any number of workers, with no lease between them, send what is to be said and record what was
answered. Every message ever sent may arrive at any time, again and again; so may every answer. The Reservation API
keeps its rules 1 to 5; it may also refuse what it has not decided, and forgets that it did.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cart_grpc.carts import protocol
from cart_grpc.carts.model import Progress, ProgressState, progress
from cart_grpc.carts.reservation import Decision, Observed, Overtaken, Refusal, Reservation, Silence
from tests.carts.examples import line_of
from tests.carts.worlds import (
    QUANTITIES,
    RELEASE,
    STOCK,
    Heard,
    Message,
    World,
    decide,
    decision_of,
    first_worlds,
    made,
    outcome_of,
    plain,
    text_of,
    told_by,
)


@dataclass(frozen=True)
class Bounds:
    """Up to which revision a caller changes the quantity, and the API refuses; how often the item is put in.

    A removal and a seal may raise the revision further.
    """

    changed: int
    refused: int
    ids: int


@dataclass(frozen=True)
class Rules:
    """What a mutant may replace beside the functions of `cart_grpc.carts.protocol`."""

    shown: Callable[[Reservation, int], Progress] = lambda row, wanted: progress(line_of(row, wanted), 0)
    same_id_again: bool = False
    waits: bool = True


class Harm(AssertionError):
    """A promise is broken. `trace` are the steps that led to it, the fewest there are."""

    def __init__(self, promise: str, trace: list[str]) -> None:
        super().__init__(f"{promise} after {len(trace)} steps: {'; '.join(trace)}")
        self.promise = promise
        self.trace = trace


class Explorer:
    """Walks through all worlds, breadth first. Raises Harm."""

    def __init__(self, bounds: Bounds, rules: Rules) -> None:
        self._bounds = bounds
        self._rules = rules
        self._cache: dict[object, Reservation] = {}
        self._shown: dict[tuple[Reservation, int], Progress] = {}
        self._from: dict[World, tuple[World, str] | None] = {}
        self._helpful: dict[World, list[World]] = {}

    def explore(self) -> int:
        """Returns how many worlds there are."""
        queue = deque(first_worlds())
        self._from = dict.fromkeys(queue)
        while queue:
            world = queue.popleft()
            for promise in self.broken_promises(world):
                raise Harm(promise, self._trace(world))
            for step, helps, after in self.steps(world):
                if after == world:
                    continue
                if helps:
                    self._helpful.setdefault(after, []).append(world)
                if after not in self._from:
                    self._from[after] = (world, step)
                    queue.append(after)
        self._check_every_world_can_settle()
        return len(self._from)

    def _check_every_world_can_settle(self) -> None:
        queue = deque(world for world in self._from if self.is_done(world))
        reached = set(queue)
        while queue:
            for before in self._helpful.get(queue.popleft(), ()):
                if before not in reached:
                    reached.add(before)
                    queue.append(before)
        for world in self._from:
            if world not in reached:
                raise Harm("no way leads to a settled cart", self._trace(world))

    def _trace(self, world: World) -> list[str]:
        steps: list[str] = []
        while before := self._from[world]:
            world, step = before
            steps.append(step)
        return [f"add {world.wanted} of {STOCK - world.elsewhere}", *reversed(steps)]

    def shown(self, world: World) -> Progress:
        key = (world.rows[-1], world.wanted)
        if key not in self._shown:
            self._shown[key] = self._rules.shown(*key)
        return self._shown[key]

    def is_done(self, world: World) -> bool:
        """Intent and observed agree; an item is reserved unless it was refused or there is too little."""
        if not all(row.settled for row in world.rows):
            return False
        if not world.wanted or self.shown(world).state is ProgressState.RESERVED:
            return True
        return bool(world.rows[-1].refused_reason) or world.elsewhere > 0

    def broken_promises(self, world: World) -> Iterator[str]:
        """What was promised of the stock and of the rows, and is not so."""
        live = [decided.granted if decided else 0 for decided in world.api]
        if sum(map(bool, live)) > 1:
            yield "two reservations at once"
        if not world.elsewhere and any(one and one.state is Observed.REJECTED for one in world.api):
            yield "our own hold was what made it out of stock"
        for row, granted in zip(world.rows, live, strict=False):
            if row.disposition is RELEASE and row.settled and granted:
                yield "something is held for what is released"
            if row.due_at is None and not (row.settled or row.waiting):
                yield "a row that has something to say is never due"
        if world.wanted:
            yield from self._broken_to_the_caller(world, live[len(world.rows) - 1])

    def _broken_to_the_caller(self, world: World, held: int) -> Iterator[str]:
        shown = self.shown(world)
        if shown.reserved_quantity > held:
            yield "more is shown as reserved than is held"
        if shown.state is ProgressState.REJECTED:
            if shown.reserved_quantity != held:
                yield "more is held than a rejected item shows"
            if self._can_change(world):
                yield "a message under way can still take effect for a rejected item"

    def _can_change(self, world: World) -> bool:
        which = len(world.rows) - 1
        decided = world.api[which]
        return any(
            message.which == which and decide(world, message).granted != (decided.granted if decided else 0)
            for message in world.sent
            if decided is None or message.revision > decided.message.revision
        )

    def steps(self, world: World) -> Iterator[tuple[str, bool, World]]:
        """What can happen next; whether it helps to settle; the world after."""
        yield from self._caller(world)
        for which, row in enumerate(world.rows):
            intent = protocol.next_intent(row)
            if intent and row.due_at is not None:
                message = Message(which, intent.revision, intent.disposition, intent.quantity)
                yield f"send {text_of(message)}", True, world._replace(sent=world.sent | {message})
        for message in world.sent:
            yield from self._deliver(world, message)
            silence = Silence("DEADLINE_EXCEEDED", "")
            yield f"time out {text_of(message)}", False, self._record(world, message.which, message.revision, silence)
        for heard in world.answers:
            after = self._record(world, heard.which, heard.revision, outcome_of(heard))
            yield f"record {told_by(heard)}", True, after

    def _caller(self, world: World) -> Iterator[tuple[str, bool, World]]:
        row, last = world.rows[-1], len(world.rows) - 1
        if not world.wanted:
            for quantity in QUANTITIES:
                yield from self._start_again(world, quantity, f"add {quantity} again")
            return
        removed = self._put(world, last, ("release", row), lambda: protocol.release(row, 0))
        yield "remove", False, removed._replace(wanted=0)
        for quantity in QUANTITIES:
            if quantity == world.wanted and self.shown(world).state is not ProgressState.REJECTED:
                continue
            if row.over:
                yield from self._start_again(world, quantity, f"want {quantity} under another id")
            elif row.revision < self._bounds.changed:
                after = self._put(world, last, ("hold", row, quantity), lambda q=quantity: protocol.hold(row, q, 0))  # type: ignore[misc]
                yield f"want {quantity}", False, after._replace(wanted=quantity)

    def _start_again(self, world: World, quantity: int, step: str) -> Iterator[tuple[str, bool, World]]:
        if self._rules.same_id_again:
            rows = (*world.rows[:-1], made(len(world.rows) - 1, quantity, waiting=False))
            yield step, False, world._replace(wanted=quantity, rows=rows)
        elif len(world.rows) < self._bounds.ids:
            waiting = self._rules.waits and any(row.releasing for row in world.rows)
            rows = (*world.rows, made(len(world.rows), quantity, waiting=waiting))
            yield step, False, world._replace(wanted=quantity, rows=rows)

    def _deliver(self, world: World, message: Message) -> Iterator[tuple[str, bool, World]]:
        which, before = message.which, world.api[message.which]
        refused = world._replace(answers=world.answers | {Heard(which, message.revision, None)})
        if before and message.revision < before.message.revision:
            outcome = Overtaken(decision_of(before))
            yield f"abort {text_of(message)}", True, self._record(world, which, message.revision, outcome)
            return
        if before and message.revision == before.message.revision and message != before.message:
            yield f"refuse {text_of(message)}", True, refused
            return
        after = world
        if before is None or message.revision > before.message.revision:
            if message.revision <= self._bounds.refused:
                yield f"refuse {text_of(message)}", False, refused
            decided = tuple(decide(world, message) if index == which else one for index, one in enumerate(world.api))
            after = world._replace(api=decided)
        answer = Heard(which, message.revision, after.api[which])
        yield f"apply {text_of(message)}", True, after._replace(answers=after.answers | {answer})

    def _record(self, world: World, which: int, sent: int, outcome: Decision | Refusal | Overtaken | Silence) -> World:
        row = world.rows[which]
        key = ("record", row, sent, outcome)
        after = self._put(world, which, key, lambda: protocol.record(row, 0, sent, outcome, 0, 0))
        if any(row.releasing for row in after.rows):
            return after
        rows = tuple(plain(protocol.unblock(one, 0)) if one.waiting else one for one in after.rows)
        return after._replace(rows=rows)

    def _put(self, world: World, which: int, key: object, change: Callable[[], Reservation]) -> World:
        if key not in self._cache:
            self._cache[key] = plain(change())
        rows = tuple(self._cache[key] if index == which else row for index, row in enumerate(world.rows))
        return world._replace(rows=rows)
