"""What a run leaves behind for the checkers: records of what callers, the Reservation API and the database saw.

All times are int microseconds. Callers' times are of one monotonic clock for all callers; an ApiEffect's and a
Delivery's are the Reservation API's; a ClaimEvent's and a RowVersion's are the database's. Every list is in the order in
which things happened.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from cart_grpc.carts.model import Cart, Item
from cart_grpc.protocol.reservation import Disposition, Observed, Reservation
from cart_grpc.simulator.stock import Decided, Entry


class CallOutcome(Enum):
    """How an attempt ended: UNKNOWN is any end that does not tell whether it had its effect."""

    OK = "ok"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt of a caller's operation. Attempts of one user with one request_id are one operation.

    `rpc` is the method (`AddItem`), `request` and `reply` its messages as bytes; `cart` is the cart's name
    (`users/{user}/carts/{cart}`), whatever part of it the request named. `request_id` is "" where none was given.
    `code` is the gRPC code's name, `reason` that of ErrorInfo; both are "" where unknown.
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
    """One decision of the Reservation API, or the end of a hold that ran out: from `time` on the reservation is so.

    `quantity` and `disposition` are what was asked at `revision`; `granted_quantity` pieces of `sku` are held, or sold
    where `state` is COMMITTED. A hold that ran out is told at the revision that was decided last.
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
    """One message that `replica` sent and that reached the Reservation API, whatever became of it.

    Copies that the network made are no deliveries: nobody sent them.
    """

    time: int
    reservation_id: str
    revision: int
    replica: str


class ClaimAction(Enum):
    """What was done to a claim, and accepted: what changed nothing is no event."""

    CLAIMED = "claimed"
    EXTENDED = "extended"
    RECORDED = "recorded"
    HANDED_BACK = "handed back"
    # A caller's removal takes the claim away from whoever has it.
    OVERTAKEN = "overtaken"


@dataclass(frozen=True, slots=True)
class ClaimEvent:
    """`owner` did `action` under the claim `epoch`; `lease_expire_time` where it has the claim from then on.

    RECORDED means that the bookkeeping (`due_time`, `lease_expire_time`, `attempt`) was written, not that a decision was
    joined in, which any epoch may.
    """

    time: int
    reservation_id: str
    epoch: int
    owner: str
    action: ClaimAction
    lease_expire_time: int | None = None


@dataclass(frozen=True, slots=True)
class RowVersion:
    """A row as a transaction left it."""

    time: int
    row: Cart | Reservation


@dataclass(frozen=True, slots=True)
class Dump:
    """The database at quiescence. `replies` are by user (`users/{user}`) and request_id."""

    carts: Sequence[Cart]
    items: Sequence[Item]
    reservations: Sequence[Reservation]
    replies: Mapping[tuple[str, str], bytes]


def effects_of(entries: Iterable[Entry]) -> list[ApiEffect]:
    """The effects in the simulator's journal."""
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
