"""The stock behind a network that loses, delays and repeats: what both front doors call."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from cart_grpc.protocol.reservation import Intent, Observed
from cart_grpc.simulator.errors import (
    BadRequest,
    Refused,
    SimulatorError,
    Throttled,
    Unavailable,
    UnknownReservation,
)
from cart_grpc.simulator.faults import Fate, Faults, Nonsense, draw
from cart_grpc.simulator.rules import Record
from cart_grpc.simulator.stock import Effect, Levels, Stock

THROTTLE: Final = 1_000_000
"""How long a throttled caller is told to wait, in microseconds."""

_MAX_PENDING: Final = 200_000


@dataclass(frozen=True, slots=True)
class Told:
    """What the caller is told: `record`, or `nonsense` made of it."""

    record: Record
    nonsense: Nonsense | None = None


T = TypeVar("T")
Work = Callable[[int, bool], T]
"""What a message does when it takes effect: at a time, in microseconds, and whether all is said to be sold out."""


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

        def prepare() -> Work[Record]:
            intent = read()
            return lambda now, sold_out: self._stock.apply(intent, now, sold_out=sold_out)

        return Told(*await self._take_in(prepare))

    async def reserve(self, read: Callable[[], tuple[str, str, int]]) -> Record | None:
        """POST of the `basic` contract, for the id, item and quantity that `read` returns. None stands for nonsense.

        Raises SimulatorError.
        """

        def prepare() -> Work[Record]:
            basic_id, sku, quantity = read()
            return lambda now, sold_out: _unless_rejected(
                self._stock.reserve(basic_id, sku, quantity, now, sold_out=sold_out)
            )

        record, nonsense = await self._take_in(prepare)
        return record if nonsense is None else None

    async def find_live(self, basic_id: str) -> list[Record] | None:
        """GET of the `basic` contract. None stands for nonsense. Raises SimulatorError."""
        live, nonsense = await self._take_in(lambda: lambda now, _: self._stock.find_live(basic_id, now))
        return live if nonsense is None else None

    async def give_back(self, number: str) -> None:
        """DELETE of the `basic` contract. Raises SimulatorError."""

        def give_back(now: int, _sold_out: object) -> None:
            if self._stock.give_back(number, now) is None:
                raise UnknownReservation

        await self._take_in(lambda: give_back)

    async def _take_in(self, prepare: Callable[[], Work[T]]) -> tuple[T, Nonsense | None]:
        self._call_count += 1
        self._refuse_if_down()
        work = prepare()
        if len(self._pending) >= _MAX_PENDING:
            raise Throttled(THROTTLE)
        fate = draw(self.faults, self._numbers)
        if fate.duplicate_after is not None:
            self._start(self._repeat(work, (fate.delay + fate.duplicate_after) / 1_000_000))
        # What arrives at once is done before anybody could hang up; a task would take a tenth of the time of a call.
        outcome = await (self._deliver_later(work, fate) if fate.delay else self._deliver(work, fate))
        if isinstance(outcome, SimulatorError):
            raise outcome
        return outcome

    async def _deliver_later(self, work: Work[T], fate: Fate) -> tuple[T, Nonsense | None] | SimulatorError:
        task = self._start(self._deliver(work, fate))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise Unavailable("stopping") from None
            raise

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

    def _start(self, arrival: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(arrival)
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        return task

    async def _deliver(self, work: Work[T], fate: Fate) -> tuple[T, Nonsense | None] | SimulatorError:
        """Return the error instead of raising it: where the caller is gone, nobody would fetch it."""
        if fate.delay:
            await self._sleep(fate.delay / 1_000_000)
        if fate.throttled:
            return Throttled(THROTTLE)
        if fate.refused:
            return BadRequest("SIMULATED_REFUSAL", "the simulator was told to refuse this")
        if fate.lost_before_effect:
            return Unavailable("lost before it took effect")
        outcome = self._do(work, sold_out=fate.sold_out)
        if isinstance(outcome, SimulatorError):
            return outcome
        if fate.lost_after_effect:
            return Unavailable("lost after it took effect")
        return outcome, fate.nonsense

    async def _repeat(self, work: Work[T], delay: float) -> None:
        await self._sleep(delay)
        self._call_count += 1
        self._do(work, sold_out=False)

    def _do(self, work: Work[T], *, sold_out: bool) -> T | SimulatorError:
        try:
            return work(self._clock(), sold_out)
        except SimulatorError as error:
            return error
        except OSError:
            return Unavailable("the journal cannot be written")


def _unless_rejected(record: Record) -> Record:
    """The `basic` contract knows no decisions: what is rejected is an error."""
    if record.state is Observed.REJECTED:
        raise Refused(record.reason)
    return record
