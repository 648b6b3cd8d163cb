"""The outcomes of calls to the Reservation API: their effect on the row, the circuit breaker and the log."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import grpc

from cart_grpc.background.backoff import next_attempt_us
from cart_grpc.background.breaker import Breaker
from cart_grpc.background.claims import ids_of, key_of
from cart_grpc.background.config import ReconcilerConfig
from cart_grpc.background.recorded_attempt import RecordedAttempt
from cart_grpc.background.set_aside import log_not_set_aside, set_aside
from cart_grpc.carts.refusals import Unavailable
from cart_grpc.commands.record import Recorded, RecordOutcome
from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.metrics import ATTEMPT_DURATION, ATTEMPTS, DUPLICATES, TIME_TO_RESERVED
from cart_grpc.protocol.lanes import lane_of
from cart_grpc.protocol.reservation import (
    Answer,
    Decision,
    Intent,
    NoAnswer,
    Observed,
    PermanentFailure,
    Reservation,
    StaleRevision,
)
from cart_grpc.reservation_api.api import DENIALS, NoAnswerError
from cart_grpc.store.failures import is_row_at_fault
from cart_grpc.store.store import Store
from cart_grpc.units import to_seconds, to_us

log = Log(__name__)
# A longer Retry-After is cut to this.
MAX_RETRY_AFTER_US = to_us(3600)
MAX_MESSAGE_LENGTH = 300
_CODES: Final = frozenset(
    {
        "INVALID_ANSWER",
        "UNCERTAIN",
        *(code.name for code in grpc.StatusCode),
        *(f"HTTP_{status.value}" for status in HTTPStatus),
    }
)

Outcome = Answer | NoAnswerError


class Bug(NoAnswerError):
    """An unexpected error of this process in a call. It counts as a failure of the API, so that the breaker opens."""

    def __init__(self) -> None:
        super().__init__("INTERNAL", "internal error of cart-grpc; see its log")


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One claim, and the call for it. `began` is when the call began, by `clock` in seconds: the event loop's."""

    claimed: Reservation
    intent: Intent
    attempt: RecordedAttempt
    began: float
    clock: Callable[[], float]

    def elapsed_us(self) -> int:
        """How long ago the call began, in microseconds. It may be asked in another thread."""
        return to_us(self.clock() - self.began)


