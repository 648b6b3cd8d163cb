"""Group commit, the writing half: write a batch in one transaction, and give each command its answer.

A batch is retried while the database is briefly unavailable. If a connection breaks during COMMIT, the batch's commit
marker tells whether it was committed.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy import Connection
from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential

from cart_grpc.carts.calls import NewId
from cart_grpc.carts.refusals import DatabaseUnavailable, OutcomeUnknown
from cart_grpc.commands.record import RecordAll
from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.metrics import (
    AMBIGUOUS_COMMITS,
    BATCH_COMMANDS,
    BATCH_DURATION,
    BATCH_WAIT,
    CHECKOUTS_ENDED,
    DATABASE_RETRIES,
)
from cart_grpc.store import writer_markers
from cart_grpc.store.batch import ENDED_CHECKOUT_STATES, AnyCommand, BatchResult, run_batch
from cart_grpc.store.change_notifier import NO_ROOM, ChangeNotifier, Room
from cart_grpc.store.engine import Engine
from cart_grpc.store.failures import CommitFailed, find_refusal, translate_failures
from cart_grpc.store.queries import WriteQueries
from cart_grpc.store.rows import CommitMarker
from cart_grpc.tracing import Tracer

T = TypeVar("T")
log = Log(__name__)

# How long to retry a batch, counted from when its first transaction began.
RETRY_SECONDS = 2.0
# How long to try to find out whether a broken COMMIT happened.
RESOLVE_SECONDS = 20.0
# Children from the start: an alert on an increase does not see a series that begins at 1.
_AMBIGUOUS: Final = {name: AMBIGUOUS_COMMITS.labels(name) for name in ("committed", "not_committed", "unknown")}
_ENDED_CHECKOUTS: Final = {state: CHECKOUTS_ENDED.labels(state.name) for state in ENDED_CHECKOUT_STATES}
# After so long without a commit, a writer makes sure of its marker. Others delete it after a week at the earliest.
IDLE_SECONDS = 24 * 3600.0


@dataclass(slots=True)
class QueuedCommand:
    """A command, and the future for its answer. If the future is done, the caller has left.

    `queue_time` is when it was queued, on the monotonic clock in seconds.
    """

    command: AnyCommand
    answer: asyncio.Future[Any]
    queue_time: float = field(default_factory=time.monotonic)

    @property
    def size(self) -> int:
        """How many commands it counts in a batch."""
        return len(self.command.records) if isinstance(self.command, RecordAll) else 1


Take = Callable[[], list[QueuedCommand]]


# Notes how the last batch ended: None if it was written.
NoteResult = Callable[[Exception | None], None]


@dataclass(slots=True)
class _Batch:
    """The commands of one transaction. None until `take` is called, which happens once the transaction is open.

    `begin_time` is when its first transaction began, on the monotonic clock in seconds.
    """

    take: Take
    commands: list[QueuedCommand] | None = None
    begin_time: float | None = None

    def get_commands(self) -> list[QueuedCommand]:
        """Return the commands. Take them from the queue if that has not happened yet."""
        if self.commands is None:
            self.commands = self.take()
        return self.commands


class BatchWriter:
    """Writes one batch after another.

    Each writer has its own row in `commit_markers`. So it can find out what happened to its batch while the other
    writer goes on. It calls `note_result` after each batch, but not after one that is split and tried again. With
    `tracer`, the writes of traced calls have spans.
    """

    def __init__(
        self,
        engine: Engine,
        queries: WriteQueries,
        notifier: ChangeNotifier,
        new_id: NewId,
        note_result: NoteResult,
        tracer: Tracer | None = None,
    ) -> None:
        self.writer_id = new_id()
        self._batch_number = 0
        # When its marker was written last, on the monotonic clock in seconds.
        self._marker_time = time.monotonic()
        self._engine = engine
        self._queries = queries
        self._notifier = notifier
        self._new_id = new_id
        self._note_result = note_result
        self._tracer = tracer

    async def write_batch(self, take: Take) -> None:
        """Take a batch as late as possible, make it durable and answer it.

        The room for its claims is reserved here, on the event loop, and given back when the batch has ended in any way.
        """
        with self._notifier.reserve_room() as room:
            await self._commit_or_split(_Batch(take), room)

    async def _commit_or_split(self, batch: _Batch, room: Room) -> None:
        """Commit and answer a batch. Split one that fails because of a command, until only that command fails.

        The parts of a split batch claim nothing: a row that cannot be claimed must not make its caller's command fail.
        """
        try:
            result = await self._transact_with_retries(batch, room)
        except Exception as error:  # noqa: BLE001 - each command gets an answer, whatever went wrong
            commands = batch.get_commands()
            if isinstance(error, OutcomeUnknown):
                text = "%d changes may or may not have been made: the connection broke at COMMIT"
                log(events.COMMIT_UNKNOWN, text, len(commands), changes=len(commands))
            elif not isinstance(error, DatabaseUnavailable) and (len(commands) > 1 or room.claims):
                middle = len(commands) // 2
                for part in (commands[:middle], commands[middle:]):
                    if part:
                        await self._commit_or_split(_Batch(batch.take, part), NO_ROOM)
                return
            self._note_result(error)
            _answer_all(commands, [error] * len(commands))
        else:
            _measure(batch, result)
            self._note_result(None)
            if self._tracer:
                _trace(self._tracer, batch)
            _answer_all(batch.get_commands(), result.answers)
            self._notifier.publish(result.changed, claimed=result.claimed, due=result.due)

    async def _transact_with_retries(self, batch: _Batch, room: Room) -> BatchResult:
        self._batch_number += 1
        queued_time = time.monotonic()
        with translate_failures():
            return await _retry_while_unavailable(
                partial(self._transact_once, batch, room),
                lambda: time.monotonic() - (batch.begin_time or queued_time) >= RETRY_SECONDS,
            )

    async def _transact_once(self, batch: _Batch, room: Room) -> BatchResult:
        marker = CommitMarker(self.writer_id, self._batch_number)
        if time.monotonic() - self._marker_time >= IDLE_SECONDS:
            await self._write_marker()
        try:
            result: BatchResult = await self._engine.transact(partial(self._run_in_transaction, batch, marker, room))
        except CommitFailed as failure:
            if not await self._resolve(marker):
                # Nothing was committed, and nothing will be, so the batch may be retried.
                raise failure.__cause__ or failure from None
            result = failure.result
        self._marker_time = time.monotonic()
        return result

    async def _write_marker(self) -> None:
        """Write the marker before the next batch: a process that started meanwhile may have deleted it as too old.

        Without it, a COMMIT that breaks would count as not done while it still runs.
        """
        marker = CommitMarker(self.writer_id, self._batch_number - 1)
        try:
            await self._engine.transact(partial(writer_markers.write, self._queries, marker))
        except CommitFailed as failure:
            raise failure.__cause__ or failure from None
        self._marker_time = time.monotonic()

    def _run_in_transaction(
        self, batch: _Batch, marker: CommitMarker, room: Room, connection: Connection
    ) -> BatchResult:
        batch.begin_time = batch.begin_time or time.monotonic()
        # Drop commands whose caller left after a failed attempt. That caller may have sent a newer change since.
        batch.commands = [queued for queued in batch.get_commands() if not queued.answer.done()]
        commands = [queued.command for queued in batch.commands]
        return run_batch(self._queries, connection, commands, self._new_id, marker, room)

    async def _resolve(self, marker: CommitMarker) -> bool:
        """Find out whether a batch whose COMMIT failed was committed, and count the outcome. Raises OutcomeUnknown."""
        try:
            was_committed = await self._was_committed(marker)
        except OutcomeUnknown:
            _AMBIGUOUS["unknown"].inc()
            raise
        _AMBIGUOUS["committed" if was_committed else "not_committed"].inc()
        return was_committed

    async def _was_committed(self, marker: CommitMarker) -> bool:
        """Find out whether a batch whose COMMIT failed was committed. Its transaction wrote `marker`.

        Reading the marker's row waits for the old transaction, if that is still running. Raises OutcomeUnknown if the
        database stays unavailable for RESOLVE_SECONDS.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + RESOLVE_SECONDS
        try:
            found = await _retry_while_unavailable(partial(self._read_batch_number, marker), lambda: loop.time() >= end)
        except Exception as error:
            raise OutcomeUnknown from error
        return found == marker.batch_number

    async def _read_batch_number(self, marker: CommitMarker) -> int | None:
        try:
            return await self._engine.transact(partial(writer_markers.find_batch_number, self._queries, marker))
        except CommitFailed as failure:
            if failure.result != marker.batch_number:
                raise (failure.__cause__ or failure) from None
            # This transaction only read the marker, so its own COMMIT does not matter.
            return marker.batch_number


