"""The stock behind a network that loses, delays and repeats: what both front doors call."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cart_grpc.carts.reservation import Intent
from cart_grpc.reservations.simulator.errors import (
    BadRequest,
    SimulatorError,
    Throttled,
    Unavailable,
    UnknownReservation,
)
from cart_grpc.reservations.simulator.faults import Fate, Faults, Nonsense, draw
from cart_grpc.reservations.simulator.rules import Record
from cart_grpc.reservations.simulator.stock import Effect, Levels, Stock

THROTTLE: Final = 1_000_000
"""How long a throttled caller is told to wait, in microseconds."""

_MAX_PENDING: Final = 200_000


@dataclass(frozen=True, slots=True)
class Told:
    """What the caller is told: `record`, or `nonsense` made of it."""

    record: Record
    nonsense: Nonsense | None = None


class Simulator:
    """`stock` behind `faults`, drawn from `numbers`; `clock` tells microseconds, `sleep` waits for seconds."""

    def __init__(
        self,
        stock: Stock,
        *,
        faults: Faults,
        numbers: random.Random,
        clock: Callable[[], int],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.faults = faults
        self._stock = stock
        self._numbers = numbers
        self._clock = clock
        self._sleep = sleep
        self._pending: set[asyncio.Task[Any]] = set()
        self._call_count = 0
        self._stopping = False

    @property
    def call_count(self) -> int:
        """How many messages have arrived, lost and repeated ones included."""
        return self._call_count

    @property
    def pending_count(self) -> int:
        """How many messages have arrived and not yet come to their end, repetitions on their way included."""
        return len(self._pending)

    async def apply(self, read: Callable[[], Intent]) -> Told:
        """Take in a message, which `read` returns or raises BadRequest for, and return what its sender is told.

        A caller that is cancelled only stops listening: once taken in, the message has its effect all the same, as
        with any server that does not notice. Raises SimulatorError.
        """
        self._call_count += 1
        self._refuse_if_down()
        intent = read()
        if len(self._pending) >= _MAX_PENDING:
            raise Throttled(THROTTLE)
        fate = draw(self.faults, self._numbers)
        if fate.duplicate_after is not None:
            self._start(self._repeat(intent, (fate.delay + fate.duplicate_after) / 1_000_000))
        task = self._start(self._deliver(intent, fate))
        try:
            outcome = await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise Unavailable("stopping") from None
            raise
        if isinstance(outcome, SimulatorError):
            raise outcome
        return outcome

    def get(self, reservation_id: str) -> Record:
        """Return a reservation as of now. Raises UnknownReservation, and Unavailable while down."""
        self._refuse_if_down()
        record = self._stock.find(reservation_id, self._clock())
        if record is None:
            raise UnknownReservation
        return record

    def lookup(self, reservation_ids: Sequence[str]) -> tuple[list[Record], list[str]]:
        """Return the reservations that are known, as of now, and the other ids. Raises Unavailable while down."""
        self._refuse_if_down()
        now = self._clock()
        found = {each: self._stock.find(each, now) for each in reservation_ids}
        return [each for each in found.values() if each], [each for each, record in found.items() if record is None]

    def set_stock(self, sku: str, quantity: int) -> None:
        """Make `quantity` pieces of `sku` free."""
        self._stock.set_stock(sku, quantity, self._clock())

    def levels(self, sku: str) -> Levels:
        """Return the stock of `sku` as of now."""
        return self._stock.levels(sku, self._clock())

    def effects(self, after_sequence: int = 0, limit: int = 1000) -> list[Effect]:
        """Return what was really decided, up to `limit` effects with a sequence above `after_sequence`."""
        return self._stock.effects(after_sequence, limit, self._clock())

    async def settle(self, timeout: float | None = None) -> bool:
        """Wait until no message is pending, at most `timeout` seconds; tell whether that came about."""
        try:
            async with asyncio.timeout(timeout):
                while self._pending:
                    await asyncio.wait(self._pending)
        except TimeoutError:
            return False
        return True

    async def stop(self, grace: float) -> None:
        """Take in nothing more, wait up to `grace` seconds for what is pending, and drop the rest without effect."""
        self._stopping = True
        await self.settle(grace)
        dropped = list(self._pending)
        for task in dropped:
            task.cancel()
        await asyncio.gather(*dropped, return_exceptions=True)

    def _refuse_if_down(self) -> None:
        if self._stopping or self.faults.down:
            raise Unavailable("stopping" if self._stopping else "down")

    def _start(self, work: Coroutine[Any, Any, Told | SimulatorError]) -> asyncio.Task[Told | SimulatorError]:
        task = asyncio.get_running_loop().create_task(work)
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        return task

    async def _deliver(self, intent: Intent, fate: Fate) -> Told | SimulatorError:
        """Return the error instead of raising it: where the caller is gone, nobody would fetch it."""
        if fate.delay:
            await self._sleep(fate.delay / 1_000_000)
        if fate.throttled:
            return Throttled(THROTTLE)
        if fate.refused:
            return BadRequest("SIMULATED_REFUSAL", "the simulator was told to refuse this")
        if fate.lost_before_effect:
            return Unavailable("lost before it took effect")
        try:
            record = self._stock.apply(intent, self._clock(), sold_out=fate.sold_out)
        except SimulatorError as error:
            return error
        except OSError:
            return Unavailable("the journal cannot be written")
        if fate.lost_after_effect:
            return Unavailable("lost after it took effect")
        return Told(record, fate.nonsense)

    async def _repeat(self, intent: Intent, delay: float) -> Told | SimulatorError:
        await self._sleep(delay)
        self._call_count += 1
        try:
            return Told(self._stock.apply(intent, self._clock()))
        except SimulatorError as error:
            return error
        except OSError:
            return Unavailable("the journal cannot be written")
