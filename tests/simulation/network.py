"""The Reservation API behind a network that loses, repeats, delays and reorders messages.

The product's own simulator (`Stock`) decides, and the product's own `wire` translates the answers. A message that was
sent arrives even if its sender dies.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from cart_grpc.protocol.reservation import Disposition, Intent
from cart_grpc.reservation_api import wire
from cart_grpc.reservation_api.api import Answer, BatchesUnsupported, NoAnswerError
from cart_grpc.simulator import codec
from cart_grpc.simulator.errors import BadRequest, BodyMismatch, Lost, RevisionTooLow, SimulatorError, Throttled
from cart_grpc.simulator.faults import Garbage
from cart_grpc.simulator.simulator import Outcome, SimulatedReply
from tests.simulation.batch_calls import BatchCall, Event, to_answer
from tests.simulation.loop import MIN_DELAY, OUTSIDE, Process
from tests.simulation.lossy_stock import LossyStock

MINUTE = 60.0


@dataclass
class NetworkFaults:
    """Probabilities per message or entry of a batch, and maximum delays in seconds.

    `broken`, `half` and `hanging` are the probabilities that a batch call's stream breaks, ends without an error before
    all results were sent, or goes silent. `doubled`: that its results are repeated. `lost_holds`: that the API has lost
    the hold that it is asked to sell, and refuses.
    """

    lost_before: float = 0.0
    lost_after: float = 0.0
    silent: float = 0.0
    duplicated: float = 0.0
    duplicate_delay: float = 600.0
    slow: float = 0.0
    slowest: float = 5 * MINUTE
    latency: float = 1.0
    refused: float = 0.0
    sold_out: float = 0.0
    garbage: float = 0.0
    throttled: float = 0.0
    retry_after: float = 30.0
    broken: float = 0.0
    half: float = 0.0
    hanging: float = 0.0
    lost_holds: float = 0.0
    doubled: float = 0.0


class Network:
    """The network between the replicas and the Reservation API, and the API itself.

    It calls `log_event` for every event, `check_sent` for every message, and `report_violation` if an invariant breaks.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        stock: LossyStock,
        faults: NetworkFaults,
        rng: Random,
        clock: Callable[[], int],
        *,
        log_event: Callable[..., None],
        check_sent: Callable[[str, str], None],
        report_violation: Callable[[str], None],
    ) -> None:
        self.faults = faults
        self.is_down = False
        self.is_closed = False
        # Whether the API offers batches at the moment.
        self.has_batches = True
        self.call_count = 0
        self.last_arrival = 0.0
        self._loop = loop
        self._stock = stock
        self._rng = rng
        self._clock = clock
        self._log_event = log_event
        self._check_sent = check_sent
        self._report_violation = report_violation
        self._cut: set[str] = set()

    def cut(self, process_name: str) -> None:
        """Partition a process from the Reservation API."""
        self._cut.add(process_name)

    def reconnect(self, process_name: str) -> None:
        self._cut.discard(process_name)

    def send(self, process: Process, intent: Intent, reply: "asyncio.Future[Answer]") -> None:
        """Send a message. `reply` gets the outcome, unless it is lost."""
        self._note_sent("send", process, intent)
        delay, chances = self._draw()
        self._later(delay, self._arrive, process, intent, reply, chances)
        if chances[1] < self.faults.duplicated:
            self._later(delay + self.faults.duplicate_delay * self._rng.random(), self._repeat, intent)

    def _note_sent(self, verb: str, process: Process, intent: Intent) -> None:
        self.call_count += 1
        self._check_sent(process.name, intent.reservation_id)
        self._log_event(
            verb, process.name, intent.reservation_id, intent.revision, intent.disposition.name, intent.quantity
        )

    def _draw(self) -> tuple[float, list[float]]:
        """Draw the delay and the fate of a message or of an entry of a batch."""
        rng, faults = self._rng, self.faults
        chances = [rng.random() for _ in range(9)]
        return (faults.slowest if chances[0] < faults.slow else faults.latency) * rng.random(), chances

    def send_batch(self, call: BatchCall) -> None:
        """Send a batch call. Its results come as its events, unless they are lost."""
        for intent in call.intents:
            self._note_sent("send in a batch", call.process, intent)
        delay, chances = self._draw()
        self._later(delay, self._arrive_batch, call, chances)
        if chances[1] < self.faults.duplicated:
            self._log_event("the batch is doubled")
            for intent in call.intents:
                self._later(delay + self.faults.duplicate_delay * self._rng.random(), self._repeat, intent)

    def _later(self, delay: float, callback: Callable[..., None], *args: Any) -> None:
        arrival = self._loop.time() + delay
        self.last_arrival = max(self.last_arrival, arrival)
        self._loop.call_at(arrival, callback, *args, context=OUTSIDE)

    def _arrive(self, process: Process, intent: Intent, reply: "asyncio.Future[Answer]", chances: list[float]) -> None:
        faults = self.faults
        if self.is_down or self.is_closed or process.name in self._cut or chances[2] < faults.lost_before:
            self._lose(reply, "lost before the API", is_silent=chances[3] < 0.2)
            return
        if chances[4] < faults.throttled:
            self._answer(process, reply, self._throttle())
            return
        if chances[5] < faults.refused:
            self._answer(
                process, reply, wire.to_permanent_failure("SIMULATED", "INVALID_ARGUMENT", "a fault of the simulation")
            )
            return
        answer = self._decide(intent, chances)
        if chances[8] < faults.lost_after:
            self._lose(reply, "lost after the API", is_silent=chances[3] < 0.5)
            return
        self._answer(process, reply, answer)

    def _arrive_batch(self, call: BatchCall, chances: list[float]) -> None:
        faults, rng = self.faults, self._rng
        if self.is_down or self.is_closed or call.process.name in self._cut or chances[2] < faults.lost_before:
            call.end("hang" if chances[3] < 0.2 else "error", partial(self._stream, call))
            return
        if not self.has_batches:
            self._log_event("batches are not supported")
            self._stream(call, BatchesUnsupported("UNIMPLEMENTED", ""))
            return
        if chances[4] < faults.throttled / 2:
            self._stream(call, self._throttle())
            return
        for how, probability in (("error", faults.broken), ("half", faults.half), ("hang", faults.hanging)):
            if not call.breaks and rng.random() < probability:
                self._log_event("the stream breaks", how)
                call.break_up(how, rng)
        # Most entries are decided at once, in any order; the others one by one, and some of them much later.
        positions = rng.sample(range(len(call.intents)), len(call.intents))
        while positions:
            now = [positions.pop() for _ in range(min(len(positions), rng.choice([1, 3, 100])))]
            self._later(0.0 if rng.random() < 0.7 else self._draw()[0], self._decide_entries, call, now)

    def _decide_entries(self, call: BatchCall, positions: Sequence[int]) -> None:
        outcomes = []
        for position in positions:
            delay, chances = self._draw()
            if chances[0] < self.faults.slow:
                # An entry that is decided late delays none of the others.
                self._later(delay, self._decide_late, call, position, chances)
            else:
                outcomes.append(self._decide_entry(call, position, chances))
        self._answer_entries(call, outcomes)

    def _decide_late(self, call: BatchCall, position: int, chances: list[float]) -> None:
        self._answer_entries(call, [self._decide_entry(call, position, chances)])

    def _decide_entry(self, call: BatchCall, position: int, chances: list[float]) -> Outcome:
        call.undecided.discard(position)
        faults = self.faults
        if self.is_down or chances[2] < faults.lost_before:
            return position, Lost("lost before the API")
        if chances[4] < faults.throttled:
            return position, Throttled(self._draw_retry_after())
        if chances[5] < faults.refused:
            return position, BadRequest("SIMULATED", "a fault of the simulation")
        outcome = self._apply(call.intents[position], chances)
        return position, Lost("lost after the API") if chances[8] < faults.lost_after else outcome

    def _answer_entries(self, call: BatchCall, outcomes: Sequence[Outcome]) -> None:
        call.decided(outcomes, partial(self._stream, call), doubled=self._rng.random() < self.faults.doubled)

    def _stream(self, call: BatchCall, event: Event) -> None:
        """Send the next event of a stream. Events do not overtake each other."""
        call.ends_at = max(call.ends_at + MIN_DELAY, self._loop.time() + self.faults.latency * self._rng.random())
        self._later(call.ends_at - self._loop.time(), self._receive_event, call, event)

    def _receive_event(self, call: BatchCall, event: Event) -> None:
        if call.process.name not in self._cut:
            call.events.put_nowait(event)

    def _repeat(self, intent: Intent) -> None:
        if not self.is_down:
            self._log_event("repeat", intent.reservation_id, intent.revision)
            self._decide(intent, [1.0] * 9)

    def _draw_retry_after(self) -> int:
        return int(self.faults.retry_after * self._rng.random() * 1_000_000)

    def _throttle(self) -> NoAnswerError:
        wait = self._draw_retry_after()
        return NoAnswerError("RESOURCE_EXHAUSTED", "slow down", retry_after_us=wait, reached=True)

    def _apply(self, intent: Intent, chances: list[float]) -> SimulatedReply | SimulatorError:
        faults = self.faults
        if faults.lost_holds and intent.disposition is Disposition.COMMIT and self._rng.random() < faults.lost_holds:
            self._stock.lose_hold(intent, self._clock())
        try:
            record = self._stock.apply(intent, self._clock(), sold_out=chances[6] < faults.sold_out)
        except RevisionTooLow as stale:
            return stale
        except BodyMismatch as mismatch:
            self._report_violation(f"{intent.reservation_id} revision {intent.revision} was sent with two bodies")
            return mismatch
        except SimulatorError as error:
            self._report_violation(f"{intent}: {error}")
            return error
        is_garbage = chances[7] < faults.garbage
        return SimulatedReply(record, self._rng.choice(list(Garbage)) if is_garbage else None)

    def _decide(self, intent: Intent, chances: list[float]) -> "Answer | NoAnswerError":
        match self._apply(intent, chances):
            case SimulatedReply() as reply:
                return to_answer(reply, intent)
            case RevisionTooLow() as stale:
                return wire.to_stale_revision(codec.to_reservation(stale.current), intent)
            case BodyMismatch():
                return wire.to_permanent_failure("REVISION_BODY_MISMATCH", "INVALID_ARGUMENT", "")
            case error:
                return NoAnswerError("INTERNAL", str(error))

    def _answer(self, process: Process, reply: "asyncio.Future[Answer]", answer: "Answer | NoAnswerError") -> None:
        delay = self.faults.latency * self._rng.random()
        if self._rng.random() < self.faults.slow:
            delay = self.faults.slowest * self._rng.random()
        self._later(delay, self._receive, process, reply, answer)

    def _receive(self, process: Process, reply: "asyncio.Future[Answer]", answer: "Answer | NoAnswerError") -> None:
        if process.name in self._cut:
            self._lose(reply, "partitioned from the API", is_silent=True)
        elif reply.done():
            return
        elif isinstance(answer, NoAnswerError):
            reply.set_exception(answer)
        else:
            reply.set_result(answer)

    def _lose(self, reply: "asyncio.Future[Answer]", why: str, *, is_silent: bool) -> None:
        """Lose the answer: silently, so that the sender waits for its deadline, or with a broken connection."""
        if not is_silent and not reply.done():
            reply.set_exception(NoAnswerError("UNAVAILABLE", why))
