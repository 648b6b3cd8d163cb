"""The reconciler: claims what is due, calls the Reservation API, records the answer, until intent and observed agree.

A claim is committed before its call is made, no transaction is open during the call, and the record is a transaction
of its own. Long waiting happens in the row (`due_time`), never in a sleeping task, so a crash loses nothing but the
rest of a lease. Releases have a lane of their own: holds that hang cannot starve them.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from cart_grpc.background.backoff import Backoff
from cart_grpc.background.breaker import Breaker
from cart_grpc.background.recorded_attempt import RecordedAttempt
from cart_grpc.carts.refusals import Unavailable
from cart_grpc.commands.direct import Claim, ExtendLeases, ReturnClaims
from cart_grpc.commands.record import RecordOutcome
from cart_grpc.protocol.lanes import HOLD_LANE, RELEASE_LANE, Lane
from cart_grpc.protocol.reservation import Answer, Intent, NoAnswer, PermanentFailure, Reservation
from cart_grpc.protocol.transitions import next_intent
from cart_grpc.reservation_api.api import NoAnswerError, ReservationApi
from cart_grpc.store.store import Store

log = logging.getLogger(__name__)
MICROSECONDS = 1_000_000
# The longest that a Retry-After is believed.
MAX_RETRY_AFTER = 3600 * MICROSECONDS
# How many rows one claim takes, or one extension of leases: what starts or commits together keeps callers waiting.
MOST_AT_ONCE = 64
# A claim costs as much for one row as for twenty, so those that come within this time are claimed together.
GATHER_SECONDS = 0.01
# Where the event loop takes longer than this for one turn, callers wait, too: then a backlog has only so many calls in
# flight. What an API that is quick has answered would otherwise queue up before them, for as long as the backlog lasts.
LATE_SECONDS = 0.01
IN_FLIGHT_WHEN_LATE = 64


@dataclass(frozen=True, slots=True)
class ReconcilerConfig:
    """How the Reservation API is called. Durations in seconds; `max_in_flight` for each of the two lanes.

    `grace` is how much later than its deadline a request of the `basic` contract may take effect.
    """

    call_timeout: float = 120.0
    grace: float = 60.0
    max_in_flight: int = 1_000
    poll_interval: float = 0.5
    lease: float = 15.0
    backoff_initial: float = 0.5
    backoff_max: float = 60.0
    breaker_threshold: int = 5
    probe_interval: float = 1.0


@dataclass(slots=True)
class _Lane:
    """`backlog` says that the last claim found as much as it asked for, so that there may be more."""

    name: Lane
    calls: dict[asyncio.Task[None], Reservation] = field(default_factory=dict)
    backlog: bool = False


class Reconciler:
    """Drives one Reservation API for one store; any number of them, in any number of processes, may share a database.

    `clock` is a monotonic clock in seconds, for the circuit breaker.
    """

    def __init__(self, store: Store, api: ReservationApi, config: ReconcilerConfig, clock: Callable[[], float]) -> None:
        self._store = store
        self._api = api
        self._config = config
        self._breaker = Breaker(clock, threshold=config.breaker_threshold, probe_interval=config.probe_interval)
        self._lanes = (_Lane(RELEASE_LANE), _Lane(HOLD_LANE))
        self.duplicates_undone = 0
        self._stopping = False
        self._trouble = ""
        self._ended = asyncio.Event()
        self._ended.set()
        self._pauses = Backoff(config.backoff_initial, config.backoff_max)

    async def run(self) -> None:
        """Reconcile until `stop`. It is not to be cancelled: a claim that commits meanwhile would have no owner."""
        self._ended.clear()
        extending = asyncio.create_task(self._extend_leases(), name="extend-leases")
        try:
            while not self._stopping:
                self._store.notifier.due.clear()
                try:
                    started = await self.run_once()
                    self._tell_of_database("")
                except Unavailable as refusal:
                    self._tell_of_database(refusal.reason)
                    started = 0
                except Exception:
                    # Without this loop nothing would ever be reserved again, and nobody would know.
                    log.exception("the reconciler met an error of its own, and goes on")
                    started = 0
                if not started and not self._stopping:
                    await self._wait()
                if not self._stopping:
                    await asyncio.sleep(GATHER_SECONDS)
        finally:
            extending.cancel()
            self._ended.set()

    def _tell_of_database(self, trouble: str) -> None:
        """Log when the database goes, and when it comes back, instead of each time that it is missed."""
        if trouble != self._trouble:
            log.warning("nothing can be claimed: %s" if trouble else "the database answers again%s", trouble)
        self._trouble = trouble

    async def run_once(self) -> int:
        """Claim what is due and there is room for, and start its calls. Returns how many were started.

        Raises Unavailable where the database does not answer.
        """
        most = (
            min(self._config.max_in_flight, IN_FLIGHT_WHEN_LATE)
            if await _loop_is_lagging()
            else self._config.max_in_flight
        )
        return sum([await self._claim(lane, most) for lane in self._lanes])

    async def _claim(self, lane: _Lane, most: int) -> int:
        room = min(MOST_AT_ONCE, self._breaker.permits(most - len(lane.calls)))
        if room <= 0 or not (lane.backlog or await self._store.reads.has_due(lane.name)):
            return 0
        claimed = await self._store.claim(Claim(lane.name, room, int(self._config.lease * MICROSECONDS)))
        lane.backlog = len(claimed) == room
        for reservation in claimed:
            if self._breaker.is_open:
                self._breaker.probing()
            self._start(lane, reservation)
        return len(claimed)

    @property
    def in_flight(self) -> int:
        """How many calls are under way."""
        return sum(len(lane.calls) for lane in self._lanes)

    def breaker_open_seconds(self) -> float | None:
        """For how long nobody has answered, None while the Reservation API answers."""
        return self._breaker.open_seconds()

    def _start(self, lane: _Lane, claimed: Reservation) -> None:
        call = asyncio.create_task(self._reconcile(claimed), name=f"reconcile-{claimed.reservation_id}")
        lane.calls[call] = claimed

        def finished(task: asyncio.Task[None]) -> None:
            del lane.calls[task]
            if lane.backlog:
                # There is room again.
                self._store.notifier.due.set()

        call.add_done_callback(finished)

    async def _wait(self) -> None:
        """Until something is due, or it is time to look; while the breaker is open, until a probe may be made."""
        if self._breaker.is_open:
            await asyncio.sleep(self._breaker.seconds_to_probe() or self._config.poll_interval)
            return
        try:
            async with asyncio.timeout(self._config.poll_interval):
                await self._store.notifier.due.wait()
        except TimeoutError:
            return

    async def _reconcile(self, claimed: Reservation) -> None:
        """Call for one claim and record how it ended."""
        intent = next_intent(claimed)
        if intent is None:
            return
        retry_delay = int(self._pauses.next_claim(claimed.attempt_count) * MICROSECONDS)
        lease, grace = (int(seconds * MICROSECONDS) for seconds in (self._config.lease, self._config.grace))
        attempt = RecordedAttempt(self._store, claimed, lease, grace)
        outcome: Answer | NoAnswer
        called = True
        try:
            outcome = await self._call(intent, attempt)
        except NoAnswerError as silence:
            outcome = NoAnswer(silence.code, silence.message[:300])
            retry_delay = max(retry_delay, min(silence.retry_after_us or 0, MAX_RETRY_AFTER))
            called = silence.reached is not None
            if called:
                self._count(answered=bool(silence.reached), error=silence.code)
        except Exception:
            log.exception("the call for reservation %s failed in an unforeseen way", claimed.reservation_id)
            outcome = NoAnswer("INTERNAL", "an error of our own; see the log")
            self._count(answered=False, error="INTERNAL")
        else:
            self._count(answered=True, error="")
        counts_as_attempt = called and not (isinstance(outcome, NoAnswer) and self._breaker.is_open)
        jitter = random.random()  # noqa: S311 - spreads load, hides nothing
        await self._record(
            RecordOutcome(claimed, outcome, retry_delay, counts_as_attempt, jitter, attempt.opened, grace)
        )

    async def _call(self, intent: Intent, attempt: RecordedAttempt) -> Answer:
        """At most two quick tries and one deadline. While the breaker is open, or once an attempt is, a single try."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._config.call_timeout
        try:
            return await self._api.apply(intent, timeout=self._config.call_timeout, attempt=attempt)
        except NoAnswerError as silence:
            if self._breaker.is_open or attempt.opened is not None or not _is_quick(silence) or clock() >= deadline:
                raise
        await asyncio.sleep(self._pauses.second_try())
        return await self._api.apply(intent, timeout=max(0.001, deadline - clock()), attempt=attempt)

    async def _record(self, record: RecordOutcome) -> None:
        claimed = record.claimed
        try:
            recorded = await self._store.record(record)
        except Unavailable as refusal:
            # The lease runs out and somebody asks again: the same revision gets the same decision.
            log.warning("the answer for reservation %s was not recorded: %s", claimed.reservation_id, refusal.reason)
            return
        except Exception:
            log.exception("the answer for reservation %s could not be recorded", claimed.reservation_id)
            return
        self.duplicates_undone += recorded.duplicates
        if recorded.alarm:
            log.error("ALARM reservation %s: %s", claimed.reservation_id, recorded.alarm)
        if isinstance(record.outcome, NoAnswer | PermanentFailure):
            # Probes fail every second for as long as the API is down, and say nothing new.
            log.log(
                logging.INFO if record.counts_as_attempt else logging.DEBUG,
                "reservation %s revision %d attempt %d: %s",
                claimed.reservation_id,
                claimed.revision,
                claimed.attempt_count,
                record.outcome,
            )

    def _count(self, *, answered: bool, error: str) -> None:
        if answered and self._breaker.succeeded():
            log.warning("the Reservation API answers again")
            self._store.notifier.due.set()
        if not answered and self._breaker.failed():
            log.warning("the Reservation API does not answer (%s): probing until it does", error)

    async def _extend_leases(self) -> None:
        """Calls may take minutes; a replica that dies is taken over within a lease."""
        while True:
            await asyncio.sleep(self._config.lease / 3)
            claims = [reservation for lane in self._lanes for reservation in lane.calls.values()]
            try:
                for some in _in_parts(claims):
                    await self._store.update_leases(ExtendLeases(some, int(self._config.lease * MICROSECONDS)))
            except Unavailable as refusal:
                log.warning("leases were not extended: %s", refusal.reason)
            except Exception:
                # Without this loop every long call would be made again each lease.
                log.exception("leases were not extended")

    async def stop(self, grace: float) -> None:
        """End `run`, give the calls under way `grace` seconds, then break them off and hand their claims back.

        A call that is broken off may still take effect: whoever claims it next sends the same revision.
        """
        self._stopping = True
        self._store.notifier.due.set()
        await self._ended.wait()
        calls = {task: reservation for lane in self._lanes for task, reservation in lane.calls.items()}
        if not calls:
            return
        _, pending = await asyncio.wait(calls, timeout=grace)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        try:
            for some in _in_parts([calls[task] for task in pending]):
                await self._store.update_leases(ReturnClaims(some))
        except Unavailable as refusal:
            log.warning("claims were not handed back, and run out by themselves: %s", refusal.reason)


async def _loop_is_lagging() -> bool:
    """Whether a turn of the event loop takes so long that callers notice."""
    clock = asyncio.get_running_loop().time
    began = clock()
    await asyncio.sleep(0)
    return clock() - began > LATE_SECONDS


def _in_parts(claims: Sequence[Reservation]) -> Iterator[Sequence[Reservation]]:
    return (claims[first : first + MOST_AT_ONCE] for first in range(0, len(claims), MOST_AT_ONCE))


def _is_quick(error: BaseException) -> bool:
    """Whether a second try at once makes sense: not after a time-out, nor where the API asked for patience."""
    if not isinstance(error, NoAnswerError):
        return False
    return error.retry_after_us is None and error.reached is False and error.code != "DEADLINE_EXCEEDED"
