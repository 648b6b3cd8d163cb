"""Ways for a run to be wrong: each takes a run in which nothing is, makes one thing wrong, and says what is to be said.

NotApplicable is raised where a run has nothing that can be wrong in this way.
"""

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from cart_grpc.protocol.reservation import Reservation
from tests.invariants.history import Call, CallOutcome
from tests.invariants.operations import Operation, took_place
from tests.invariants.run import Run

T = TypeVar("T")
Corruption = Callable[[Run, random.Random], Run]
CORRUPTIONS: dict[str, tuple[Corruption, re.Pattern[str]]] = {}


class NotApplicable(Exception):
    """There is none to be picked."""


def must_report(pattern: str) -> Callable[[Corruption], Corruption]:
    """Register a mutation that must be reported with `pattern`."""

    def register(mutation: Corruption) -> Corruption:
        CORRUPTIONS[mutation.__name__] = (mutation, re.compile(pattern))
        return mutation

    return register


def pick(rng: random.Random, values: Iterable[T]) -> T:
    """One of them. Raises NotApplicable where there is none."""
    found = list(values)
    if not found:
        raise NotApplicable
    return rng.choice(found)


def swap(values: Sequence[T], old: T, new: T) -> list[T]:
    """`values` with `new` in place of the one that is `old`."""
    return [new if value is old else value for value in values]


def with_dump(run: Run, **changes: Any) -> Run:
    return replace(run, dump=replace(run.dump, **changes))


def with_row(run: Run, old: Reservation, **changes: Any) -> Run:
    return with_dump(run, reservations=swap(run.dump.reservations, old, old._replace(**changes)))


def changes(run: Run) -> list[Operation]:
    """Operations that were answered, and that no cart can be without."""
    operations = took_place(run.calls, {})
    return [one for one in operations if one.rpc in ("AddItem", "BatchAddItems", "RemoveItem", "DeleteCart")]


def attempts(run: Run, operation: Operation) -> list[Call]:
    return [call for call in run.calls if call.request_id == operation.request_id and call.rpc == operation.rpc]


def answers(run: Run, *rpcs: str) -> list[Call]:
    return [call for call in run.calls if call.outcome is CallOutcome.OK and call.rpc in rpcs]


def acknowledged(run: Run) -> list[tuple[str, str]]:
    """The keys of the replies whose operations were acknowledged."""
    return sorted(
        {(call.user, call.request_id) for call in run.calls if call.outcome is CallOutcome.OK and call.request_id}
    )
