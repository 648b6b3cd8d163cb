"""One claim's attempt: the calls to the Reservation API, and the record of their outcome.

An attempt consists of all messages sent under one claim. It has at most two tries. Its outcome is recorded in one
transaction, and no transaction is open during the calls.
"""

import asyncio
import logging
import random

from cart_grpc.background.backoff import next_attempt_us, second_try_us
from cart_grpc.background.breaker import Breaker
from cart_grpc.background.claims import key_of
from cart_grpc.background.config import ReconcilerConfig
from cart_grpc.background.recorded_attempt import CheckClock, RecordedAttempt
from cart_grpc.background.set_aside import set_aside
from cart_grpc.carts.refusals import Unavailable
from cart_grpc.commands.record import RecordOutcome
from cart_grpc.protocol.reservation import Answer, Intent, NoAnswer, PermanentFailure, Reservation
from cart_grpc.protocol.transitions import next_intent
from cart_grpc.reservation_api.api import NoAnswerError, ReservationApi
from cart_grpc.store.failure_log import FailureLog
from cart_grpc.store.failures import is_row_at_fault
from cart_grpc.store.store import Store
from cart_grpc.units import to_seconds, to_us

log = logging.getLogger(__name__)
# A longer Retry-After is cut to this.
MAX_RETRY_AFTER_US = to_us(3600)
MIN_TIMEOUT_US = to_us(0.001)
MAX_MESSAGE_LENGTH = 300


class AttemptRunner:
    """Calls the Reservation API for claimed reservations and records each outcome. Reports to `breaker`.

    `check_clock` is called before an attempt of the `basic` contract is opened.
    """

    def __init__(
        self, store: Store, api: ReservationApi, config: ReconcilerConfig, breaker: Breaker, check_clock: CheckClock
    ) -> None:
        self._store = store
        self._api = api
        self._config = config
        self._breaker = breaker
        self._check_clock = check_clock
        self._errors = FailureLog("unexpected error in the call of a reservation", "calls work again", is_bug=True)

    async def run(self, claimed: Reservation) -> None:
        """Send the claimed reservation's intent and record the outcome. Raises nothing but CancelledError."""
        try:
            await self._run(claimed)
        except Unavailable as refusal:
            # Nothing is lost: once the lease has expired, the next claim sends the same revision and gets the same
            # decision.
            log.warning("reservation %s: the outcome was not recorded: %s", claimed.reservation_id, refusal.reason)
        except Exception as error:
            log.exception("reservation %s: unexpected error in the attempt", claimed.reservation_id)
            await self._set_aside_if_at_fault(claimed, error)

    async def _set_aside_if_at_fault(self, claimed: Reservation, error: Exception) -> None:
        if not is_row_at_fault(error):
            return
        try:
            await set_aside(self._store, key_of(claimed), error)
        except Exception:
            log.exception("reservation %s: it fails, and cannot be set aside", claimed.reservation_id)

    async def _run(self, claimed: Reservation) -> None:
        intent = next_intent(claimed)
        if intent is None:
            return
        config = self._config
        now = asyncio.get_running_loop().time
        began = now()
        retry_delay_us = next_attempt_us(claimed.attempt_count, config.backoff_initial_us, config.backoff_max_us)
        attempt = RecordedAttempt(self._store, claimed, config.lease_us, config.grace_us, self._check_clock)
        outcome: Answer | NoAnswer
        called = True
        try:
            outcome = await self._call(intent, attempt)
        except NoAnswerError as no_answer:
            outcome = NoAnswer(no_answer.code, no_answer.message[:MAX_MESSAGE_LENGTH])
            retry_delay_us = max(retry_delay_us, min(no_answer.retry_after_us or 0, MAX_RETRY_AFTER_US))
            called = no_answer.reached is not None
            if called:
                self._report(answered=bool(no_answer.reached), error=no_answer.code)
        except Exception as error:  # noqa: BLE001 - a bug: the log has it, and the attempt is made again
            self._errors.note_failure(error)
            outcome = NoAnswer("INTERNAL", "internal error of cart-grpc; see its log")
            self._report(answered=False, error="INTERNAL")
        else:
            self._errors.note_success()
            self._report(answered=True, error="")
        # While the API is down, a failed attempt says nothing about this reservation.
        counts_as_attempt = called and not (isinstance(outcome, NoAnswer) and self._breaker.is_open)
        jitter = random.random()  # noqa: S311 - jitter, not a secret
        await self._record(
            RecordOutcome(
                claimed,
                outcome,
                retry_delay_us,
                counts_as_attempt,
                jitter,
                attempt.open_until,
                config.grace_us,
                attempt.claim_time,
                to_us(now() - began),
            )
        )

    async def _call(self, intent: Intent, attempt: RecordedAttempt) -> Answer:
        """Try at most twice within one deadline. Raises NoAnswerError."""
        now = asyncio.get_running_loop().time
        timeout = to_seconds(self._config.call_timeout_us)
        deadline = now() + timeout
        try:
            return await self._api.apply(intent, timeout=timeout, attempt=attempt)
        except NoAnswerError as no_answer:
            if not self._may_try_again(no_answer, attempt) or now() >= deadline:
                raise
        await asyncio.sleep(to_seconds(second_try_us()))
        return await self._api.apply(intent, timeout=max(to_seconds(MIN_TIMEOUT_US), deadline - now()), attempt=attempt)

    def _may_try_again(self, no_answer: NoAnswerError, attempt: RecordedAttempt) -> bool:
        """Whether a second try at once makes sense: only after a quick failure to reach the API."""
        # A recorded attempt may still take effect: a second one could reserve twice.
        if self._breaker.is_open or attempt.open_until is not None:
            return False
        asked_to_wait = no_answer.retry_after_us is not None
        return no_answer.reached is False and not asked_to_wait and no_answer.code != "DEADLINE_EXCEEDED"

    async def _record(self, record: RecordOutcome) -> None:
        claimed = record.claimed
        recorded = await self._store.record(record)
        if recorded.alarm:
            log.error("ALARM reservation %s: %s", claimed.reservation_id, recorded.alarm)
        if isinstance(record.outcome, NoAnswer | PermanentFailure):
            # Probes fail every second while the API is down; only the debug log lists them.
            log.log(
                logging.INFO if record.counts_as_attempt else logging.DEBUG,
                "reservation %s revision %d attempt %d: %s",
                claimed.reservation_id,
                claimed.revision,
                claimed.attempt_count,
                record.outcome,
            )

    def _report(self, *, answered: bool, error: str) -> None:
        if answered and self._breaker.record_success():
            log.warning("the Reservation API answers again")
            self._store.notifier.due.set()
        if not answered and self._breaker.record_failure():
            log.warning("the Reservation API does not answer (%s): probing until it does", error)