async def _retry_while_unavailable(attempt: Callable[[], Awaitable[T]], is_too_late: Callable[[], bool]) -> T:
    """Return the result of the first attempt that does not find the database unavailable for a moment.

    Raises the error of the last attempt. The pauses are short at first: a deadlock is over at once, but a restart of
    the database takes longer.
    """
    try:
        return await attempt()
    except Exception as error:
        if not _is_transient(error) or is_too_late():
            raise
    # Not for the first attempt: this takes 60 µs, and hardly any batch needs it.
    retrying = AsyncRetrying(
        retry=retry_if_exception(_is_transient),
        stop=lambda _: is_too_late(),
        wait=wait_random_exponential(0.01, max=1),
        before=lambda _: DATABASE_RETRIES.inc(),
        reraise=True,
    )
    return await retrying(attempt)


def _is_transient(error: BaseException) -> bool:
    return type(find_refusal(error)) is DatabaseUnavailable


def _trace(tracer: Tracer, batch: _Batch) -> None:
    """Make the spans of the traced commands of a batch that is committed."""
    now, commands = time.monotonic(), batch.get_commands()
    for queued in commands:
        if cause := getattr(queued.command, "trace_context", None):
            waited = (batch.begin_time or now) - queued.queue_time
            seconds = now - queued.queue_time
            tracer.note_write(cause, seconds=seconds, wait_seconds=max(0.0, waited), batch_size=len(commands))


def _measure(batch: _Batch, result: BatchResult) -> None:
    """Measure a batch that is durable."""
    commands, begin = batch.get_commands(), batch.begin_time
    if commands and begin is not None:
        BATCH_COMMANDS.observe(sum(queued.size for queued in commands))
        BATCH_WAIT.observe(max(0.0, begin - min(queued.queue_time for queued in commands)))
        BATCH_DURATION.observe(time.monotonic() - begin)
    for state in result.ended_checkouts:
        _ENDED_CHECKOUTS[state].inc()


def _answer_all(commands: Sequence[QueuedCommand], results: Sequence[object]) -> None:
    """Answer each command. Skip those whose caller left: setting a done future raises, and the rest would hang."""
    for queued, result in zip(commands, results, strict=True):
        if queued.answer.done():
            continue
        if isinstance(result, BaseException):
            queued.answer.set_exception(result)
        else:
            queued.answer.set_result(result)
