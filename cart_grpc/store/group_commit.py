"""Group commit: one transaction at a time, with all that waits in it, and one answer each once it is durable.

A commit costs the same for one command as for two hundred, so while one batch is being made durable the next one
gathers. Batches are tasks of their own: a caller who gives up neither stops a commit nor disturbs the others in it.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_delay, wait_random_exponential

from cart_grpc.carts.calls import NewId
from cart_grpc.carts.refusals import DatabaseUnavailable, OutcomeUnknown, Overloaded, ShuttingDown
from cart_grpc.store.batch import AnyCommand, Mark, Outcome, run_batch
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.engine import Engine
from cart_grpc.store.failures import CommitFailed, find_refusal
from cart_grpc.store.statements import Statements

log = logging.getLogger(__name__)

MAX_BATCH = 256
# How long a batch is tried again for what may pass, since its turn came.
RETRY_SECONDS = 2.0
# How long to try to learn what became of a commit whose connection broke.
RESOLVE_SECONDS = 20.0
# Writers that have not committed for this long are of processes that are gone. A quiet one must not be forgotten: its
# row is what tells it, when a connection breaks in mid-commit, how that ended.
FORGET_WRITERS_AFTER = 90 * 24 * 3600 * 1_000_000


@dataclass(slots=True)
class _Waiting:
    command: AnyCommand
    answer: asyncio.Future[Any]


@dataclass(slots=True)
class _Batch:
    """What one transaction writes; None while it is not taken from the queue yet, which happens as late as can be.

    `begin_time` is when its first transaction began, after that of the other writer.
    """

    waiting: list[_Waiting] | None = None
    begin_time: float | None = None


@dataclass(slots=True)
class _Writer:
    """Writes one batch after the other. In the database its name is its own: what became of a batch whose commit broke
    is found out while another writer goes on.
    """

    writer_id: str
    number: int = 0


class GroupCommit:
    """The one place through which a process writes.

    `queue_size` bounds the callers' commands that wait; the reconciler's have room of their own, so that callers cannot
    keep it from finishing what they have started. `failed` says that the database did not take the last batch.
    """

    def __init__(self, engine: Engine, notifier: ChangeNotifier, new_id: NewId, queue_size: int) -> None:
        self._engine = engine
        self._statements = Statements(engine.dialect, lock_users=engine.locks_users)
        self._notifier = notifier
        self._new_id = new_id
        self._queue_size = queue_size
        self._callers: deque[_Waiting] = deque()
        self._work: deque[_Waiting] = deque()
        # Two: while one is at work, the other is next, and takes what waits then. To begin only once the loop has heard
        # of the end of the batch before took 2.6 of each 10.5 ms.
        self._writers = [_Writer(new_id()), _Writer(new_id())]
        self._resting = list(self._writers)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_next = False
        self._closing = False
        self.failed = False

    async def start(self) -> None:
        """Register the writers with the database."""
        await self._engine.transact(self._register)

    def _register(self, connection: Connection) -> None:
        now = self._statements.read_now(connection)
        self._statements.forget_writers(connection, now - FORGET_WRITERS_AFTER)
        for writer in self._writers:
            self._statements.mark(connection, writer.writer_id, 0, now)

    async def close(self) -> None:
        """Refuse new commands, write those that wait, and end."""
        self._closing = True
        while self._tasks:
            await asyncio.wait(self._tasks)

    def write(self, command: AnyCommand) -> "asyncio.Future[Any]":
        """A caller's command: its answer, once durable. Raises Overloaded or ShuttingDown."""
        if len(self._callers) >= self._queue_size:
            raise Overloaded
        return self._put(self._callers, command)

    def work(self, command: AnyCommand) -> "asyncio.Future[Any]":
        """A command of the reconciler: its answer, once durable."""
        return self._put(self._work, command)

    def _put(self, queue: deque[_Waiting], command: AnyCommand) -> "asyncio.Future[Any]":
        if self._closing:
            raise ShuttingDown
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        queue.append(_Waiting(command, answer))
        self._send_next()
        return answer

    def _send_next(self) -> None:
        """Let a writer be next, if there is something to write and none is."""
        if self._resting and not self._is_next and (self._callers or self._work):
            self._is_next = True
            task = asyncio.create_task(self._write(self._resting.pop(0)), name="group-commit")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _write(self, writer: _Writer) -> None:
        await self._commit(writer, _Batch())
        self._resting.append(writer)
        self._send_next()

    def _take(self) -> list[_Waiting]:
        """The next batch, the reconciler's first, without those whose caller has gone: nothing was done for them.

        Half of it is left to the callers where they wait, or a backlog would make each of them wait for all of it.
        Called by whoever is next alone, on SQLite in its writer's thread.
        """
        # First: what is put into the queue from here on sends the next one.
        self._is_next = False
        batch: list[_Waiting] = []
        for queue, most in ((self._work, MAX_BATCH // 2 if self._callers else MAX_BATCH), (self._callers, MAX_BATCH)):
            while queue and len(batch) < most:
                waiting = queue.popleft()
                if not waiting.answer.done():
                    batch.append(waiting)
        return batch

    async def _commit(self, writer: _Writer, batch: _Batch) -> None:
        """Make a batch durable and answer it; one that fails for a reason of its own is split until it is found."""
        try:
            outcome = await self._transact(writer, batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, each command gets its own answer
            if batch.waiting is None:
                batch.waiting = self._take()
            size = len(batch.waiting)
            if isinstance(error, DatabaseUnavailable | OutcomeUnknown):
                self.failed = True
                log.warning("a batch of %d could not be written: %s", size, error.reason)
            elif size > 1:
                await self._commit(writer, _Batch(batch.waiting[: size // 2]))
                await self._commit(writer, _Batch(batch.waiting[size // 2 :]))
                return
            _answer(batch, [error] * size)
        else:
            self.failed = False
            _answer(batch, outcome.results)
            self._notifier.publish(outcome.changed, due=outcome.due)

    async def _transact(self, writer: _Writer, batch: _Batch) -> Outcome:
        writer.number += 1
        put_time = time.monotonic()

        def is_over(_: RetryCallState) -> bool:
            return time.monotonic() - (batch.begin_time or put_time) >= RETRY_SECONDS

        try:
            async for attempt in _retrying(is_over):
                with attempt:
                    return await self._attempt(writer, batch)
        except Exception as error:
            if refusal := find_refusal(error):
                log.warning("the database does not answer: %s", str(getattr(error, "orig", None) or error)[:200])
                raise refusal from error
            raise
        raise AssertionError("unreachable")

    async def _attempt(self, writer: _Writer, batch: _Batch) -> Outcome:
        mark = (writer.writer_id, writer.number)

        def work(connection: Connection) -> Outcome:
            batch.begin_time = batch.begin_time or time.monotonic()
            # Whoever has gone since an attempt that came to nothing may have made another change: this one is too late.
            waiting = self._take() if batch.waiting is None else batch.waiting
            batch.waiting = [each for each in waiting if not each.answer.done()]
            commands = [each.command for each in batch.waiting]
            return run_batch(self._statements, connection, commands, self._new_id, mark)

        try:
            return await self._engine.transact(work)
        except CommitFailed as failure:
            if await self._was_committed(mark):
                outcome: Outcome = failure.result
                return outcome
            # Nothing of it is there, and nothing will be: it may be tried again.
            raise failure.__cause__ or failure from None

    async def _was_committed(self, mark: Mark) -> bool:
        """Whether the batch is there after all: the transaction itself noted its number, and the row tells.

        Reading the row waits for the old transaction where it is still going. Raises OutcomeUnknown when the database
        stays away.
        """
        _, number = mark
        found = None
        try:
            async for attempt in _retrying(stop_after_delay(RESOLVE_SECONDS)):
                with attempt:
                    try:
                        found = await self._engine.transact(partial(self._settle_mark, mark))
                    except CommitFailed as failure:
                        if failure.result != number:
                            raise (failure.__cause__ or failure) from None
                        # It only read, and has read it.
                        found = number
        except Exception as error:
            raise OutcomeUnknown from error
        return found == number

    def _settle_mark(self, mark: Mark, connection: Connection) -> int | None:
        """The number of the last batch that is there, once no other can come to be there.

        What a commit that failed has left in SQLite's log would count after a crash, unless it is written over.
        """
        writer_id, number = mark
        found = self._statements.find_mark(connection, writer_id)
        if found is not None and found != number:
            self._statements.mark(connection, writer_id, found, self._statements.read_now(connection))
        return found


def _retrying(stop: Callable[[RetryCallState], bool]) -> AsyncRetrying:
    """Quick at first: a deadlock is over at once. A database that restarts is given a moment."""
    again = retry_if_exception(lambda error: type(find_refusal(error)) is DatabaseUnavailable)
    return AsyncRetrying(retry=again, stop=stop, wait=wait_random_exponential(0.01, max=1), reraise=True)


def _answer(batch: _Batch, results: Sequence[object]) -> None:
    """Answer each; those whose caller has gone are passed over, or they would strand the rest of the batch."""
    for waiting, result in zip(batch.waiting or (), results, strict=True):
        if waiting.answer.done():
            continue
        if isinstance(result, BaseException):
            waiting.answer.set_exception(result)
        else:
            waiting.answer.set_result(result)
