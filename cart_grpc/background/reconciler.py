"""The reconciler: claims due reservations, calls the Reservation API and records the answers, for ever.

A claim is committed before its call is made, and the record of the answer is a transaction of its own. A reservation
waits in its row (`due_time`), never in a sleeping task, so a crash loses only the rest of a lease. Releases have a lane
of their own, so that hanging holds cannot starve them.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from cart_grpc.background.attempt_runner import AttemptRunner
from cart_grpc.background.breaker import Breaker
from cart_grpc.background.config import ReconcilerConfig
from cart_grpc.background.loop import Loop
from cart_grpc.background.recorded_attempt import CheckClock
from cart_grpc.background.set_aside import claim, update_leases
from cart_grpc.carts.refusals import Unavailable
from cart_grpc.commands.direct import Claim, ExtendLeases, ReturnClaims
from cart_grpc.protocol.lanes import HOLD_LANE, RELEASE_LANE, Lane
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.reservation_api.api import ReservationApi
from cart_grpc.store.store import Store
from cart_grpc.units import to_seconds, to_us

log = logging.getLogger(__name__)
# Rows per claim or lease extension. More calls that start together, or commit together, would delay callers' commits.
MAX_ROWS_PER_COMMAND = 64
# A claim of one row costs as much as a claim of twenty, so rows that become due within this time are claimed together.
GATHER_US = to_us(0.01)
# If one turn of the event loop takes longer than this, callers wait too. A backlog then gets fewer calls in flight:
# the answers of a quick API would otherwise queue before the callers for as long as the backlog lasts.
LAGGING_TURN_US = to_us(0.01)
MAX_IN_FLIGHT_WHEN_LAGGING = 64


@dataclass(frozen=True, slots=True)
class CallsStarted:
    """The result of one round of the reconciler: the number of calls it started in each lane."""

    releases: int
    holds: int

    @property
    def total(self) -> int:
        return self.releases + self.holds


@dataclass(frozen=True, slots=True)
class LeasesExtended:
    """The result of one round of the lease extension."""

    claims: int


@dataclass(slots=True)
class _Lane:
    """The calls in flight of one lane. `backlog`: the last claim was full, so there may be more due rows."""

    name: Lane
    calls: dict[asyncio.Task[None], Reservation] = field(default_factory=dict)
    backlog: bool = False


class Reconciler:
    """Drives one Reservation API for one store. Any number of reconcilers, in any processes, may share a database.

    `clock` is a monotonic clock in microseconds, for the circuit breaker. `check_clock` notices a step of the
    database's clock.
    """

    def __init__(
        self,
        store: Store,
        api: ReservationApi,
        config: ReconcilerConfig,
        clock: Callable[[], int],
        check_clock: CheckClock,
    ) -> None:
        self._store = store
        self._config = config
        self._breaker = Breaker(clock, threshold=config.breaker_threshold, probe_interval_us=config.probe_interval_us)
        self._attempt_runner = AttemptRunner(store, api, config, self._breaker, check_clock)
        self._releases, self._holds = self._lanes = (_Lane(RELEASE_LANE), _Lane(HOLD_LANE))
        self._loop = Loop("reconciler", self._run_round, self._pause)

    @property
    def in_flight(self) -> int:
        """The number of calls in flight."""
        return sum(len(lane.calls) for lane in self._lanes)

    def find_breaker_open_us(self) -> int | None:
        """Return how long the Reservation API has counted as down, in microseconds; None while it answers."""
        return self._breaker.find_open_us()

    async def run(self) -> None:
        """Reconcile until `stop`. Do not cancel it: a claim that commits meanwhile would have no owner."""
        extension = Loop("lease extension", self._extend_leases, self._pause_between_extensions)
        extending = asyncio.create_task(extension.run(), name="extend-leases")
        try:
            await self._loop.run()
        finally:
            extending.cancel()

    async def run_once(self) -> CallsStarted:
        """Claim due reservations, as many as there is room for, and start their calls.

        Raises Unavailable if the database does not answer.
        """
        max_in_flight = self._config.max_in_flight
        if await _event_loop_is_lagging():
            max_in_flight = min(max_in_flight, MAX_IN_FLIGHT_WHEN_LAGGING)
        releases = await self._claim(self._releases, max_in_flight)
        return CallsStarted(releases, await self._claim(self._holds, max_in_flight))

    async def stop(self, grace_us: int) -> None:
        """End `run`, give the calls in flight `grace_us` to finish, then cancel them and hand their claims back.

        A cancelled call may still take effect. That is safe: the next claim sends the same revision.
        """
        self._store.notifier.due.set()
        await self._loop.stop()
        calls = {task: reservation for lane in self._lanes for task, reservation in lane.calls.items()}
        if not calls:
            return
        _, unfinished = await asyncio.wait(calls, timeout=to_seconds(grace_us))
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        try:
            for claims in _in_parts([calls[task] for task in unfinished]):
                await update_leases(self._store, ReturnClaims(claims))
        except Unavailable as refusal:
            log.warning("the claims were not handed back (%s); they expire with their leases", refusal.reason)

    async def _run_round(self) -> CallsStarted:
        # Cleared first: a notification during the round starts another round.
        self._store.notifier.due.clear()
        return await self.run_once()

    async def _pause(self, started: CallsStarted | None) -> None:
        if started is None or not started.total:
            await self._wait_until_due()
        await asyncio.sleep(to_seconds(GATHER_US))

    async def _wait_until_due(self) -> None:
        """Return when a reservation may be due: on a notification, or after the poll interval.

        While the breaker is open, return when the next probe is allowed.
        """
        if self._breaker.is_open:
            await asyncio.sleep(to_seconds(self._breaker.until_probe_us() or self._config.poll_interval_us))
            return
        try:
            async with asyncio.timeout(to_seconds(self._config.poll_interval_us)):
                await self._store.notifier.due.wait()
        except TimeoutError:
            return

    async def _claim(self, lane: _Lane, max_in_flight: int) -> int:
        room = min(MAX_ROWS_PER_COMMAND, self._breaker.allowed_calls(max_in_flight - len(lane.calls)))
        if room <= 0 or not (lane.backlog or await self._store.reads.has_due(lane.name)):
            return 0
        claimed = await claim(self._store, Claim(lane.name, room, self._config.lease_us))
        lane.backlog = len(claimed) == room
        for reservation in claimed:
            if self._breaker.is_open:
                self._breaker.record_probe()
            self._start_attempt(lane, reservation)
        return len(claimed)

    def _start_attempt(self, lane: _Lane, claimed: Reservation) -> None:
        task = asyncio.create_task(self._attempt_runner.run(claimed), name=f"reconcile-{claimed.reservation_id}")
        lane.calls[task] = claimed

        def finished(task: asyncio.Task[None]) -> None:
            del lane.calls[task]
            if lane.backlog:
                # The lane has room for the next row of the backlog.
                self._store.notifier.due.set()

        task.add_done_callback(finished)

    async def _extend_leases(self) -> LeasesExtended:
        """Extend the claims of all calls in flight: calls may take minutes, a dead replica's lease should not."""
        claims = [reservation for lane in self._lanes for reservation in lane.calls.values()]
        for some in _in_parts(claims):
            await update_leases(self._store, ExtendLeases(some, self._config.lease_us))
        return LeasesExtended(len(claims))

    async def _pause_between_extensions(self, _: LeasesExtended | None) -> None:
        await asyncio.sleep(to_seconds(self._config.lease_us) / 3)


async def _event_loop_is_lagging() -> bool:
    """Whether one turn of the event loop takes so long that callers notice."""
    now = asyncio.get_running_loop().time
    started = now()
    await asyncio.sleep(0)
    return now() - started > to_seconds(LAGGING_TURN_US)


def _in_parts(claims: Sequence[Reservation]) -> Iterator[Sequence[Reservation]]:
    return (claims[first : first + MAX_ROWS_PER_COMMAND] for first in range(0, len(claims), MAX_ROWS_PER_COMMAND))
