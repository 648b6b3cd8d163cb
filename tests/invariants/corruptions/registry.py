"""The table of corruptions: each takes a run without violations, breaks one thing, and declares the expected report.

A corruption raises NotApplicable if the run has nothing that can be broken in this way.
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
    """The run has nothing to corrupt in this way."""


def must_report(pattern: str) -> Callable[[Corruption], Corruption]:
    """Register a corruption. The checks must report it with a violation that matches `pattern`."""

    def register(corruption: Corruption) -> Corruption:
        CORRUPTIONS[corruption.__name__] = (corruption, re.compile(pattern))
        return corruption

    return register


def pick(rng: random.Random, values: Iterable[T]) -> T:
    """Pick one of `values`. Raises NotApplicable if there are none."""
    found = list(values)
    if not found:
        raise NotApplicable
    return rng.choice(found)


def swap(values: Sequence[T], old: T, new: T) -> list[T]:
    """`values` with `old` replaced by `new`."""
    return [new if value is old else value for value in values]


def with_dump(run: Run, **changes: Any) -> Run:
    return replace(run, dump=replace(run.dump, **changes))


def with_row(run: Run, old: Reservation, **changes: Any) -> Run:
    return with_dump(run, reservations=swap(run.dump.reservations, old, old._replace(**changes)))


def changes(run: Run) -> list[Operation]:
    """Answered operations that always change their cart."""
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
