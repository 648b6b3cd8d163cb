"""The history of a run: calls, decisions of the Reservation API, and changes in the database.

All times are int microseconds. All callers share one monotonic clock. ApiEffect and Delivery have the time of the
Reservation API, ClaimEvent and RowVersion that of the database. Every list is in the order of events.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from cart_grpc.carts.model import Cart, Checkout, Item, UserTotals
from cart_grpc.names import CheckoutKey
from cart_grpc.protocol.reservation import Disposition, Observed, Reservation
from cart_grpc.simulator.stock import Decided, Entry


class CallOutcome(Enum):
    """How an attempt ended. UNKNOWN: the caller cannot tell whether it took effect."""

    OK = "ok"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt of a caller's operation. Attempts of one user with one request_id are one operation.

    `rpc` is the method, such as `AddItem`; `request` and `reply` are its encoded messages. `cart` is the full name
    `users/{user}/carts/{cart}`. `request_id` is "" if the request has none. `code` is the name of the gRPC status code,
    `reason` that of ErrorInfo; both are "" if unknown.
    """

    cart: str
    rpc: str
    request: bytes
    request_id: str
    invoked: int
    returned: int
    outcome: CallOutcome
    code: str = ""
    reason: str = ""
    reply: bytes = b""

    @property
    def user(self) -> str:
        """`users/{user}`."""
        return self.cart.partition("/carts/")[0]


@dataclass(frozen=True, slots=True)
class ApiEffect:
    """One decision of the Reservation API, or the expiry of a hold: the reservation's state from `time` on.

    `quantity` and `disposition` are those of the message with `revision`. `granted_quantity` pieces of `sku` are held,
    or sold if `state` is COMMITTED. An expiry has the revision of the last decision.
    """

    time: int
    reservation_id: str
    revision: int
    disposition: Disposition
    sku: str
    quantity: int
    state: Observed
    granted_quantity: int
    expire_time: int | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message that `replica` sent and that reached the Reservation API.

    Copies that the network made do not count.
    """

    time: int
    reservation_id: str
    revision: int
    replica: str


class ClaimAction(Enum):
    """An accepted change of a claim."""

    CLAIMED = "claimed"
    EXTENDED = "extended"
    RECORDED = "recorded"
    HANDED_BACK = "handed back"
    # A caller's removal ended the claim.
    OVERTAKEN = "overtaken"


@dataclass(frozen=True, slots=True)
class ClaimEvent:
    """`owner` did `action` under the claim with `epoch`. `lease_expire_time` is None if the claim ended.

    RECORDED means that the bookkeeping (`due_time`, `lease_expire_time`, `attempt_count`) was written. A merged
    decision alone is no event: any epoch may merge one.
    """

    time: int
    reservation_id: str
    epoch: int
    owner: str
    action: ClaimAction
    lease_expire_time: int | None = None


@dataclass(frozen=True, slots=True)
class RowVersion:
    """A row as a transaction wrote it."""

    time: int
    row: Cart | Reservation


@dataclass(frozen=True, slots=True)
class Dump:
    """The database at quiescence. `replies` are by user (`users/{user}`) and request_id.

    `totals` are the users' running totals. `sold_items` are the items that have passed from carts to checkouts.
    """

    carts: Sequence[Cart]
    items: Sequence[Item]
    reservations: Sequence[Reservation]
    replies: Mapping[tuple[str, str], bytes]
    totals: Mapping[str, UserTotals]
    checkouts: Sequence[Checkout] = ()
    sold_items: Mapping[CheckoutKey, Sequence[Item]] = field(default_factory=dict)


def effects_of(entries: Iterable[Entry]) -> list[ApiEffect]:
    """The effects in the journal of the simulator."""
    return [_effect(entry) for entry in entries if isinstance(entry, Decided)]


def _effect(entry: Decided) -> ApiEffect:
    record = entry.reservation
    return ApiEffect(
        time=entry.time,
        reservation_id=record.intent.reservation_id,
        revision=record.intent.revision,
        disposition=record.intent.disposition,
        sku=record.sku,
        quantity=record.intent.quantity,
        state=record.state,
        granted_quantity=record.granted,
        expire_time=record.expire_time,
    )
