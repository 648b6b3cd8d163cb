"""The attempts for claims: the calls to the Reservation API, alone or in batches.

An attempt consists of all messages sent under one claim. It has at most two tries. Its outcome is recorded in one
transaction, and no transaction is open during the calls.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from cart_grpc.background.backoff import second_try_us
from cart_grpc.background.batch_support import BatchSupport
from cart_grpc.background.breaker import Breaker
from cart_grpc.background.claims import ids_of
from cart_grpc.background.config import ReconcilerConfig
from cart_grpc.background.outcomes import Bug, Entry, Outcome, OutcomeRecorder
from cart_grpc.background.recorded_attempt import CheckClock, RecordedAttempt
from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.protocol.transitions import next_intent
from cart_grpc.reservation_api.api import BatchesUnsupported, NoAnswerError, ReservationApi
from cart_grpc.store.failure_log import FailureLog
from cart_grpc.store.store import Store
from cart_grpc.units import to_seconds, to_us

log = Log(__name__)
MIN_TIMEOUT_US = to_us(0.001)


class AttemptRunner:
    """Calls the Reservation API for claimed reservations and records each outcome. Reports to `breaker`.

    `clock` is a monotonic clock in microseconds. `check_clock` is called before an attempt of the `basic` contract is
    opened. `ended` is called for each claim once its outcome is recorded or given up.
    """

    def __init__(
        self,
        store: Store,
        api: ReservationApi,
        config: ReconcilerConfig,
        breaker: Breaker,
        clock: Callable[[], int],
        check_clock: CheckClock,
        ended: Callable[[Reservation], None],
    ) -> None:
        self._store = store
        self._api = api
        self._config = config
        self._breaker = breaker
        self._check_clock = check_clock
        self._batches = BatchSupport(api.max_batch, clock)
        self._recorder = OutcomeRecorder(store, config, breaker, ended)
        self._errors = FailureLog(
            events.ATTEMPT_ERROR,
            events.ATTEMPTS_RECOVERED,
            "unexpected error in the call of a reservation",
            "calls work again",
        )

    @property
    def max_batch(self) -> int:
        """The most claims that one `run` should get now."""
        return self._batches.max_batch

    async def run(self, claims: Sequence[Reservation]) -> None:
        """Send the intents of claims of one lane, and record each outcome as it arrives.

        Raises nothing but CancelledError. Then the claims that have not ended are still open.
        """
        try:
            await self._run(claims)
        except Exception as error:  # noqa: BLE001 - a bug: the leases expire, and the attempts are made again
            first, others = claims[0], len(claims) - 1
            text = "reservation %s and %d others: unexpected error"
            log(events.ATTEMPT_ERROR, text, first.reservation_id, others, exc_info=error, **ids_of(first))

    async def _run(self, claims: Sequence[Reservation]) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        entries = [
            Entry(claimed, intent, self._open_attempt(claimed), began, clock)
            for claimed in claims
            if (intent := next_intent(claimed))
        ]
        deadline = began + to_seconds(self._config.call_timeout_us)
        await self._try(entries, deadline, is_first=True)

    def _open_attempt(self, claimed: Reservation) -> RecordedAttempt:
        config = self._config
        return RecordedAttempt(self._store, claimed, config.lease_us, config.grace_us, self._check_clock)

    async def _try(self, entries: Sequence[Entry], deadline: float, *, is_first: bool) -> None:
        if len(entries) == 1:
            await self._try_alone(entries[0], deadline, is_first=is_first)
        elif entries:
            await self._try_together(entries, deadline, is_first=is_first)

    async def _try_alone(self, entry: Entry, deadline: float, *, is_first: bool) -> None:
        outcome = await self._call(entry, deadline)
        if is_first and self._may_try_again(entry, outcome, deadline):
            await self._try_again([entry], deadline)
        else:
            await self._recorder.record([(entry, outcome)])

    async def _try_together(self, entries: Sequence[Entry], deadline: float, *, is_first: bool) -> None:
        """Send one batch. What arrives is recorded or tried again beside the call, so a slow entry delays nobody."""
        unanswered = dict(enumerate(entries))
        async with asyncio.TaskGroup() as tasks:
            try:
                async with aclosing(self._send(unanswered, deadline)) as arriving:
                    async for outcomes in arriving:
                        final, again = outcomes, []
                        if is_first:
                            again = [each for each, outcome in outcomes if self._may_try_again(each, outcome, deadline)]
                            final = [each for each in outcomes if each[0] not in again]
                        if again:
                            tasks.create_task(self._try_again(again, deadline))
                        if final:
                            tasks.create_task(self._recorder.record(final))
            except BatchesUnsupported as refusal:
                self._batches.note_refusal(refusal)
                for entry in unanswered.values():
                    tasks.create_task(self._try_alone(entry, deadline, is_first=is_first))

    async def _send(
        self, unanswered: dict[int, Entry], deadline: float
    ) -> AsyncGenerator[Sequence[tuple[Entry, Outcome]], None]:
        """Send entries, by their positions, in one batch. Yield the outcomes that arrive, and those of the rest last.

        Removes each entry from `unanswered` as its outcome is yielded. Raises BatchesUnsupported.
        """
        rest = NoAnswerError("UNAVAILABLE", "the batch ended without a result for this reservation")
        intents = [each.intent for each in unanswered.values()]
        try:
            async with aclosing(self._api.apply_batch(intents, timeout=_time_left(deadline))) as arriving:
                async for applied in arriving:
                    yield [(unanswered.pop(position), outcome) for position, outcome in applied]
            if len(unanswered) < len(intents):
                self._batches.note_support()
            else:
                self._batches.note_unreadable(rest)
            self._errors.note_success()
        except BatchesUnsupported:
            raise
        except NoAnswerError as error:
            rest = error
            if len(unanswered) == len(intents) and error.code == "INVALID_ANSWER":
                self._batches.note_unreadable(error)
        except Exception as error:  # noqa: BLE001 - a bug: the log has it, and the attempt is made again
            rest = self._note_bug(error)
        if unanswered:
            yield [(unanswered.pop(position), rest) for position in list(unanswered)]

    async def _try_again(self, entries: Sequence[Entry], deadline: float) -> None:
        await asyncio.sleep(to_seconds(second_try_us()))
        await self._try(entries, deadline, is_first=False)

    async def _call(self, entry: Entry, deadline: float) -> Outcome:
        try:
            answer = await self._api.apply(entry.intent, timeout=_time_left(deadline), attempt=entry.attempt)
        except NoAnswerError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a bug: the log has it, and the attempt is made again
            return self._note_bug(error)
        self._errors.note_success()
        return answer

    def _note_bug(self, error: Exception) -> NoAnswerError:
        self._errors.note_failure(error)
        return Bug()

    def _may_try_again(self, entry: Entry, outcome: Outcome, deadline: float) -> bool:
        """Whether a second try at once makes sense: only after a quick failure to reach the API."""
        if not isinstance(outcome, NoAnswerError) or isinstance(outcome, Bug):
            return False
        if asyncio.get_running_loop().time() >= deadline:
            return False
        # A recorded attempt may still take effect: a second one could reserve twice.
        if self._breaker.is_open or entry.attempt.open_until is not None:
            return False
        asked_to_wait = outcome.retry_after_us is not None
        return outcome.reached is False and not asked_to_wait and outcome.code != "DEADLINE_EXCEEDED"


def _time_left(deadline: float) -> float:
    """Return the seconds until `deadline`, but never less than a call can have."""
    return max(to_seconds(MIN_TIMEOUT_US), deadline - asyncio.get_running_loop().time())
