"""Invariants of claims, by the database's clock: one owner at a time; an overtaken owner changes nothing."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cart_grpc.protocol.reservation import Reservation
from tests.invariants.history import ClaimAction, ClaimEvent

_OWN = frozenset({ClaimAction.EXTENDED, ClaimAction.RECORDED, ClaimAction.HANDED_BACK})


def check_claims(events: Iterable[ClaimEvent]) -> list[str]:
    """Each claim raises the epoch and begins when no other claim is in force.

    Only the owner of the latest claim extends it, hands it back or writes its bookkeeping.
    """
    claims: dict[str, _Claim] = {}
    return [
        violation for event in events for violation in claims.setdefault(event.reservation_id, _Claim()).follow(event)
    ]


@dataclass(slots=True)
class _Claim:
    """The latest claim of a reservation; it is in force until `until`."""

    epoch: int = 0
    owner: str = ""
    until: int = 0

    def follow(self, event: ClaimEvent) -> Iterator[str]:
        match event.action:
            case ClaimAction.CLAIMED:
                if event.epoch <= self.epoch:
                    yield f"a claim does not raise epoch {self.epoch}: {event}"
                if event.time < self.until:
                    yield f"{self.owner} has a claim until {self.until}, but another claim began: {event}"
                self.owner = event.owner
            case action if action in _OWN and (event.epoch, event.owner) != (self.epoch, self.owner):
                owner = self.owner or "no process"
                yield f"{owner} has the claim with epoch {self.epoch}, but this was accepted: {event}"
            case _:
                pass
        self.epoch = max(self.epoch, event.epoch)
        self.until = event.lease_expire_time or 0


def find_record(
    before: Reservation, after: Reservation, claimed: Reservation, time: int, owner: str
) -> ClaimEvent | None:
    """The event of recording an outcome for the claim `claimed`, or None if that left the claim in force alone."""

    def event(action: ClaimAction, epoch: int) -> ClaimEvent:
        return ClaimEvent(time, after.reservation_id, epoch, owner, action, after.lease_expire_time)

    if (after.due_time, after.lease_expire_time, after.attempt_count) == (
        before.due_time,
        before.lease_expire_time,
        before.attempt_count,
    ):
        return None
    if claimed.lease_epoch != before.lease_epoch and (after.settled or after.revision > before.revision):
        return event(ClaimAction.OVERTAKEN, after.lease_epoch)
    return event(ClaimAction.RECORDED, claimed.lease_epoch)
