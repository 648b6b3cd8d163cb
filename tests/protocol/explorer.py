"""Explores every reachable state of a model, breadth first, so that the trace of a violation is a shortest one."""

from collections import deque
from collections.abc import Collection, Hashable, Iterable
from typing import Generic, NamedTuple, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


class Step(NamedTuple, Generic[S]):
    """One transition: `verb` leads to the state `after`.

    `is_fair` means that the step happens sooner or later if there are no faults, so a state may rely on it to settle.
    `violation` names an invariant that this step breaks, whatever state it leads to. `subject` is the message or answer
    of the step, for its description.
    """

    verb: str
    is_fair: bool
    after: S
    violation: str | None = None
    subject: object = None


class Model(Protocol[S]):
    """A state machine that an Explorer can explore."""

    def initial_states(self) -> Iterable[tuple[str, S]]:
        """The initial states, each with a description."""
        ...

    def steps(self, state: S) -> Iterable[Step[S]]:
        """All transitions from `state`."""
        ...

    def find_violation(self, state: S) -> str | None:
        """The invariant that `state` violates, or None."""
        ...

    def is_done(self, state: S) -> bool:
        """Whether `state` is settled."""
        ...

    def describe(self, verb: str, subject: object) -> str:
        """A step in words, for a trace."""
        ...


class Violation(AssertionError):
    """An invariant is violated. `trace` is a shortest list of steps that leads to it."""

    def __init__(self, invariant: str, trace: list[str]) -> None:
        super().__init__(f"{invariant} after {len(trace)} steps: {'; '.join(trace)}")
        self.invariant = invariant
        self.trace = trace


CANNOT_SETTLE = "the cart can never settle"


class Explorer(Generic[S]):
    """Explores one model. States are numbered in the order of their discovery."""

    def __init__(self, model: Model[S]) -> None:
        self._model = model
        self._numbers: dict[S, int] = {}
        self._reached_by: list[tuple[int, str, object]] = []
        self._fair_predecessors: list[list[int]] = []

    def explore(self) -> int:
        """Explore all states and return their number.

        Raises Violation if a state or step violates an invariant, or if fair steps cannot settle a state.
        """
        queue: deque[S] = deque()
        for text, state in self._model.initial_states():
            self._find(state, -1, text, None, queue)
        done = []
        while queue:
            state = queue.popleft()
            number = self._numbers[state]
            if self._model.is_done(state):
                done.append(number)
            for step in self._model.steps(state):
                after = self._find(step.after, number, step.verb, step.subject, queue)
                if step.violation:
                    raise Violation(
                        step.violation, [*self._trace(number), self._model.describe(step.verb, step.subject)]
                    )
                if step.is_fair and after != number:
                    self._fair_predecessors[after].append(number)
        self._check_every_state_can_settle(done)
        return len(self._reached_by)

    @property
    def states(self) -> Collection[S]:
        """The states that were found."""
        return self._numbers.keys()

    def _find(self, state: S, before: int, verb: str, subject: object, queue: deque[S]) -> int:
        number = self._numbers.setdefault(state, len(self._reached_by))
        if number == len(self._reached_by):
            self._reached_by.append((before, verb, subject))
            self._fair_predecessors.append([])
            queue.append(state)
            if invariant := self._model.find_violation(state):
                raise Violation(invariant, self._trace(number))
        return number

    def _check_every_state_can_settle(self, done: list[int]) -> None:
        reached = set(done)
        while done:
            for before in self._fair_predecessors[done.pop()]:
                if before not in reached:
                    reached.add(before)
                    done.append(before)
        for number in range(len(self._reached_by)):
            if number not in reached:
                raise Violation(CANNOT_SETTLE, self._trace(number))

    def _trace(self, number: int) -> list[str]:
        steps: list[str] = []
        while number >= 0:
            number, verb, subject = self._reached_by[number]
            steps.append(self._model.describe(verb, subject))
        return steps[::-1]
