"""The reconciler: claims due reservations, calls the Reservation API and records the answers, for ever.

A claim is committed before its call is made, and the record of the answer is a transaction of its own. Most claims are
born: the transaction that makes a reservation due claims it for its own process, and hands it over after the commit.
The rounds of this loop find the others. A reservation waits in its row (`due_time`), never in a sleeping task, so a
crash loses only the rest of a lease. Checkouts and releases have lanes of their own, so that hanging holds cannot
starve them.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from cart_grpc.admin import LaneStatus
from cart_grpc.background.attempt_runner import AttemptRunner
from cart_grpc.background.breaker import Breaker
from cart_grpc.background.claims import LaneClaims, ids_of
from cart_grpc.background.config import ReconcilerConfig
from cart_grpc.background.loop import Loop
from cart_grpc.background.recorded_attempt import CheckClock
from cart_grpc.background.set_aside import claim, update_leases
from cart_grpc.background.turn_timer import TurnTimer
from cart_grpc.carts.refusals import Unavailable
from cart_grpc.commands.direct import Claim, ExtendLeases, ReturnClaims
from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.metrics import BREAKER_OPEN, CLAIMS_IN_FLIGHT, LANE_CAPACITY
from cart_grpc.protocol.lanes import LANES, Lane, lane_of
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.protocol.transitions import is_taken_over
from cart_grpc.reservation_api.api import ReservationApi
from cart_grpc.store.change_notifier import Room
from cart_grpc.store.each_part import all_of, do_each
from cart_grpc.store.store import Store
from cart_grpc.units import to_seconds, to_us

log = Log(__name__)
LeaseCommand = Callable[[Sequence[Reservation]], ExtendLeases | ReturnClaims]
# Rows per claim or lease extension. More calls that start together, or commit together, would delay callers' commits.
MAX_ROWS_PER_COMMAND = 64
# The time between two rounds. A claim of one row costs as much as a claim of twenty, so under load rows gather. A row
# that becomes due after a quiet time is claimed at once.
GATHER_US = to_us(0.01)
# While the event loop lags, fewer calls are in flight: the answers of a quick API would otherwise queue before the
# callers for as long as a backlog lasts.
MAX_IN_FLIGHT_WHEN_LAGGING = 64


@dataclass(frozen=True, slots=True)
class CallsStarted:
    """The result of one round of the reconciler: the number of calls it started in each lane."""

    by_lane: Mapping[Lane, int]

    @property
    def total(self) -> int:
        return sum(self.by_lane.values())


@dataclass(frozen=True, slots=True)
class LeasesExtended:
    """The result of one round of the lease extension."""

    claims: int


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
        self._attempt_runner = AttemptRunner(store, api, config, self._breaker, clock, check_clock, self._end)
        self._lanes = {name: LaneClaims(name) for name in LANES}
        self._calls: set[asyncio.Task[None]] = set()
        self._turn_timer = TurnTimer()
        self._clock = clock
        self._poll_time = clock()
        self._stopping = False
        self._loop = Loop("reconciler", self._run_round, self._pause)

    @property
    def in_flight(self) -> int:
        """The number of calls in flight."""
        return sum(len(lane.open) for lane in self._lanes.values())

    @property
    def lanes(self) -> Sequence[LaneStatus]:
        """The claims of each lane, and how many it may have."""
        return [LaneStatus(lane.name, len(lane.open), self._max_in_flight) for lane in self._lanes.values()]

    def find_breaker_open_us(self) -> int | None:
        """Return how long the Reservation API has counted as down, in microseconds; None while it answers."""
        return self._breaker.find_open_us()

    def sample(self) -> None:
        """Set the gauges of the lanes and of the circuit breaker."""
        for lane in self._lanes.values():
            CLAIMS_IN_FLIGHT.labels(lane.name).set(len(lane.open))
            LANE_CAPACITY.labels(lane.name).set(self._max_in_flight)
        BREAKER_OPEN.set(self._breaker.is_open)

    async def run(self) -> None:
        """Reconcile until `stop`. Do not cancel it: a claim that commits meanwhile would have no owner."""
        extension = Loop("lease extension", self._extend_leases, self._pause_between_extensions)
        extending = asyncio.create_task(extension.run(), name="extend-leases")
        self._store.notifier.claimant = self
        try:
            await self._loop.run()
        finally:
            extending.cancel()

    async def run_once(self) -> CallsStarted:
        """Claim due reservations of all shards, as many as there is room for, and start their calls.

        Raises Unavailable if the database does not answer.
        """
        self._store.due_shards.poll(everywhere=True)
        return await self._claim_all()

    async def _claim_all(self) -> CallsStarted:
        await self._turn_timer.measure()
        started = await do_each(self._claim(lane) for lane in self._lanes.values())
        return CallsStarted(dict(zip(self._lanes, started, strict=True)))

    @contextmanager
    def reserve_room(self) -> Iterator[Room]:
        """See Claimant.reserve_room. Older rows go first, and while the API is down only probes are called."""
        self._turn_timer.start()
        may_claim = not self._stopping and not self._breaker.is_open
        room = {
            lane.name: min(MAX_ROWS_PER_COMMAND, lane.find_room(self._max_in_flight))
            for lane in self._lanes.values()
            if may_claim and not lane.backlog
        }
        with ExitStack() as reserved:
            for lane in self._lanes.values():
                reserved.callback(self._wake_for_backlog, lane)
                reserved.enter_context(lane.reserving(room.get(lane.name, 0)))
            yield Room({name: count for name, count in room.items() if count}, self._config.lease_us)

    def take(self, claimed: Sequence[Reservation]) -> None:
        """See Claimant.take. Calls for claims that were born. `stop` hands back those that come too late for a call."""
        for lane in self._lanes.values():
            of_lane = [each for each in claimed if self._lane_of(each) is lane]
            lane.add(of_lane)
            if not self._stopping:
                self._start_calls(lane, of_lane)

    async def stop(self, grace_us: int) -> None:
        """End `run`, give the calls in flight `grace_us` to finish, then cancel them and hand their claims back.

        A cancelled call may still take effect. That is safe: the next claim sends the same revision.
        """
        self._stopping = True
        self._store.notifier.due.set()
        await self._loop.stop()
        # A batch that has begun may still bring claims.
        batches = {asyncio.create_task(lane.until_unreserved()) for lane in self._lanes.values()}
        _, unfinished = await asyncio.wait(self._calls | batches, timeout=to_seconds(grace_us))
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        try:
            await self._update_leases(self._open_claims, ReturnClaims)
        except Unavailable as refusal:
            text = "the claims were not handed back (%s); they expire with their leases"
            log(events.CLAIMS_KEPT, text, refusal.reason)

    @property
    def _open_claims(self) -> Sequence[Reservation]:
        return [claimed for lane in self._lanes.values() for claimed in lane.open.values()]

    @property
    def _max_in_flight(self) -> int:
        most = self._config.max_in_flight
        return min(most, MAX_IN_FLIGHT_WHEN_LAGGING) if self._turn_timer.is_lagging else most

    async def _run_round(self) -> CallsStarted:
        # Cleared first: a notification during the round starts another round.
        self._store.notifier.due.clear()
        if self._clock() >= self._poll_time:
            self._poll_time = self._clock() + self._config.poll_interval_us
            self._store.due_shards.poll()
        return await self._claim_all()

    async def _pause(self, started: CallsStarted | None) -> None:
        await asyncio.sleep(to_seconds(GATHER_US))
        if started is None or not started.total:
            await self._wait_until_due()

    async def _wait_until_due(self) -> None:
        """Return when a reservation may be due: on a notification, or after the poll interval.

        While the breaker is open, also return when the next probe is allowed.
        """
        try:
            async with asyncio.timeout(to_seconds(self._breaker.until_probe_us() or self._config.poll_interval_us)):
                await self._store.notifier.due.wait()
        except TimeoutError:
            return

    async def _claim(self, lane: LaneClaims) -> int:
        if self._find_room(lane) and not (lane.backlog or await self._store.has_due(lane.name)):
            return 0
        # Only now: a batch may have claimed during the read.
        room = self._find_room(lane)
        if not room:
            lane.backlog = True
            return 0
        with lane.reserving(room):
            claimed = await claim(self._store, Claim(lane.name, room, self._config.lease_us))
            lane.add(claimed)
        lane.backlog = len(claimed) == room
        _log_taken_over(claimed)
        if claimed and self._breaker.is_open:
            self._breaker.record_probe()
        self._start_calls(lane, claimed)
        return len(claimed)

    def _find_room(self, lane: LaneClaims) -> int:
        """Return how many reservations a round may claim in the lane."""
        return min(MAX_ROWS_PER_COMMAND, self._breaker.allowed_calls(lane.find_room(self._max_in_flight)))

    def _start_calls(self, lane: LaneClaims, claimed: Sequence[Reservation]) -> None:
        """Start one task for each group of claims that go out in one call."""
        for group in _in_parts(claimed, self._attempt_runner.max_batch):
            task = asyncio.create_task(self._run_attempts(lane, group), name=f"reconcile-{group[0].reservation_id}")
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    async def _run_attempts(self, lane: LaneClaims, group: Sequence[Reservation]) -> None:
        await self._attempt_runner.run(group)
        # Most have ended by now. If this task is cancelled, those that have not are handed back.
        for claimed in group:
            lane.end(claimed)

    def _end(self, claimed: Reservation) -> None:
        """Note that the attempt under a claim has ended."""
        lane = self._lane_of(claimed)
        lane.end(claimed)
        self._wake_for_backlog(lane)

    def _lane_of(self, claimed: Reservation) -> LaneClaims:
        return self._lanes[lane_of(claimed)]

    def _wake_for_backlog(self, lane: LaneClaims) -> None:
        if lane.backlog:
            # The lane may have room for the next row of the backlog.
            self._store.notifier.due.set()

    async def _extend_leases(self) -> LeasesExtended:
        """Extend the claims of all calls in flight: calls may take minutes, a dead replica's lease should not."""
        claims = self._open_claims
        await self._update_leases(claims, partial(ExtendLeases, lease_us=self._config.lease_us))
        return LeasesExtended(len(claims))

    async def _update_leases(self, claims: Sequence[Reservation], command: LeaseCommand) -> None:
        """Extend or return claims. Those of a shard that does not answer keep those of no other waiting."""

        async def update(of_shard: Sequence[Reservation]) -> None:
            for some in _in_parts(of_shard, MAX_ROWS_PER_COMMAND):
                await update_leases(self._store, command(some))

        all_of(await asyncio.gather(*map(update, self._store.by_shard(claims)), return_exceptions=True))

    async def _pause_between_extensions(self, _: LeasesExtended | None) -> None:
        await asyncio.sleep(to_seconds(self._config.lease_us) / 3)


def _log_taken_over(claimed: Sequence[Reservation]) -> None:
    if taken := [each for each in claimed if is_taken_over(each)]:
        text = "took over %d reservations, whose last attempt ended without a recorded outcome; the first is %s"
        log(events.CLAIMS_TAKEN_OVER, text, len(taken), taken[0].reservation_id, claims=len(taken), **ids_of(taken[0]))


def _in_parts(claims: Sequence[Reservation], size: int) -> Iterator[Sequence[Reservation]]:
    return (claims[first : first + size] for first in range(0, len(claims), size))
