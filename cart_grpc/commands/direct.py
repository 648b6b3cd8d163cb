"""Commands that are one statement over many rows, whose carts nobody has to read: claims, leases, purges, pauses."""

from collections.abc import Sequence
from dataclasses import dataclass

from cart_grpc.protocol.lanes import Lane
from cart_grpc.protocol.reservation import Reservation


@dataclass(frozen=True, slots=True)
class Claim:
    """Claim up to `limit` due reservations of a lane for `lease_us` microseconds. Answered with their rows."""

    lane: Lane
    limit: int
    lease_us: int


@dataclass(frozen=True, slots=True)
class ExtendLeases:
    """ExtendLeases the claims that are still ours to `lease_us` microseconds from now."""

    claims: Sequence[Reservation]
    lease_us: int


@dataclass(frozen=True, slots=True)
class ReturnClaims:
    """Give claims back, due at once for whoever comes first."""

    claims: Sequence[Reservation]


@dataclass(frozen=True, slots=True)
class Purge:
    """Delete up to `limit` rows of each kind that ended longer ago than its retention, in microseconds.

    Answered with how many were deleted.
    """

    replies_us: int
    reservations_us: int
    carts_us: int
    limit: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Let nothing be claimed by anybody until Resume. Once paused, only the reason is replaced."""

    reason: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Let claims be made again."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Write what every batch writes, and nothing else: does the database take it?"""


DirectCommand = Claim | ExtendLeases | ReturnClaims | Ping | Purge | Pause | Resume
