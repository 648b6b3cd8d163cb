"""A reservation: what is intended, what was observed, and what is said to and by the Reservation API.

The rules that lead from one to the other are in `protocol`. Times and durations are int microseconds, times since the
Unix epoch in UTC.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from cart_grpc.names import CartKey


class Disposition(IntEnum):
    """What should become of the stock. The numbers are those of `cartgrpc.reservation.v1` and of the database."""

    HOLD = 1
    COMMIT = 2
    RELEASE = 3


class Observed(IntEnum):
    """What the Reservation API last decided. The numbers are those of `cartgrpc.reservation.v1` and of the database."""

    NOTHING = 0
    HELD = 1
    REJECTED = 2
    COMMITTED = 3
    RELEASED = 4
    EXPIRED = 5


FINAL = frozenset({Observed.COMMITTED, Observed.RELEASED})
# The `seal_reason` of a hold that an operator has given back, while its item is still in the cart.
RELEASED_BY_OPERATOR = "RELEASED_BY_OPERATOR"


@dataclass(frozen=True, slots=True)
class Intent:
    """One message to the Reservation API: make the reservation this. `ttl` in microseconds."""

    reservation_id: str
    revision: int
    sku: str
    quantity: int
    disposition: Disposition
    ttl_us: int
    labels: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the Reservation API decided for one revision.

    `expire_time` in microseconds, None where nothing is held, or for good. `live_count` is how many live reservations
    were found under the id, where the contract lets there be several.
    """

    reservation_id: str
    revision: int
    state: Observed
    granted_quantity: int
    expire_time: int | None
    reason: str
    live_count: int = 0


@dataclass(frozen=True, slots=True)
class PermanentFailure:
    """An error that says the request can never succeed. The API does not remember it, so it must be sealed.

    `reason` is UPPER_SNAKE_CASE, at most 63 characters; `message` is for the operator's eyes.
    """

    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


@dataclass(frozen=True, slots=True)
class StaleRevision:
    """The API has decided a higher revision already; `current` is that decision."""

    current: Decision

    def __str__(self) -> str:
        return f"ABORTED: revision {self.current.revision} was decided already"


Answer = Decision | PermanentFailure | StaleRevision


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """There was no answer: the message may or may not have taken effect. `code` says how the call ended."""

    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class Reservation(NamedTuple):
    """One row: intent, what was observed, and the work between them.

    `intent_revision` is the revision at which the intent last changed in substance: a renewal raises `revision` alone,
    and nobody need see it. `reserved_cap` is the least quantity intended since the last grant observed: what is shown
    as reserved never exceeds it, since a smaller intent may have been decided already. `seal_reason` is set while an
    error that can never succeed is being sealed, and after; an operator's release sets it, too. `waiting` rows are not
    due until the older reservations of the same cart and sku are released. `due_time` is None when there is nothing to
    do. `uncertain_until` is when what was last attempted under the `basic` contract can take effect no more, None where
    nothing was: see `attempts`.
    """

    reservation_id: str
    cart: CartKey
    item_id: str
    sku: str
    quantity: int
    disposition: Disposition
    ttl_us: int
    revision: int
    intent_revision: int
    reserved_cap: int
    create_time: int
    state: Observed = Observed.NOTHING
    granted_quantity: int = 0
    expire_time: int | None = None
    observed_revision: int = 0
    reason: str = ""
    seal_reason: str = ""
    waiting: bool = False
    due_time: int | None = None
    attempt_count: int = 0
    lease_epoch: int = 0
    lease_expire_time: int | None = None
    last_error: str = ""
    finish_time: int | None = None
    uncertain_until: int | None = None

    @property
    def name(self) -> str:
        return f"reservations/{self.reservation_id}"

    @property
    def settled(self) -> bool:
        """Whether the Reservation API has answered for the latest revision."""
        return self.observed_revision >= self.revision

    @property
    def reconciling(self) -> bool:
        """Whether the Reservation API has not answered yet for what a caller intends."""
        return self.observed_revision < self.intent_revision

    @property
    def releasing(self) -> bool:
        """Whether it may still hold stock that it is to give back."""
        released = self.settled or self.state is Observed.RELEASED
        return self.disposition is Disposition.RELEASE and not released

    @property
    def is_closed(self) -> bool:
        """Whether the id can hold nothing any more: final states absorb whatever is asked later."""
        return self.disposition is Disposition.RELEASE or self.state in FINAL

    @property
    def frozen(self) -> bool:
        """Whether no other intent may follow: it is to be committed, and the answer was not, or not yet, REJECTED."""
        rejected = self.settled and self.state is Observed.REJECTED
        return self.disposition is Disposition.COMMIT and not rejected
