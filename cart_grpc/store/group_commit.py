"""Group commit: one writer, one transaction for all that waits, one answer each once it is durable.

A commit costs the same for one command as for two hundred, so while one batch is being made durable the next one
gathers. The writer is a task of its own: a caller who gives up neither stops a commit nor disturbs the others in it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

from cart_grpc.carts.changes import NewId
from cart_grpc.carts.refusals import DatabaseUnavailable, OutcomeUnknown, Overloaded, ShuttingDown
from cart_grpc.store.batch import AnyCommand, Outcome, run_batch
from cart_grpc.store.engine import CommitFailed, Engine, find_refusal
from cart_grpc.store.hints import Hints
from cart_grpc.store.statements import Statements

log = logging.getLogger(__name__)

MAX_BATCH = 256
# How long to try to learn what became of a commit whose connection broke.
RESOLVE_SECONDS = 20.0
# Writers that have not committed for this long are of processes that are gone. A quiet one must not be forgotten: its
# row is what tells it, when a connection breaks in mid-commit, how that ended.
FORGET_WRITERS_AFTER = 90 * 24 * 3600 * 1_000_000


@dataclass(slots=True)
class _Waiting:
    command: AnyCommand
    answer: asyncio.Future[Any]


class GroupCommit:
    """The one writer of a process.

    `queue_size` bounds the callers' commands that wait; the reconciler's have room of their own, so that callers cannot
    keep it from finishing what they have started. `failed` says that the database did not take the last batch.
    """

    def __init__(self, engine: Engine, hints: Hints, new_id: NewId, queue_size: int) -> None:
        self._engine = engine
        self._statements = Statements(engine.dialect, lock_users=engine.locks_users)
        self._hints = hints
        self._new_id = new_id
        self._queue_size = queue_size
        self._callers: deque[_Waiting] = deque()
        self._work: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self.failed = False
        self._writer_id = new_id()
        self._number = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Register this writer with the database and begin."""
        await self._engine.transact(self._register)
        self._task = asyncio.create_task(self._run(), name="group-commit")

    def _register(self, connection: Connection) -> None:
        now = self._statements.read_now(connection)
        self._statements.forget_writers(connection, now - FORGET_WRITERS_AFTER)
        self._statements.mark(connection, self._writer_id, 0, now)

    async def close(self) -> None:
        """Refuse new commands, write those that wait, and end."""
        self._closing = True
        self._wake.set()
        if self._task:
            await self._task

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
        self._wake.set()
        return answer

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while batch := self._take():
                await self._commit(batch)
            if self._closing:
                return

    def _take(self) -> list[_Waiting]:
        """The next batch, the reconciler's first, without those whose caller has gone: nothing was done for them.

        Half of it is left to the callers where they wait, or a backlog would make each of them wait for all of it.
        """
        batch: list[_Waiting] = []
        for queue, most in ((self._work, MAX_BATCH // 2 if self._callers else MAX_BATCH), (self._callers, MAX_BATCH)):
            while queue and len(batch) < most:
                waiting = queue.popleft()
                if not waiting.answer.done():
                    batch.append(waiting)
        return batch

    async def _commit(self, batch: Sequence[_Waiting]) -> None:
        """Make a batch durable and answer it; one that fails for a reason of its own is split until it is found."""
        try:
            outcome = await self._transact([waiting.command for waiting in batch])
        except (DatabaseUnavailable, OutcomeUnknown) as refusal:
            self.failed = True
            log.warning("a batch of %d could not be written: %s", len(batch), refusal.reason)
            _answer(batch, [refusal] * len(batch))
        except Exception as error:  # noqa: BLE001 - whatever it is, each command gets its own answer
            if len(batch) == 1:
                _answer(batch, [error])
                return
            middle = len(batch) // 2
            await self._commit(batch[:middle])
            await self._commit(batch[middle:])
        else:
            self.failed = False
            _answer(batch, outcome.results)
            self._hints.publish(outcome.changed, due=outcome.due)

    async def _transact(self, commands: Sequence[AnyCommand]) -> Outcome:
        self._number += 1
        try:
            async for attempt in _retrying(stop_after_delay(2.0)):
                with attempt:
                    return await self._attempt(commands)
        except Exception as error:
            if refusal := find_refusal(error):
                log.warning("the database does not answer: %s", str(getattr(error, "orig", None) or error)[:200])
                raise refusal from error
            raise
        raise AssertionError("unreachable")

    async def _attempt(self, commands: Sequence[AnyCommand]) -> Outcome:
        number = self._number

        def work(connection: Connection) -> Outcome:
            return run_batch(self._statements, connection, commands, self._new_id, (self._writer_id, number))

        try:
            return await self._engine.transact(work)
        except CommitFailed as failure:
            if await self._was_committed(number):
                outcome: Outcome = failure.result
                return outcome
            # Nothing of it is there, and nothing will be: it may be tried again.
            raise failure.__cause__ or failure from None

    async def _was_committed(self, number: int) -> bool:
        """Whether the batch is there after all: the transaction itself noted its number, and the row tells.

        Reading the row waits for the old transaction where it is still going. Raises OutcomeUnknown when the database
        stays away.
        """
        found = None
        try:
            async for attempt in _retrying(stop_after_delay(RESOLVE_SECONDS)):
                with attempt:
                    try:
                        found = await self._engine.transact(partial(self._settle_mark, number))
                    except CommitFailed as failure:
                        if failure.result != number:
                            raise (failure.__cause__ or failure) from None
                        # It only read, and has read it.
                        found = number
        except Exception as error:
            raise OutcomeUnknown from error
        return found == number

    def _settle_mark(self, number: int, connection: Connection) -> int | None:
        """The number of the last batch that is there, once no other can come to be there.

        What a commit that failed has left in SQLite's log would count after a crash, unless it is written over.
        """
        found = self._statements.find_mark(connection, self._writer_id)
        if found is not None and found != number:
            self._statements.mark(connection, self._writer_id, found, self._statements.read_now(connection))
        return found


def _retrying(stop: Any) -> AsyncRetrying:
    """Quick at first: a deadlock is over at once. A database that restarts is given a moment."""
    again = retry_if_exception(lambda error: type(find_refusal(error)) is DatabaseUnavailable)
    return AsyncRetrying(retry=again, stop=stop, wait=wait_random_exponential(0.01, max=1), reraise=True)


def _answer(batch: Sequence[_Waiting], results: Sequence[object]) -> None:
    """Answer each; those whose caller has gone are passed over, or they would strand the rest of the batch."""
    for waiting, result in zip(batch, results, strict=True):
        if waiting.answer.done():
            continue
        if isinstance(result, BaseException):
            waiting.answer.set_exception(result)
        else:
            waiting.answer.set_result(result)