class OutcomeRecorder:
    """Reports outcomes to `breaker` and records them. Calls `ended` for each claim when that is done or given up."""

    def __init__(
        self, store: Store, config: ReconcilerConfig, breaker: Breaker, ended: Callable[[Reservation], None]
    ) -> None:
        self._store = store
        self._config = config
        self._breaker = breaker
        self._ended = ended

    async def record(self, outcomes: Sequence[tuple[Entry, Outcome]]) -> None:
        """Record the outcomes that arrived together. Each is recorded on its own: one that fails fails alone.

        Raises nothing but CancelledError.
        """
        results: Sequence[Recorded | Exception]
        records: list[RecordOutcome] = []
        try:
            _measure(outcomes)
            self._report(outcomes)
            records = [self._to_record(entry, outcome) for entry, outcome in outcomes]
            results = await self._store.record_all(records)
        except Exception as error:  # noqa: BLE001 - it is the result of each record
            results = [error] * len(outcomes)
        for index, ((entry, _), result) in enumerate(zip(outcomes, results, strict=True)):
            if isinstance(result, Recorded):
                _measure_record(entry.claimed, result)
                _log_record(records[index], result)
            else:
                await self._give_up(entry.claimed, result)
            self._ended(entry.claimed)

    def _report(self, outcomes: Sequence[tuple[Entry, Outcome]]) -> None:
        """Report to the breaker once, however many outcomes arrived together.

        If one of them shows that the API works, it works. If not, this was one failure: a batch call that fails says no
        more about the API than a single call.
        """
        errors = [outcome for _, outcome in outcomes if isinstance(outcome, NoAnswerError)]
        failure = next((error for error in errors if error.reached is False), None)
        if len(errors) < len(outcomes) or any(error.reached for error in errors):
            open_us = self._breaker.find_open_us() or 0
            if self._breaker.record_success():
                log(events.BREAKER_CLOSED, "the Reservation API answers again after %.1f s", to_seconds(open_us))
                self._store.due_shards.poll(everywhere=True)
                self._store.notifier.due.set()
        elif failure and self._breaker.record_failure():
            fault = "refuses this service" if failure.code in DENIALS else "does not answer"
            text = "the Reservation API %s (%s): probing until it answers"
            cause = str(failure)[:MAX_MESSAGE_LENGTH]
            log(events.BREAKER_OPENED, text, fault, cause, code=failure.code)

    def _to_record(self, entry: Entry, outcome: Outcome) -> RecordOutcome:
        claimed, config = entry.claimed, self._config
        retry_delay_us = next_attempt_us(claimed.attempt_count, config.backoff_initial_us, config.backoff_max_us)
        recorded: Answer | NoAnswer
        if isinstance(outcome, NoAnswerError):
            recorded = NoAnswer(outcome.code, outcome.message[:MAX_MESSAGE_LENGTH])
            retry_delay_us = max(retry_delay_us, min(outcome.retry_after_us or 0, MAX_RETRY_AFTER_US))
            # While the API is down, a failed attempt says nothing about this reservation.
            counts_as_attempt = outcome.reached is not None and not self._breaker.is_open
        else:
            recorded, counts_as_attempt = outcome, True
        return RecordOutcome(
            claimed,
            recorded,
            retry_delay_us,
            counts_as_attempt,
            random.random(),  # noqa: S311 - jitter, not a secret
            entry.attempt.open_until,
            config.grace_us,
            entry.attempt.claim_time,
            entry.elapsed_us,
        )

    async def _give_up(self, claimed: Reservation, error: Exception) -> None:
        if isinstance(error, Unavailable):
            # Nothing is lost: once the lease has expired, the next claim sends the same revision and gets the same
            # decision.
            text = "reservation %s: the outcome was not recorded: %s"
            log(events.OUTCOME_UNRECORDED, text, claimed.reservation_id, error.reason, **ids_of(claimed))
            return
        text = "reservation %s: unexpected error in the record"
        log(events.ATTEMPT_ERROR, text, claimed.reservation_id, exc_info=error, **ids_of(claimed))
        if not is_row_at_fault(error):
            return
        try:
            await set_aside(self._store, key_of(claimed), error)
        except Exception as second:  # noqa: BLE001 - the others must be recorded
            log_not_set_aside(claimed.reservation_id, second)


def _measure(outcomes: Sequence[tuple[Entry, Outcome]]) -> None:
    for entry, outcome in outcomes:
        lane = lane_of(entry.intent)
        ATTEMPTS.labels(lane, label_of(outcome)).inc()
        ATTEMPT_DURATION.labels(lane).observe(to_seconds(entry.elapsed_us()))


def label_of(outcome: Outcome) -> str:
    """Return the outcome as the value of a label. There are few, whatever the Reservation API answers."""
    match outcome:
        case Decision(state=state):
            return state.name
        case PermanentFailure():
            return "PERMANENT_FAILURE"
        case StaleRevision():
            return "STALE_REVISION"
    return outcome.code if outcome.code in _CODES else "OTHER"


def _measure_record(claimed: Reservation, recorded: Recorded) -> None:
    is_first_hold = claimed.state is Observed.NOTHING and recorded.reservation.state is Observed.HELD
    if is_first_hold and recorded.time is not None:
        TIME_TO_RESERVED.observe(max(0.0, to_seconds(recorded.time - claimed.create_time)))
    DUPLICATES.inc(recorded.duplicates)


def _log_record(record: RecordOutcome, recorded: Recorded) -> None:
    claimed = record.claimed
    if recorded.alarm:
        log(
            events.RESERVATION_ALARM,
            "reservation %s: %s",
            claimed.reservation_id,
            recorded.alarm,
            **ids_of(claimed),
        )
    if isinstance(record.outcome, NoAnswer | PermanentFailure):
        # Probes fail every second while the API is down; only the debug log lists them.
        log(
            events.ATTEMPT_FAILED if record.counts_as_attempt else events.PROBE_FAILED,
            "reservation %s revision %d attempt %d: %s",
            claimed.reservation_id,
            claimed.revision,
            claimed.attempt_count,
            record.outcome,
            **ids_of(claimed),
            revision=claimed.revision,
            attempt=claimed.attempt_count,
        )
