"""The stock behind a network that loses, delays and duplicates messages. All endpoints call it."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from cart_grpc.protocol.reservation import Intent, Observed
from cart_grpc.simulator.errors import (
    BadRequest,
    CallFailed,
    Lost,
    NoBatches,
    NotReserved,
    SimulatorError,
    Throttled,
    UnknownReservation,
)
from cart_grpc.simulator.faults import Fate, Faults, Garbage, draw
from cart_grpc.simulator.rules import StoredReservation
from cart_grpc.simulator.stock import Effect, Levels, Stock
from cart_grpc.units import to_seconds

RETRY_AFTER_US: Final = 1_000_000
"""The retry delay of a throttled call, in microseconds."""

_MAX_PENDING: Final = 200_000


@dataclass(frozen=True, slots=True)
class SimulatedReply:
    """The reply to a client: `reservation`, or `garbage` made of it."""

    reservation: StoredReservation
    garbage: Garbage | None = None


Outcome = tuple[int, SimulatedReply | SimulatorError]
"""The position of an entry in a batch, and the reply or the error of that entry."""

T = TypeVar("T")
Work = Callable[[int, bool], T]
"""The effect of a message. Its arguments are the time in microseconds and whether to refuse as sold out."""
_Entry = tuple[int, Work[StoredReservation], Fate]


class Simulator:
    """`stock` behind `faults`, drawn from `numbers`. `clock` returns microseconds; `sleep` takes seconds."""

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
        """The number of messages that have arrived, including lost and duplicated ones."""
        return self._call_count

    @property
    def pending_count(self) -> int:
        """The number of messages in progress, including duplicates that have not arrived yet."""
        return len(self._pending)

    async def apply(self, read: Callable[[], Intent]) -> SimulatedReply:
        """Receive a message and return the reply. `read` returns the message or raises BadRequest.

        Cancelling the call does not cancel the message: it still takes effect, as at a server that does not notice that
        its client left. Raises SimulatorError.
        """

        return SimulatedReply(*await self._receive(lambda: self._to_work(read())))

    async def apply_batch(self, reads: Sequence[Callable[[], Intent]]) -> AsyncGenerator[Sequence[Outcome], None]:
        """Receive a batch and yield the outcomes as they are decided, all that are ready at once.

        Each entry is a message of its own, as in `apply`. Raises CallFailed and NoBatches before any outcome.
        """
        supported = not self.faults.no_batches
        self._call_count += len(reads) * supported
        self._check_up()
        if not supported:
            raise NoBatches
        ready: list[Outcome] = []
        later: defaultdict[int, list[_Entry]] = defaultdict(list)
        for position, read in enumerate(reads):
            try:
                work, fate = self._admit(lambda: self._to_work(read()))  # noqa: B023 - called at once
            except SimulatorError as error:
                ready.append((position, error))
            else:
                later[fate.delay_us].append((position, work, fate))
        ready += await self._deliver_entries(later.pop(0, []))
        # One task for each delay, not for each entry: entries that are ready at the same time share a message.
        tasks = {self._start(self._deliver_entries(entries)) for entries in later.values()}
        if ready:
            yield ready
        while tasks:
            done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            yield [outcome for task in done if not task.cancelled() for outcome in task.result()]

    async def reserve(self, read: Callable[[], tuple[str, str, int]]) -> StoredReservation | None:
        """POST of the `basic` contract. `read` returns id, item and quantity. A result of None stands for garbage.

        Raises SimulatorError.
        """

        def prepare() -> Work[StoredReservation]:
            basic_id, sku, quantity = read()
            return lambda now, sold_out: _raise_if_rejected(
                self._stock.reserve(basic_id, sku, quantity, now, sold_out=sold_out)
            )

        stored, garbage = await self._receive(prepare)
        return stored if garbage is None else None

    async def find_live(self, basic_id: str) -> list[StoredReservation] | None:
        """GET of the `basic` contract. A result of None stands for garbage. Raises SimulatorError."""
        live, garbage = await self._receive(lambda: lambda now, _: self._stock.find_live(basic_id, now))
        return live if garbage is None else None

    async def delete(self, number: str) -> None:
        """DELETE of the `basic` contract. Raises SimulatorError."""

        def delete(now: int, _sold_out: object) -> None:
            if self._stock.delete(number, now) is None:
                raise UnknownReservation

        await self._receive(lambda: delete)

    async def _receive(self, prepare: Callable[[], Work[T]]) -> tuple[T, Garbage | None]:
        self._call_count += 1
        self._check_up()
        work, fate = self._admit(prepare)
        # Without a delay nothing suspends, so the call cannot be cancelled and needs no task: a task costs a tenth
        # of a call.
        outcome = await (self._deliver_later(work, fate) if fate.delay_us else self._deliver(work, fate))
        if isinstance(outcome, SimulatorError):
            raise outcome
        return outcome

    def _to_work(self, intent: Intent) -> Work[StoredReservation]:
        return lambda now, sold_out: self._stock.apply(intent, now, sold_out=sold_out)

    def _admit(self, prepare: Callable[[], Work[T]]) -> tuple[Work[T], Fate]:
        work = prepare()
        if len(self._pending) >= _MAX_PENDING:
            raise Throttled(RETRY_AFTER_US)
        fate = draw(self.faults, self._numbers)
        if fate.duplicate_after_us is not None:
            self._start(self._deliver_duplicate(work, fate.delay_us + fate.duplicate_after_us))
        return work, fate

    async def _deliver_entries(self, entries: Sequence[_Entry]) -> list[Outcome]:
        """Deliver entries that have the same delay."""
        if entries and (delay_us := entries[0][2].delay_us):
            await self._sleep(to_seconds(delay_us))
        outcomes: list[Outcome] = []
        for position, work, fate in entries:
            delivered = self._arrive(work, fate)
            outcomes.append(
                (position, delivered if isinstance(delivered, SimulatorError) else SimulatedReply(*delivered))
            )
        return outcomes

    async def _deliver_later(self, work: Work[T], fate: Fate) -> tuple[T, Garbage | None] | SimulatorError:
        task = self._start(self._deliver(work, fate))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise CallFailed("stopping") from None
            raise

    def get(self, reservation_id: str) -> StoredReservation:
        """Return a reservation as of now. Raises UnknownReservation, and CallFailed while down."""
        self._check_up()
        stored = self._stock.find(reservation_id, self._clock())
        if stored is None:
            raise UnknownReservation
        return stored

    def lookup(self, reservation_ids: Sequence[str]) -> tuple[list[StoredReservation], list[str]]:
        """Return the known reservations as of now, and the unknown ids. Raises CallFailed while down."""
        self._check_up()
        now = self._clock()
        found = {each: self._stock.find(each, now) for each in reservation_ids}
        return [each for each in found.values() if each], [each for each, stored in found.items() if stored is None]

    def set_stock(self, sku: str, quantity: int) -> None:
        """Make `quantity` units of `sku` available."""
        self._stock.set_stock(sku, quantity, self._clock())

    def levels(self, sku: str) -> Levels:
        """Return the stock of `sku` as of now."""
        return self._stock.levels(sku, self._clock())

    def effects(self, after_sequence: int = 0, limit: int = 1000) -> list[Effect]:
        """Return up to `limit` effects with a sequence above `after_sequence`, in order."""
        return self._stock.effects(after_sequence, limit, self._clock())

    async def settle(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds (None: forever) until no message is in progress. Returns False on time-out."""
        try:
            async with asyncio.timeout(timeout):
                while self._pending:
                    await asyncio.wait(self._pending)
        except TimeoutError:
            return False
        return True

    async def stop(self, grace: float) -> None:
        """Refuse new messages, wait up to `grace` seconds for those in progress, and drop the rest without effect."""
        self._stopping = True
        await self.settle(grace)
        dropped = list(self._pending)
        for task in dropped:
            task.cancel()
        await asyncio.gather(*dropped, return_exceptions=True)

    def _check_up(self) -> None:
        if self._stopping or self.faults.down:
            raise CallFailed("stopping" if self._stopping else "down")

    def _start(self, arrival: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(arrival)
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        return task

    async def _deliver(self, work: Work[T], fate: Fate) -> tuple[T, Garbage | None] | SimulatorError:
        """Return an error instead of raising it: asyncio logs an exception that no caller retrieves."""
        if fate.delay_us:
            await self._sleep(to_seconds(fate.delay_us))
        return self._arrive(work, fate)

    def _arrive(self, work: Work[T], fate: Fate) -> tuple[T, Garbage | None] | SimulatorError:
        if fate.throttled:
            return Throttled(RETRY_AFTER_US)
        if fate.refused:
            return BadRequest("SIMULATED_REFUSAL", "the simulator refuses this call because of its faults")
        if fate.lost_before_effect:
            return Lost("lost before taking effect")
        outcome = self._run(work, sold_out=fate.sold_out)
        if isinstance(outcome, SimulatorError):
            return outcome
        if fate.lost_after_effect:
            return Lost("lost after taking effect")
        return outcome, fate.garbage

    async def _deliver_duplicate(self, work: Work[T], delay_us: int) -> None:
        await self._sleep(to_seconds(delay_us))
        self._call_count += 1
        self._run(work, sold_out=False)

    def _run(self, work: Work[T], *, sold_out: bool) -> T | SimulatorError:
        try:
            return work(self._clock(), sold_out)
        except SimulatorError as error:
            return error
        except OSError:
            return CallFailed("the journal cannot be written")


def _raise_if_rejected(stored: StoredReservation) -> StoredReservation:
    """Raise NotReserved for a rejection: the `basic` contract has no decisions."""
    if stored.state is Observed.REJECTED:
        raise NotReserved(stored.reason)
    return stored
