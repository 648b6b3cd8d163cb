"""What a contract is to the probe: one check per sentence that can be tried from outside."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Asking(Protocol):
    """One check's conversation with an API."""

    async def greet(self) -> None:
        """Find out whether somebody is there. Raises NobodyThere."""
        ...

    async def begin(self) -> None:
        """Find out whether a check can begin. Raises NotTested and NoAnswerError."""
        ...

    async def end(self) -> None:
        """Give everything back, and note in the log what cannot be."""
        ...


S = TypeVar("S", bound=Asking)
Ask = Callable[[S], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Check(Generic[S]):
    """Whether `rule` is kept. `asked` says what is asked to find out.

    `ask` returns what came back if the rule is kept, and raises Broken, NotTested or NoAnswerError otherwise. What it
    needs to begin with goes through methods of its session that raise NotTested, so that an API which breaks one rule
    is not blamed for the others.
    """

    rule: str
    asked: str
    ask: Ask[S]


def check(rule: str, asked: str) -> Callable[[Ask[S]], Check[S]]:
    """Make a Check of the function below."""
    return lambda ask: Check(rule, asked, ask)


@dataclass(frozen=True, slots=True)
class Contract(Generic[S]):
    """`checks` in the order in which they are made.

    `costs` says of each rule, in the order in which they are shown, what it costs where it is not kept; of the `spare`
    ones nothing need be known. `lasts` is for how long a reservation stays that could not be given back.
    """

    name: str
    checks: tuple[Check[S], ...]
    costs: Mapping[str, str]
    lasts: str
    spare: frozenset[str] = frozenset()
