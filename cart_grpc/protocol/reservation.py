"""The values of the protocol: a reservation (intent, observation, work) and the messages to and from the API.

The rules that change a reservation are in `transitions`. Times are int microseconds since the Unix epoch in UTC;
durations are int microseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

from cart_grpc.names import CartKey


class Disposition(IntEnum):
    """The intended effect on the stock. `cartgrpc.reservation.v1` and the database use the same numbers."""

    HOLD = 1
    COMMIT = 2
    RELEASE = 3


class Observed(IntEnum):
    """The last decision of the API that we know. `cartgrpc.reservation.v1` and the database use the same numbers."""

    NOTHING = 0
    HELD = 1
    REJECTED = 2
    COMMITTED = 3
    RELEASED = 4
    EXPIRED = 5


MIN_TTL_US: Final = 1_000_000
MAX_TTL_US: Final = 25 * 3600 * 1_000_000
"""The shortest and the longest ttl of a HOLD (`cartgrpc.reservation.v1`, rule 5), in microseconds.

The longest is more than a checkout asks for, whose window may be 24 hours.
"""

# Once in one of these states, a reservation never leaves it.
FINAL = frozenset({Observed.COMMITTED, Observed.RELEASED})
# The `seal_reason` of a hold that an operator released while its item was still in the cart.
RELEASED_BY_OPERATOR = "RELEASED_BY_OPERATOR"


@dataclass(frozen=True, slots=True)
class Intent:
    """One message to the Reservation API: the state that the reservation should have.

    `ttl_us` is how long the hold should last. `labels` is set by the probe only, and is no part of the body that the
    API compares. `checkout_id` and `trace_context` are not sent: they say in which lane the call goes out, and which
    call caused it.
    """

    reservation_id: str
    revision: int
    sku: str
    quantity: int
    disposition: Disposition
    ttl_us: int
    labels: Mapping[str, str] = field(default_factory=dict, compare=False)
    checkout_id: str = field(default="", compare=False)
    trace_context: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Decision:
    """The API's decision for one revision.

    `expire_time` is None if nothing is held or the hold never expires. `live_count` is the number of live reservations
    found under the id; only the `basic` contract allows more than one.
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
    """An error answer that a retry cannot mend, such as INVALID_ARGUMENT or HTTP 422.

    The API does not remember it, so the reservation must be sealed: see `transitions.seal`. `reason` is
    UPPER_SNAKE_CASE, at most 63 characters; operators see `message`, callers do not.
    """

    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


@dataclass(frozen=True, slots=True)
class StaleRevision:
    """The API already decided a higher revision than the one we sent; `current` is that decision."""

    current: Decision

    def __str__(self) -> str:
        return f"ABORTED: the Reservation API already decided revision {self.current.revision}"


Answer = Decision | PermanentFailure | StaleRevision


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """No answer came, or none that can be trusted: the message may or may not have taken effect. `code` says why."""

    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class Reservation(NamedTuple):
    """One database row: the intent, the last observation, and the reconciler's work.

    - `revision` rises with every new message. `intent_revision` is the revision of the last change of intent: a renewal
      raises `revision` only, and callers do not see it.
    - `reserved_cap` is the smallest quantity intended since the last observed grant. Callers never see more than this
      as reserved, because the API may already have decided the smaller quantity.
    - `seal_reason` is set when a PermanentFailure is sealed, and when an operator releases a hold; else it is "".
    - A `waiting` row is not due until the cart's older reservations of the same sku are released, except to renew its
      own hold.
    - `due_time` is None if there is nothing to do.
    - `uncertain_until` is the time after which the last attempt under the `basic` contract can no longer take effect,
      or None if there was no attempt: see `attempts`.
    - `checkout_id` is the checkout that the reservation is part of, or "". While the intent is HOLD, the reservation
      still belongs to the cart; with another intent it has passed to the checkout: see `is_of_cart`.
    - `superseded_by` is set when carts are merged: this hold of the merged cart is to be released once the reservation
      with that id, which has taken its quantity over, is decided. That reservation has `supersedes`. So has one that
      asks for a quantity beside an older reservation that is being released: see `merging`.
    - `set_aside_reason` is set if the database or our code cannot process the row: it is not claimed again until a
      caller or an operator changes it. Else it is "".
    - `trace_context` identifies the span of the call that last changed the intent, as `traceparent` does. None if that
      call is not traced. No rule depends on it.
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
    set_aside_reason: str = ""
    checkout_id: str = ""
    superseded_by: str = ""
    supersedes: bool = False
    trace_context: str | None = None

    @property
    def name(self) -> str:
        return f"reservations/{self.reservation_id}"

    @property
    def settled(self) -> bool:
        """Whether the API's decision on the latest revision was observed."""
        return self.observed_revision >= self.revision

    @property
    def reconciling(self) -> bool:
        """Whether the API's decision on the latest change of intent is still to come. Renewals do not count."""
        return self.observed_revision < self.intent_revision

    @property
    def releasing(self) -> bool:
        """Whether it should be released and may still hold stock."""
        released = self.settled or self.state is Observed.RELEASED
        return self.disposition is Disposition.RELEASE and not released

    @property
    def is_of_cart(self) -> bool:
        """Whether it belongs to its cart. If not, it has passed to the checkout."""
        return not self.checkout_id or self.disposition is Disposition.HOLD

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be held under this id again: it is released or sold, or should be released."""
        return self.disposition is Disposition.RELEASE or self.state in FINAL

    @property
    def frozen(self) -> bool:
        """Whether the intent may not change: it is COMMIT, and the commit was not observed to be REJECTED."""
        rejected = self.settled and self.state is Observed.REJECTED
        return self.disposition is Disposition.COMMIT and not rejected
