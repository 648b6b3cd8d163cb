"""Group commit, the waiting half: commands queue here until a writer takes them as one batch.

A commit costs the same for one command as for two hundred. So the next batch fills while the one before commits.
`batch_writer` is the other half: it writes a batch and answers it.
"""

import asyncio
from collections import deque
from contextvars import Context
from functools import partial
from typing import Any

from sqlalchemy import Connection

from cart_grpc.carts.calls import NewId
from cart_grpc.carts.refusals import DatabaseUnavailable, OutcomeUnknown, Overloaded, ShuttingDown
from cart_grpc.commands.direct import Ping
from cart_grpc.logs import events
from cart_grpc.metrics import QUEUED_COMMANDS
from cart_grpc.store.batch import AnyCommand
from cart_grpc.store.batch_writer import DEFAULT_MARKER_RETENTION_US, BatchWriter, QueuedCommand, register_writers
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.engine import Engine
from cart_grpc.store.failure_log import FailureLog
from cart_grpc.store.failures import CommitFailed, ReadOnlyDatabase, find_cause, is_dead
from cart_grpc.store.gathering import Gathering
from cart_grpc.store.queries import write_queries
from cart_grpc.tracing import Tracer

MAX_BATCH = 256


class Handover:
    """Hands queued commands from the event loop to the writer whose turn it is.

    Invariant: while a command is queued, a turn is pending or both writers are busy. In the second case the writer that
    finishes first begins the next turn. At most one turn is pending, and only its writer calls `take`.

    Everything runs on the event loop, except that `take` runs in the writer's thread on SQLite. No lock is needed:
    `deque.append` and `deque.popleft` are atomic, and `take` ends the pending turn before it pops the first command. A
    command that is appended later is either popped by this `take` or starts the next turn. If `take` ended the turn
    after the last pop, a command that is appended in between would wait until another one is appended.
    """

    def __init__(self, writers: list[BatchWriter]) -> None:
        self.callers: deque[QueuedCommand] = deque()
        self.background: deque[QueuedCommand] = deque()
        self._idle = list(writers)
        self._turn_is_pending = False

    def begin_turn(self) -> BatchWriter | None:
        """Begin a turn if a command is queued and no turn is pending. Return its writer, which must call `take`."""
        if self._turn_is_pending or not self._idle or not (self.callers or self.background):
            return None
        self._turn_is_pending = True
        return self._idle.pop(0)

    def take(self) -> list[QueuedCommand]:
        """End the pending turn and return its batch: background commands first, without those whose caller left.

        If callers wait, half of the batch is theirs. Otherwise they would wait for a whole backlog of the reconciler.
        """
        self._turn_is_pending = False
        batch: list[QueuedCommand] = []
        size = 0
        background_share = MAX_BATCH // 2 if self.callers else MAX_BATCH
        for queue, most in ((self.background, background_share), (self.callers, MAX_BATCH)):
            while queue and size < most:
                queued = queue.popleft()
                if not queued.answer.done():
                    batch.append(queued)
                    size += queued.size
        return batch

    def give_back(self, writer: BatchWriter) -> None:
        """Note that `writer` is idle again."""
        self._idle.append(writer)


