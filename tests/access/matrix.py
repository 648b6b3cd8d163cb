"""The matrix: a cell for each method, caller and target, with the answer that the rules demand."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Final

from cartgrpc.v1 import cart_admin_service_pb2, cart_service_pb2
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2

from tests.access.identities import CALLERS, Caller
from tests.access.rules import (
    ACT_AS,
    ALL_SCOPES,
    MALFORMED,
    NOT_SERVED,
    OK,
    READ,
    RULES,
    SERVED,
    UNREACHABLE,
    WRITE,
    Answer,
    denied,
)
from tests.access.targets import ITSELF, NOBODY, OTHER, TARGETS, Target, User

_SERVICES: Final = [
    service
    for file in (cart_service_pb2, cart_admin_service_pb2, health_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
]
METHODS: Final[dict[str, MethodDescriptor]] = {
    f"{service.full_name}/{method.name}": method for service in _SERVICES for method in service.methods
}
A, B = "alice", "bob"
# These callers have a cell for every target.
THOROUGH: Final = {"user A", "user B", "token with act-as", f"{READ} {WRITE} {ACT_AS}", " ".join(ALL_SCOPES[3:])}


@dataclass(frozen=True)
class Cell:
    """One call. `me` is the caller if it is a user, and `other` another user: their ids.

    The call may change what the users in `changes` have, and nothing else.
    """

    method: str
    caller: Caller
    target: Target
    me: str
    other: str
    expected: Answer
    changes: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.method} by {self.caller.name!r} at the {self.caller.port} port to {self.target.name!r}"


def cells_of(
    method: str, callers: Iterable[Caller] = CALLERS, targets: Sequence[Target] = TARGETS, *, every: bool = False
) -> Iterator[Cell]:
    """The cells of a method. An allowed write has users of its own, so that no cell depends on another.

    Without `every`, most callers have only some targets, and other ones for each method, so that each caller meets
    each target.
    """
    numbers = count()
    for turn, caller in enumerate(callers, list(METHODS).index(method)):
        possible = [target for target in targets if _exists(method, target)]
        if not (every or caller.name in THOROUGH):
            possible = list(dict.fromkeys(_some(method, caller, possible, turn)))
        for target in possible:
            expected = expect(method, caller, target)
            me, other = (B, A) if caller.name == "user B" else (A, B)
            if target.named == NOBODY:
                other = "nobody"
            changes: set[str] = set()
            if expected == OK and RULES[method].writes:
                fresh = f"{method.rpartition('.')[2].replace('/', '.')}-{next(numbers)}"
                if target.named == ITSELF:
                    me = f"{fresh}.me"
                    changes.add(me)
                if target.named != ITSELF or target.second != ITSELF:
                    other = f"{fresh}.{target.named}"
                    changes.add(other)
            yield Cell(method, caller, target, me, other, expected, frozenset(changes))


def expect(method: str, caller: Caller, target: Target) -> Answer:
    """The answer that the rules demand, in the order in which they apply."""
    rule = RULES[method]
    if not caller.connects:
        return UNREACHABLE
    if method.partition("/")[0] not in SERVED[caller.port] and method != "grpc.health.v1.Health/Check":
        return NOT_SERVED
    if rule.scope and caller.refusal:
        return caller.refusal
    if target.outcome(rule) == MALFORMED:
        return MALFORMED
    if rule.scope and rule.scope not in caller.scopes:
        return denied(rule.scope)
    for field, owner in zip(rule.names, (target.named, target.second), strict=False):
        if ACT_AS not in caller.scopes and not (caller.acts_for_itself and owner == ITSELF):
            return denied(ACT_AS, field)
    return target.outcome(rule)


def _some(method: str, caller: Caller, targets: Sequence[Target], turn: int) -> Sequence[Target]:
    if expect(method, caller, targets[0]) in (UNREACHABLE, NOT_SERVED):
        return targets[:1]
    another = targets[turn % len(targets)]
    # If it may not call the method at all, the target must make no difference.
    may_call = RULES[method].scope in caller.scopes
    return (*targets[:2], another, targets[-1]) if may_call else (another, targets[-1])


@cache
def _exists(method: str, target: Target) -> bool:
    user = User("users/x", "users/x/checkouts/y", "reservations/z", {"ListCarts": "t", "ListCheckouts": "t"})
    return target.build(method, user, user) is not None


def hides(cell: Cell) -> bool:
    """Whether the answer must be the same for everything that other users have or do not have."""
    return OTHER in (cell.target.named, cell.target.second) or cell.target.name == "user who does not exist"
