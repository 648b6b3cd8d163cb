"""The invariants of claims: who may claim what and when, and who may change a claim."""

import sqlite3
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

from tests.simulation.clock import SimulatedClock
from tests.simulation.rows import ReservationRow, find_paused

RISING = ("revision", "intent_revision", "observed_revision", "lease_epoch")


class ClaimChecks:
    """Calls `report_violation` for each broken invariant. `times`: when a row was claimed last, by the API's clock."""

    def __init__(
        self,
        raw: sqlite3.Connection,
        report_violation: Callable[[str], None],
        clock: SimulatedClock,
        *,
        healthy: bool,
    ) -> None:
        self.times: dict[str, int] = {}
        self._raw = raw
        self._report_violation = report_violation
        self._clock = clock
        self._healthy = healthy
        self._paused: AbstractSet[int] = frozenset()
        self._always_paused: AbstractSet[int] = frozenset()
        # The process that committed the claim, by reservation id and lease epoch.
        self._owners: dict[tuple[str, int], str] = {}
        self._claimed: set[tuple[str, str]] = set()

    def note_commit(self) -> None:
        """Note in which shards the transaction that committed now could not claim: they were paused all the time."""
        were_paused, self._paused = self._paused, find_paused(self._raw)
        self._always_paused = were_paused & self._paused

    def check(self, process_name: str, began: int, before: ReservationRow | None, after: ReservationRow) -> None:
        """Only the owner changes a claim, unless the API decided or a caller changed the intent."""
        # One batch may add, record or release a row and claim it afterwards.
        claimed = after.lease_expire_time is not None and after.lease_epoch > (before.lease_epoch if before else 0)
        owner = self._owners.get((before.reservation_id, before.lease_epoch)) if before is not None else None
        if claimed:
            self._owners[after.reservation_id, after.lease_epoch] = process_name
            self._claimed.add((process_name, after.reservation_id))
            self.times[after.reservation_id] = self._clock.api_now()
            if after.shard in self._always_paused:
                self._report_violation(f"{process_name} claimed in a pause: {before} became {after}")
            if self._healthy and before is not None and (before.lease_expire_time or began) < began:
                self._report_violation(f"a claim was lost although nothing failed: {before} became {after}")
        if before is None or before.lease_expire_time is None or owner == process_name:
            return
        # A decision on the claimed revision ends the claim, even if an older claim obtained it.
        answered = after.observed_revision >= before.revision
        # A change of the intent, of the ttl or of the cart ends a claim, too.
        same_work = [(row.disposition, row.ttl_us, row.user_id, row.cart_id) for row in (before, after)]
        in_force = before.lease_expire_time > began and same_work[0] == same_work[1]
        if claimed and in_force and not answered:
            self._report_violation(f"{process_name} claimed what {owner} had claimed: {before} became {after}")
        same = all(getattr(after, column) == getattr(before, column) for column in RISING)
        work = (after.due_time, after.lease_expire_time)
        if same and work != (before.due_time, before.lease_expire_time):
            self._report_violation(f"{process_name} changed a claim of {owner}: {before} became {after}")

    def check_sent(self, process_name: str, reservation_id: str) -> None:
        """A process sends messages only for reservations that it claimed in a committed transaction."""
        if (process_name, reservation_id) not in self._claimed:
            self._report_violation(f"{process_name} sent a message for {reservation_id} without a claim")

    def check_stopped(self, process_name: str, rows: Iterable[ReservationRow], now: int) -> None:
        """A process that stopped has no claims."""
        for row in rows:
            owner = self._owners.get((row.reservation_id, row.lease_epoch))
            if owner == process_name and (row.lease_expire_time or 0) > now:
                self._report_violation(f"{process_name} stopped, but kept a claim: {row}")
