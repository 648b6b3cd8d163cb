"""Walks through every world that a protocol can come to, breadth first: what it finds is found in the fewest steps."""

from collections import deque
from collections.abc import Hashable, Iterable
from typing import Generic, NamedTuple, Protocol, TypeVar

W = TypeVar("W", bound=Hashable)


class Step(NamedTuple, Generic[W]):
    """What happens, and the world after. `helps`: it is what happens while all is well, so waiting for it is fair.

    `broken` is a promise that this step breaks, whatever world it leads to. `what` is done to or said, if anything.
    """

    verb: str
    helps: bool
    after: W
    broken: str | None = None
    what: object = None


class Model(Protocol[W]):
    """What an Explorer walks through."""

    def firsts(self) -> Iterable[tuple[str, W]]:
        """The worlds to begin with, and how they are called."""
        ...

    def steps(self, world: W) -> Iterable[Step[W]]:
        """All that can happen next."""
        ...

    def broken(self, world: W) -> str | None:
        """The promise that is broken in this world, if one is."""
        ...

    def is_done(self, world: W) -> bool:
        """Whether nothing is left to do."""
        ...

    def text_of(self, verb: str, what: object) -> str:
        """A step in words."""
        ...


class Harm(AssertionError):
    """A promise is broken. `trace` are the steps that led to it, the fewest there are."""

    def __init__(self, promise: str, trace: list[str]) -> None:
        super().__init__(f"{promise} after {len(trace)} steps: {'; '.join(trace)}")
        self.promise = promise
        self.trace = trace


NO_WAY = "no way leads to a settled cart"


class Explorer(Generic[W]):
    """Every world is given a number in the order in which it is found."""

    def __init__(self, model: Model[W]) -> None:
        self._model = model
        self._numbers: dict[W, int] = {}
        self._came: list[tuple[int, str, object]] = []
        self._helpful: list[list[int]] = []

    def explore(self) -> int:
        """Returns how many worlds there are. Raises Harm."""
        queue: deque[W] = deque()
        for text, world in self._model.firsts():
            self._find(world, -1, text, None, queue)
        done = []
        while queue:
            world = queue.popleft()
            number = self._numbers[world]
            if self._model.is_done(world):
                done.append(number)
            for step in self._model.steps(world):
                after = self._find(step.after, number, step.verb, step.what, queue)
                if step.broken:
                    raise Harm(step.broken, [*self._trace(number), self._model.text_of(step.verb, step.what)])
                if step.helps and after != number:
                    self._helpful[after].append(number)
        self._check_every_world_can_settle(done)
        return len(self._came)

    def _find(self, world: W, before: int, verb: str, what: object, queue: deque[W]) -> int:
        number = self._numbers.setdefault(world, len(self._came))
        if number == len(self._came):
            self._came.append((before, verb, what))
            self._helpful.append([])
            queue.append(world)
            if promise := self._model.broken(world):
                raise Harm(promise, self._trace(number))
        return number

    def _check_every_world_can_settle(self, done: list[int]) -> None:
        reached = set(done)
        while done:
            for before in self._helpful[done.pop()]:
                if before not in reached:
                    reached.add(before)
                    done.append(before)
        for number in range(len(self._came)):
            if number not in reached:
                raise Harm(NO_WAY, self._trace(number))

    def _trace(self, number: int) -> list[str]:
        steps: list[str] = []
        while number >= 0:
            number, verb, what = self._came[number]
            steps.append(self._model.text_of(verb, what))
        return steps[::-1]
