"""A contract, as the probe sees it: one check per sentence that a client can test."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class CheckSession(Protocol):
    """The calls of one check to an API."""

    async def check_reachable(self) -> None:
        """Raises Unreachable unless an API answers."""
        ...

    async def prepare(self) -> None:
        """Prepare the session for a check. Raises NotTested or NoAnswerError if no check can run."""
        ...

    async def release_all(self) -> None:
        """Release everything that the session reserved; note in the log what could not be released."""
        ...


S = TypeVar("S", bound=CheckSession)
Run = Callable[[S], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Check(Generic[S]):
    """A check of `rule`. `test` describes in the report what the check sends.

    `run` returns a description of the answer if the rule is kept. Otherwise it raises CheckFailed, NotTested or
    NoAnswerError. Preconditions raise NotTested, so that an API that breaks one rule does not fail the others.
    """

    rule: str
    test: str
    run: Run[S]


def check(rule: str, test: str) -> Callable[[Run[S]], Check[S]]:
    """Make a Check of the decorated function."""
    return lambda run: Check(rule, test, run)


@dataclass(frozen=True, slots=True)
class Contract(Generic[S]):
    """A contract. The probe runs `checks` in their order.

    `consequences` says for each rule what happens in carts if the API breaks it; the report lists the rules in this
    order. A rule in `optional` need not be tested for the contract to pass. `leftover_lifetime` says how long a
    reservation stays that the probe could not release.
    """

    name: str
    checks: tuple[Check[S], ...]
    consequences: Mapping[str, str]
    leftover_lifetime: str
    optional: frozenset[str] = frozenset()
