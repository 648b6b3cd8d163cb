"""The store's interface to the other rooms: one method for each kind of write, and the objects that read."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Protocol, TypeVar

from cart_grpc.carts.calls import NewId
from cart_grpc.carts.refusals import DatabaseUnavailable, Unavailable
from cart_grpc.commands.checkout import CheckoutMutation
from cart_grpc.commands.command import Command
from cart_grpc.commands.direct import Claim, EraseRows, ExtendLeases, Pause, Purge, Resume, ReturnClaims, SetAside
from cart_grpc.commands.expire import Expire
from cart_grpc.commands.mutation import Mutation
from cart_grpc.commands.record import OpenAttempt, RecordAll, Recorded, RecordOutcome
from cart_grpc.names import CartKey
from cart_grpc.protocol.lanes import Lane
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.database_clock import DatabaseClock
from cart_grpc.store.due_shards import DueShards
from cart_grpc.store.each_part import do_each
from cart_grpc.store.engine import Engine
from cart_grpc.store.failure_log import FailureLog
from cart_grpc.store.failures import is_row_at_fault
from cart_grpc.store.pool_usage import set_gauges
from cart_grpc.store.read.backlog_gauges import BacklogGauges
from cart_grpc.store.read.cart_search import CartSearches
from cart_grpc.store.read.cart_watches import CartWatches
from cart_grpc.store.read.checkout_reads import CheckoutReads
from cart_grpc.store.read.checkout_watches import CheckoutWatches
from cart_grpc.store.read.erasures import Erasures
from cart_grpc.store.read.operator_reads import OperatorReads
from cart_grpc.store.read.reader import Reader
from cart_grpc.store.read.reads import Reads
from cart_grpc.store.read.reservation_search import ReservationSearches
from cart_grpc.store.read.unswept import Unswept
from cart_grpc.store.shards import shard_index
from cart_grpc.store.write_queue import EVERY_SHARD, WriteQueue
from cart_grpc.store.writer_markers import DEFAULT_MARKER_RETENTION_US
from cart_grpc.tracing import Tracer

R = TypeVar("R")
T = TypeVar("T")
PING_SECONDS: Final = 2.0


class _Path(Protocol):
    """A way to the database, with its own connections and the log of its failures."""

    failures: FailureLog

    async def ping(self) -> None: ...


class Store:
    """Carts and reservations in one database.

    Every write returns once it is durable. Every write may raise DatabaseUnavailable (nothing was done), OutcomeUnknown
    (it may have been done) or ShuttingDown. A caller that is cancelled does not stop a commit that has begun.

    `name` is the database's URL without its password. `notifier` says which carts this process has changed, and
    `due_shards` in which shards to look for due reservations. `watches` and `checkout_watches` wait for changes. The
    other objects read.
    """

    def __init__(
        self,
        engine: Engine,
        new_id: NewId,
        *,
        queue_size: int,
        marker_retention_us: int = DEFAULT_MARKER_RETENTION_US,
        tracer: Tracer | None = None,
    ) -> None:
        self._engine = engine
        self.name = engine.name
        self.notifier = ChangeNotifier()
        self._reader = Reader(engine)
        self.reads = Reads(engine, queue_size, self._reader)
        self.unswept = Unswept(engine, self._reader)
        self.operator_reads = OperatorReads(engine, self._reader)
        self.backlog_gauges = BacklogGauges(engine, self._reader)
        self.cart_searches = CartSearches(engine, self._reader)
        self.erasures = Erasures(engine, self._reader)
        self.reservation_searches = ReservationSearches(engine, self._reader)
        self.watches = CartWatches(self.reads, self.notifier, engine.hints, checks=engine.is_shared)
        if engine.hints:
            self.notifier.subscribe(engine.hints.send, lambda: None)
        self.checkout_reads = CheckoutReads(engine, self._reader)
        self.checkout_watches = CheckoutWatches(self.checkout_reads, self.notifier, engine.hints)
        self.due_shards = DueShards(len(engine.shards), self.notifier)
        self._write_queue = WriteQueue(engine, self.notifier, new_id, queue_size, marker_retention_us, tracer)

    async def start(self) -> None:
        """Open the database for writing. Raises the database's errors."""
        await self._write_queue.start()

    def sample(self) -> None:
        """Set the gauges of the write queue and of the connections."""
        self._write_queue.sample()
        for pool in self._engine.pools():
            set_gauges(pool)

    async def close(self) -> None:
        """Refuse new writes, and wait until the queued ones are durable. Does not close the engine."""
        await self.reads.close()
        await self._write_queue.close()

    async def mutate(self, mutation: Mutation | CheckoutMutation) -> bytes:
        """Make a caller's change and return the bytes of its reply.

        Raises Overloaded if too many calls wait, and the refusals of its rule.
        """
        reply: bytes = await self._write_queue.submit(mutation)
        return reply

    async def has_due(self, lane: Lane) -> bool:
        """Return whether a claim of `lane` would find a row in a shard that is to be looked at.

        Raises DatabaseUnavailable if none has a row and one does not answer.
        """
        failure: Unavailable | None = None
        for number in self.due_shards.find(lane):
            self.due_shards.begin_look(lane, number)
            try:
                is_due = await self.reads.has_due(lane, number)
            except Unavailable as refusal:
                failure = refusal
                continue
            if is_due:
                self.due_shards.note_due(lane, number)
                return True
        if failure:
            raise failure
        return False

    async def claim(self, claim: Claim) -> list[Reservation]:
        """Claim due reservations, in the shards that are to be looked at, and return them as claimed.

        An error is raised only if nothing was claimed: those of the other shards need an owner.
        """
        if claim.only:
            return list(await self._write_queue.submit_to(self._shard(claim.only.slice), claim))
        claimed: list[Reservation] = []
        failure: Unavailable | None = None
        for number in self.due_shards.find(claim.lane):
            self.due_shards.begin_look(claim.lane, number)
            most = claim.limit - len(claimed)
            try:
                # `has_due` puts a shard first that has a due row. A look at the others costs less than a transaction.
                if claimed and not await self.reads.has_due(claim.lane, number):
                    continue
                of_shard = await self._write_queue.submit_to(number, replace(claim, limit=most))
            except Unavailable as refusal:
                failure = refusal
                continue
            except Exception:
                if not claimed:
                    raise
                # A row is at fault. The next claim begins with its shard, and raises.
                self.due_shards.note_due(claim.lane, number)
                break
            claimed += of_shard
            if len(of_shard) == most:
                self.due_shards.note_more(claim.lane, number)
                break
        if failure and not claimed:
            raise failure
        return claimed

    async def set_aside(self, command: SetAside) -> bool:
        """Stop claiming a row that makes a statement fail. Return whether it was set aside."""
        done: bool = await self._write_queue.submit_to(self._shard(command.row.slice), command)
        return done

    async def open_attempt(self, attempt: OpenAttempt) -> int | None:
        """Open an attempt. Return until when it can take effect, or None if nothing may be sent."""
        until: int | None = await self._write_queue.submit_background(attempt)
        return until

    async def record(self, record: RecordOutcome) -> Recorded:
        """Record the outcome of a call to the Reservation API."""
        (recorded,) = await self.record_all([record])
        if isinstance(recorded, Exception):
            raise recorded
        return recorded

    async def record_all(self, records: Sequence[RecordOutcome]) -> Sequence[Recorded | Exception]:
        """Record the outcomes of many calls, in one transaction for each shard.

        Returns for each a Recorded, or why it was not made. If a row makes the transaction fail, each record gets a
        transaction of its own, so that the others are made.
        """
        by_shard = self._group(records, lambda record: record.claimed.cart.slice)
        if len(by_shard) == 1:
            [(number, _)] = by_shard.items()
            return await self._record_in(number, records)
        parts = await asyncio.gather(
            *(self._record_in(number, [records[place] for place in places]) for number, places in by_shard.items()),
            return_exceptions=True,
        )
        answers: dict[int, Recorded | Exception] = {}
        for places, part in zip(by_shard.values(), parts, strict=True):
            if isinstance(part, BaseException) and not isinstance(part, Exception):
                raise part
            # If a shard does not answer, the records of the others are made all the same.
            answers.update(zip(places, [part] * len(places) if isinstance(part, Exception) else part, strict=True))
        return [answers[place] for place in range(len(records))]

    async def _record_in(self, shard: int, records: Sequence[RecordOutcome]) -> Sequence[Recorded | Exception]:
        try:
            recorded: Sequence[Recorded | Exception] = await self._write_queue.submit_to(shard, RecordAll(records))
        except Exception as error:
            if len(records) == 1 or not is_row_at_fault(error):
                raise
            recorded = await asyncio.gather(*map(self._record_alone, records))
        return recorded

    async def _record_alone(self, record: RecordOutcome) -> Recorded | Exception:
        try:
            return await self.record(record)
        except Exception as error:  # noqa: BLE001 - it is the answer of this record
            return error

    async def expire(self, cart: CartKey) -> bool:
        """End the cart if its expire_time has passed. Return whether the cart was ended."""
        expired: bool = await self._write_queue.submit_background(Expire(cart))
        return expired

    async def purge(self, purge: Purge) -> int:
        """Delete rows whose retention is over, up to the limit in each shard. Return how many."""
        numbers = range(len(self._engine.shards))
        return sum(await do_each(self._write_queue.submit_to(number, purge) for number in numbers))

    async def erase_rows(self, command: EraseRows) -> int:
        """Delete rows of a user who is being erased. Return how many."""
        deleted: int = await self._write_queue.submit_to(self._shard(command.user.slice), command)
        return deleted

    async def intervene(self, command: Command[R]) -> R:
        """Run a command of an operator or the sweeper. It does not wait behind callers. Raises its refusals."""
        answer: R = await self._write_queue.submit_background(command)
        return answer

    async def pause(self, command: Pause | Resume) -> None:
        """Stop all claims, in every process, or allow them again: in all shards, or in none."""
        await self._write_queue.submit_to(EVERY_SHARD, command)

    async def update_leases(self, command: ExtendLeases | ReturnClaims) -> None:
        """Extend the leases of claims, or return the claims."""
        for claims in self.by_shard(command.claims):
            await self._write_queue.submit_to(self._shard(_slice_of(claims[0])), replace(command, claims=claims))

    def by_shard(self, claims: Sequence[Reservation]) -> Sequence[Sequence[Reservation]]:
        """Return the claims of each shard."""
        return [[claims[place] for place in places] for places in self._group(claims, _slice_of).values()]

    def clock(self, monotonic: Callable[[], int], longest_attempt_us: int) -> DatabaseClock:
        """Return the database's clock, as DatabaseClock describes it."""
        return DatabaseClock(self._engine, monotonic, longest_attempt_us, self.reads.begin_era)

    async def ping(self) -> None:
        """Raise DatabaseUnavailable unless the database accepts writes and answers each kind of read, each in 2 s."""
        for result in await asyncio.gather(*map(_ping, self._paths), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def find_failing(self) -> Sequence[str]:
        """Return the paths to the database that fail at present, as their lines in the log name them."""
        return [path.failures.fails for path in self._paths if path.failures.is_failing]

    @property
    def _paths(self) -> Sequence[_Path]:
        return self._write_queue, self.reads, self._reader

    def _shard(self, slice_: int) -> int:
        return shard_index(slice_, len(self._engine.shards))

    def _group(self, values: Sequence[T], slice_of: Callable[[T], int]) -> dict[int, list[int]]:
        """Return the places of `values` by the number of their shard."""
        places: dict[int, list[int]] = defaultdict(list)
        for place, value in enumerate(values):
            places[self._shard(slice_of(value))].append(place)
        return places


def _slice_of(claim: Reservation) -> int:
    return claim.cart.slice


async def _ping(path: _Path) -> None:
    try:
        async with asyncio.timeout(PING_SECONDS):
            await path.ping()
    except TimeoutError as error:
        path.failures.note_failure(error)
        raise DatabaseUnavailable from error
