"""The commands that wait for the writers of one shard, and the turns of these writers.

A commit costs the same for one command as for two hundred. So the next batch fills while the one before commits.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextvars import Context
from typing import Final

from cart_grpc.store.batch_writer import BatchWriter, QueuedCommand
from cart_grpc.store.gathering import Gathering

MAX_BATCH: Final = 256


class Handover:
    """Hands queued commands from the event loop to the writer whose turn it is, up to `most` at a time.

    Invariant: while a command is queued, a turn is pending or both writers are busy. In the second case the writer that
    finishes first begins the next turn. At most one turn is pending, and only its writer calls `take`.

    Everything runs on the event loop, except that `take` runs in the writer's thread on SQLite. No lock is needed:
    `deque.append` and `deque.popleft` are atomic, and `take` ends the pending turn before it pops the first command. A
    command that is appended later is either popped by this `take` or starts the next turn. If `take` ended the turn
    after the last pop, a command that is appended in between would wait until another one is appended.
    """

    def __init__(self, writers: Sequence[BatchWriter], most: int = MAX_BATCH) -> None:
        self.callers: deque[QueuedCommand] = deque()
        self.background: deque[QueuedCommand] = deque()
        self._most = most
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
        A batch of one is a background command. Otherwise callers that never stop would keep an operator's pause out.
        """
        self._turn_is_pending = False
        batch: list[QueuedCommand] = []
        size = 0
        background_share = max(1, self._most // 2) if self.callers else self._most
        for queue, most in ((self.background, background_share), (self.callers, self._most)):
            while queue and size < most:
                queued = queue.popleft()
                if not queued.answer.done():
                    batch.append(queued)
                    size += queued.size
        return batch

    def give_back(self, writer: BatchWriter) -> None:
        """Note that `writer` is idle again."""
        self._idle.append(writer)


class ShardQueue:
    """The queue of one shard, and its writers. `gathers`: a batch waits a moment for the calls in flight."""

    def __init__(self, writers: Sequence[BatchWriter], *, gathers: bool, most: int = MAX_BATCH) -> None:
        self.writers = writers
        self._handover = Handover(writers, most)
        self._gathering = Gathering(self.callers, MAX_BATCH) if gathers else None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def callers(self) -> deque[QueuedCommand]:
        """The commands of callers that wait."""
        return self._handover.callers

    @property
    def background(self) -> deque[QueuedCommand]:
        """The other commands that wait. They have a queue of their own, so callers cannot keep calls from finishing."""
        return self._handover.background

    def start_next_writer(self) -> None:
        """Start a writer if a command waits and no other writer is about to take it."""
        writer = self._handover.begin_turn()
        if writer:
            # A separate task: a caller that gives up neither stops the commit nor disturbs the rest of the batch.
            # It serves many calls, so it must not run in the context of the first, such as its trace.
            work = self._run_writer(writer)
            task = asyncio.create_task(work, name="batch-writer", context=Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Wait until the queued commands are written."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _run_writer(self, writer: BatchWriter) -> None:
        if self._gathering:
            await self._gathering.wait()
        size = len(self.callers)
        await writer.write_batch(self._handover.take)
        if self._gathering:
            self._gathering.note_batch(size)
        self._handover.give_back(writer)
        self.start_next_writer()
