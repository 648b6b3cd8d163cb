"""The Reservation API behind a network that loses, repeats, delays and reorders messages.

The product's own simulator (`Stock`) decides, and the product's own `wire` translates the answers. A message that was
sent arrives even if its sender dies.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from cart_grpc.protocol.reservation import Intent
from cart_grpc.reservation_api import wire
from cart_grpc.reservation_api.api import UNRECORDED, Answer, Attempt, NoAnswerError, SingleCalls
from cart_grpc.simulator import codec
from cart_grpc.simulator.errors import BodyMismatch, RevisionTooLow, SimulatorError
from cart_grpc.simulator.faults import Garbage
from cart_grpc.simulator.rules import StoredReservation
from cart_grpc.simulator.simulator import SimulatedReply
from cart_grpc.simulator.stock import Stock
from tests.simulation.loop import OUTSIDE, Process

MINUTE = 60.0


@dataclass
class NetworkFaults:
    """Probabilities per message, and maximum delays in seconds."""

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


class Network:
    """The network between the replicas and the Reservation API, and the API itself.

    It calls `log_event` for every event, `check_sent` for every message, and `report_violation` if an invariant breaks.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        stock: Stock,
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
        rng, faults = self._rng, self.faults
        self.call_count += 1
        self._check_sent(process.name, intent.reservation_id)
        self._log_event(
            "send", process.name, intent.reservation_id, intent.revision, intent.disposition.name, intent.quantity
        )
        chances = [rng.random() for _ in range(9)]
        delay = faults.latency * rng.random()
        if chances[0] < faults.slow:
            delay = faults.slowest * rng.random()
        if chances[1] < faults.duplicated:
            self._later(delay + faults.duplicate_delay * rng.random(), self._repeat, intent)
        self._later(delay, self._arrive, process, intent, reply, chances)

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
            wait = int(faults.retry_after * self._rng.random() * 1_000_000)
            self._answer(
                process, reply, NoAnswerError("RESOURCE_EXHAUSTED", "slow down", retry_after_us=wait, reached=True)
            )
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

    def _repeat(self, intent: Intent) -> None:
        if not self.is_down:
            self._log_event("repeat", intent.reservation_id, intent.revision)
            self._decide(intent, [1.0] * 9)

    def _decide(self, intent: Intent, chances: list[float]) -> "Answer | NoAnswerError":
        try:
            record = self._stock.apply(intent, self._clock(), sold_out=chances[6] < self.faults.sold_out)
            return _translate(record, intent, chances[7] < self.faults.garbage and self._rng.choice(list(Garbage)))
        except BodyMismatch:
            self._report_violation(f"{intent.reservation_id} revision {intent.revision} was sent with two bodies")
            return wire.to_permanent_failure("REVISION_BODY_MISMATCH", "INVALID_ARGUMENT", "")
        except RevisionTooLow as stale:
            return wire.to_stale_revision(codec.to_reservation(stale.current), intent)
        except SimulatorError as error:
            self._report_violation(f"{intent}: {error}")
            return NoAnswerError("INTERNAL", str(error))
        except NoAnswerError as nonsense:
            return nonsense

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


def _translate(record: StoredReservation, intent: Intent, nonsense: "Garbage | bool") -> Answer:
    response = codec.to_response(SimulatedReply(record, nonsense or None))  # type: ignore[arg-type]  # False is none
    if response is None:
        raise wire.invalid_answer("no message")
    return wire.to_decision(response.reservation, intent)


class SimulatedApi(SingleCalls):
    """A replica's client of the Reservation API. Implements `ReservationApi`."""

    def __init__(self, network: Network, process: Process) -> None:
        self._network = network
        self._process = process

    async def apply(self, intent: Intent, *, timeout: float, attempt: Attempt = UNRECORDED) -> Answer:
        reply: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._network.send(self._process, intent, reply)
        try:
            async with asyncio.timeout(timeout):
                return await reply
        except TimeoutError:
            raise NoAnswerError("DEADLINE_EXCEEDED", "no answer in time") from None

    async def close(self) -> None:
        """Nothing to close."""