class WriteQueue:
    """The only way in which a process writes.

    `queue_size` bounds the callers' commands that wait. The reconciler's commands have a queue of their own, so callers
    cannot keep the reconciler from finishing its calls. `marker_retention_us`: how long the commit marker of a process
    that is gone is kept. `failed`: the last batch was not written. `failures` is the log of failures. With `tracer`,
    the writes of traced calls have spans.
    """

    def __init__(
        self,
        engine: Engine,
        notifier: ChangeNotifier,
        new_id: NewId,
        queue_size: int,
        marker_retention_us: int = DEFAULT_MARKER_RETENTION_US,
        tracer: Tracer | None = None,
    ) -> None:
        self._engine = engine
        self._queries = write_queries(engine.dialect, lock_users=engine.locks_users)
        # Two on a database elsewhere: one commits while the other waits for the database and takes its batch as late as
        # possible. With one writer, 2.6 of each 10.5 ms passed between the end of a commit and the start of the next
        # batch.
        count = 1 if engine.is_in_process else 2
        self._writers = [
            BatchWriter(engine, self._queries, notifier, new_id, self._note_result, tracer) for _ in range(count)
        ]
        self._handover = Handover(self._writers)
        self._gathering = Gathering(self._handover.callers, MAX_BATCH) if engine.is_in_process else None
        self._queue_size = queue_size
        self._marker_retention_us = marker_retention_us
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self.failed = False
        self.failures = FailureLog(events.WRITES_FAILING, events.WRITES_RECOVERED, "writes fail", "writes work again")

    async def start(self) -> None:
        """Register the writers in the database. Raises the database's errors."""
        await self._engine.transact(partial(register_writers, self._queries, self._writers, self._marker_retention_us))

    async def close(self) -> None:
        """Refuse new commands, and wait until the queued ones are written."""
        self._closing = True
        while self._tasks:
            await asyncio.wait(self._tasks)

    def sample(self) -> None:
        """Set the gauges of the queues."""
        QUEUED_COMMANDS.labels("callers").set(len(self._handover.callers))
        QUEUED_COMMANDS.labels("background").set(len(self._handover.background))

    async def ping(self) -> None:
        """Raise DatabaseUnavailable if the database does not accept writes."""
        with self.failures.translated():
            try:
                await self._ping_connection()
            except Exception as error:
                if not is_dead(find_cause(error)):
                    raise
                # The database ended an idle session. That says nothing about the next one.
                await self._ping_connection()
            if self.failed:
                # Only a write shows whether a full disk has room again.
                await self.submit_background(Ping())

    async def _ping_connection(self) -> None:
        try:
            await self._engine.transact(self._check_writable)
        except CommitFailed as failure:
            # There was nothing to commit, but the connection is broken.
            raise DatabaseUnavailable from failure

    def _check_writable(self, connection: Connection) -> None:
        if not self._engine.dialect.is_writable(connection):
            raise ReadOnlyDatabase

    def submit(self, command: AnyCommand) -> "asyncio.Future[Any]":
        """Queue a caller's command. The future gets the answer once the change is durable.

        Raises Overloaded if the queue is full, ShuttingDown after `close`.
        """
        if len(self._handover.callers) >= self._queue_size:
            raise Overloaded
        return self._put(self._handover.callers, command)

    def submit_background(self, command: AnyCommand) -> "asyncio.Future[Any]":
        """Queue a command of the reconciler, the sweeper or an operator. Raises ShuttingDown after `close`."""
        return self._put(self._handover.background, command)

    def _put(self, queue: deque[QueuedCommand], command: AnyCommand) -> "asyncio.Future[Any]":
        if self._closing:
            raise ShuttingDown
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        queue.append(QueuedCommand(command, answer))
        self._start_next_writer()
        return answer

    def _start_next_writer(self) -> None:
        writer = self._handover.begin_turn()
        if writer:
            # A separate task: a caller that gives up neither stops the commit nor disturbs the rest of the batch.
            # It serves many calls, so it must not run in the context of the first, such as its trace.
            work = self._run_writer(writer)
            task = asyncio.create_task(work, name="batch-writer", context=Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run_writer(self, writer: BatchWriter) -> None:
        if self._gathering:
            await self._gathering.wait()
        size = len(self._handover.callers)
        await writer.write_batch(self._handover.take)
        if self._gathering:
            self._gathering.note_batch(size)
        self._handover.give_back(writer)
        self._start_next_writer()

    def _note_result(self, error: Exception | None) -> None:
        self.failed = error is not None
        if error is None:
            self.failures.note_success()
        elif isinstance(error, DatabaseUnavailable | OutcomeUnknown):
            self.failures.note_failure(error)
