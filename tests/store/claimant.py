"""A claimant with a fixed room, in the place of the reconciler."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from cart_grpc.protocol.lanes import HOLD_LANE, RELEASE_LANE, Lane
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.store.change_notifier import Room
from tests.store.writes import LEASE

PLENTY: Mapping[Lane, int] = {HOLD_LANE: 100, RELEASE_LANE: 100}


class FixedRoom:
    """Gives every batch the same room. `taken` has the claims that were handed over."""

    def __init__(self, claims: Mapping[Lane, int] = PLENTY, lease_us: int = LEASE) -> None:
        self.room = Room(claims, lease_us)
        self.reserved = 0
        self.taken: list[Reservation] = []

    @contextmanager
    def reserve_room(self) -> Iterator[Room]:
        self.reserved += 1
        yield self.room
        self.reserved -= 1

    def take(self, claimed: Sequence[Reservation]) -> None:
        assert self.reserved
        self.taken += claimed
