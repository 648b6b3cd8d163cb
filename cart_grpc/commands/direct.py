"""Direct commands. The store runs each as SQL over many rows, without a unit of work.

All other commands are folded: see `commands.command`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cart_grpc.names import UserKey
from cart_grpc.protocol.lanes import Lane
from cart_grpc.protocol.reservation import Reservation

MAX_SET_ASIDE_REASON = 300
DEFAULT_CHECKOUT_RETENTION_US = 90 * 24 * 3_600_000_000


class ClaimKey(NamedTuple):
    """One row of `reservations` in one lease epoch."""

    slice: int
    reservation_id: str
    lease_epoch: int


@dataclass(frozen=True, slots=True)
class Claim:
    """Claim up to `limit` due reservations of a lane for `lease_us`. The answer: the claimed rows.

    `only`: claim this row and no other, if it is still due in its epoch.
    """

    lane: Lane
    limit: int
    lease_us: int
    only: ClaimKey | None = None


@dataclass(frozen=True, slots=True)
class SetAside:
    """Stop claiming a row that makes a statement fail, until a caller or an operator changes it.

    `reason` says why, for operators, in up to MAX_SET_ASIDE_REASON characters. The answer: whether it was set aside. It
    is not if it has another epoch by now.
    """

    row: ClaimKey
    reason: str


@dataclass(frozen=True, slots=True)
class ExtendLeases:
    """Extend the leases of claims to `lease_us` from now. Skips claims that another worker has taken over."""

    claims: Sequence[Reservation]
    lease_us: int


@dataclass(frozen=True, slots=True)
class ReturnClaims:
    """Give up claims: their reservations are due now, for any worker. Skips claims that were taken over."""

    claims: Sequence[Reservation]


@dataclass(frozen=True, slots=True)
class Purge:
    """Delete up to `limit` rows of each kind that ended longer ago than its retention. A checkout's items go with it.

    The answer: the number of deleted rows.
    """

    replies_us: int
    reservations_us: int
    carts_us: int
    limit: int
    checkouts_us: int = DEFAULT_CHECKOUT_RETENTION_US


@dataclass(frozen=True, slots=True)
class EraseRows:
    """Delete up to `limit` rows of each table that belong to a user who is being erased, and at last the user's row.

    Call it once no cart of the user is open, no checkout is running, every reservation is finished and no other cart
    names the user's. The answer: the number of deleted rows; 0 if another transaction works on the user.
    """

    user: UserKey
    limit: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop all claims, in every process, until Resume. If they are stopped already, replace only the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Allow claims again."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Write a batch's commit marker and nothing else, to see whether the database accepts writes."""


DirectCommand = Claim | SetAside | ExtendLeases | ReturnClaims | Ping | Purge | EraseRows | Pause | Resume
