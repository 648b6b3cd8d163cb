"""Group commit, the waiting half: commands queue here until a writer takes them as one batch.

Each shard has a queue, because a batch belongs to one shard. A command about users of two shards is a batch of its own.
`shard_queue` has one such queue. `batch_writer` is the other half: it writes a batch and answers it.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection

from cart_grpc.carts.calls import NewId
from cart_grpc.carts.refusals import DatabaseUnavailable, OutcomeUnknown, Overloaded, ShuttingDown
from cart_grpc.commands.command import Command
from cart_grpc.commands.direct import DirectCommand, Ping
from cart_grpc.commands.record import RecordAll
from cart_grpc.commands.unit_of_work import ReadSet
from cart_grpc.logs import events
from cart_grpc.metrics import QUEUED_COMMANDS
from cart_grpc.store import writer_markers
from cart_grpc.store.batch import AnyCommand
from cart_grpc.store.batch_writer import BatchWriter, QueuedCommand
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.engine import Engine
from cart_grpc.store.failure_log import FailureLog
from cart_grpc.store.failures import CommitFailed, ReadOnlyDatabase, find_cause, is_dead
from cart_grpc.store.pinged_shard import PingedShard
from cart_grpc.store.queries import WriteQueries, write_queries
from cart_grpc.store.shard_queue import ShardQueue
from cart_grpc.store.shards import shard_index
from cart_grpc.store.spanning_queries import spanning_queries
from cart_grpc.tracing import Tracer

# The last queue: its batches are about several shards, if there are several.
EVERY_SHARD: Final = -1


class WriteQueue:
    """The only way in which a process writes.

    `queue_size` bounds the callers' commands that wait. `marker_retention_us`: how long the commit marker of a process
    that is gone is kept. `failed`: the last batch was not written. `failures` is the log of failures. With `tracer`,
    the writes of traced calls have spans.
    """

    def __init__(
        self,
        engine: Engine,
        notifier: ChangeNotifier,
        new_id: NewId,
        queue_size: int,
        marker_retention_us: int = writer_markers.DEFAULT_MARKER_RETENTION_US,
        tracer: Tracer | None = None,
    ) -> None:
        self._engine = engine
        queries = write_queries(engine.dialect, lock_users=engine.locks_users)
        # Two on a database elsewhere: one commits while the other waits for the database and takes its batch as late as
        # possible. With one writer, 2.6 of each 10.5 ms passed between the end of a commit and the start of the next
        # batch.
        count = 1 if engine.is_in_process else 2

        def writers(shard: Engine, queries: WriteQueries = queries) -> Sequence[BatchWriter]:
            return [BatchWriter(shard, queries, notifier, new_id, self._note_result, tracer) for _ in range(count)]

        self._queries = queries
        # Several shards have few calls each, so waiting for them gains nothing.
        gathers = len(engine.shards) == 1
        self._queues = [ShardQueue(writers(shard), gathers=gathers) for shard in engine.shards]
        self._registered = [(shard, queue.writers) for shard, queue in zip(engine.shards, self._queues, strict=True)]
        if len(engine.shards) > 1:
            # Its markers are in the first shard.
            first, spanning = engine.shards[0], spanning_queries(engine.dialect, len(engine.shards))
            self._queues.append(ShardQueue(writers(first, spanning), gathers=False, most=1))
            self._registered.append((first, self._queues[-1].writers))
        self._pinged = PingedShard(len(engine.shards))
        self._queue_size = queue_size
        self._marker_retention_us = marker_retention_us
        self._closing = False
        self.failed = False
        self.failures = FailureLog(events.WRITES_FAILING, events.WRITES_RECOVERED, "writes fail", "writes work again")

    async def start(self) -> None:
        """Register the writers in the database. Raises the database's errors."""
        for shard, writers in self._registered:
            ids = [writer.writer_id for writer in writers]
            await shard.transact(partial(writer_markers.register, self._queries, ids, self._marker_retention_us))

    async def close(self) -> None:
        """Refuse new commands, and wait until the queued ones are written."""
        self._closing = True
        for queue in self._queues:
            await queue.drain()

    def sample(self) -> None:
        """Set the gauges of the queues."""
        QUEUED_COMMANDS.labels("callers").set(self._count_callers())
        QUEUED_COMMANDS.labels("background").set(sum(len(queue.background) for queue in self._queues))

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
                await self._pinged.ask(lambda number: self.submit_to(number, Ping()))

    async def _ping_connection(self) -> None:
        try:
            await self._engine.transact(self._check_writable)
        except CommitFailed as failure:
            # There was nothing to commit, but the connection is broken.
            raise DatabaseUnavailable from failure

    def _check_writable(self, connection: Connection) -> None:
        if not self._engine.dialect.is_writable(connection):
            raise ReadOnlyDatabase

    def submit(self, command: Command[object]) -> "asyncio.Future[Any]":
        """Queue a caller's command. The future gets the answer once the change is durable.

        Raises Overloaded if the queues are full, ShuttingDown after `close`.
        """
        if self._count_callers() >= self._queue_size:
            raise Overloaded
        queue = self._find_queue(command)
        return self._put(queue, queue.callers, command)

    def submit_background(self, command: Command[object]) -> "asyncio.Future[Any]":
        """Queue a command of the reconciler, the sweeper or an operator. Raises ShuttingDown after `close`."""
        queue = self._find_queue(command)
        return self._put(queue, queue.background, command)

    def submit_to(self, shard: int, command: RecordAll | DirectCommand) -> "asyncio.Future[Any]":
        """Queue a command for the shard with this number, or for EVERY_SHARD. Raises ShuttingDown after `close`."""
        queue = self._queues[shard]
        return self._put(queue, queue.background, command)

    def _count_callers(self) -> int:
        return sum(len(queue.callers) for queue in self._queues)

    def _find_queue(self, command: Command[object]) -> ShardQueue:
        count = len(self._engine.shards)
        if count == 1:
            return self._queues[0]
        reads = ReadSet()
        command.add_reads(reads)
        first, *others = {shard_index(user.slice, count) for user in reads.users}
        return self._queues[-1 if others else first]

    def _put(self, queue: ShardQueue, waiting: deque[QueuedCommand], command: AnyCommand) -> "asyncio.Future[Any]":
        if self._closing:
            raise ShuttingDown
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiting.append(QueuedCommand(command, answer))
        queue.start_next_writer()
        return answer

    def _note_result(self, error: Exception | None) -> None:
        self.failed = error is not None
        if error is None:
            self.failures.note_success()
        elif isinstance(error, DatabaseUnavailable | OutcomeUnknown):
            self.failures.note_failure(error)
