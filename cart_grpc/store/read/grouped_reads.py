"""Grouped reads: while one statement runs, reads queue, and the next statement answers all of them.

A statement costs more than an entire empty call, but one more cart in it costs only a fraction of that. So while
several calls are in flight, the next batch waits for all of them: see `gathering`. A call that comes alone is read at
once.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextvars import Context

from sqlalchemy import Connection

from cart_grpc.carts.refusals import DatabaseDamaged, DatabaseUnavailable, Overloaded
from cart_grpc.names import CartKey
from cart_grpc.store.dialects import Dialect, built_once
from cart_grpc.store.engine import Engine
from cart_grpc.store.failure_log import FailureLog
from cart_grpc.store.gathering import Gathering
from cart_grpc.store.prepared import Prepared
from cart_grpc.store.read.cache_validator import CacheValidator
from cart_grpc.store.read.cart_json import Found, bind_carts, parse_carts, select_carts

MAX_BATCH = 64
# No caller's cart has this key.
_NO_CART = CartKey(0, "-", "-")

_Wanted = tuple[CartKey, CacheValidator | None]
_QueuedRead = tuple[_Wanted, "asyncio.Future[Found]"]


@built_once
def _statement(dialect: Dialect) -> Prepared:
    return Prepared(select_carts(dialect))


class GroupedReads:
    """Reads up to MAX_BATCH carts in one statement, and one statement after the other, so answers come in order.

    `queue_size` bounds the reads that wait for a statement. `failures` is the log of failures.
    """

    def __init__(self, engine: Engine, queue_size: int, failures: FailureLog) -> None:
        self._engine = engine
        self._statement = _statement(engine.dialect)
        self._queue_size = queue_size
        self._queue: deque[_QueuedRead] = deque()
        self._task: asyncio.Task[None] | None = None
        self._gathering = Gathering(self._queue, MAX_BATCH)
        self.failures = failures

    async def find(self, key: CartKey, validator: CacheValidator | None = None) -> Found:
        """Return the cart under `key`, NOT_MODIFIED if `validator` is still valid, or None if no cart was ever made.

        Raises Overloaded if the queue is full, DatabaseUnavailable if the database does not answer.
        """
        if len(self._queue) >= self._queue_size:
            raise Overloaded
        answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._queue.append(((key, validator), answer))
        self._start()
        return await answer

    async def ping(self) -> None:
        """Read no cart in the next statement, however long the queue is. Raises DatabaseUnavailable."""
        answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._queue.appendleft(((_NO_CART, None), answer))
        self._start()
        await answer

    async def close(self) -> None:
        """Wait until every queued read is answered."""
        if self._task:
            await self._task

    def _start(self) -> None:
        # In a task of its own: a cancelled caller must not cancel a statement that others wait for. In a context of its
        # own, because it answers the reads of many calls.
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="grouped-reads", context=Context())

    async def _run(self) -> None:
        try:
            while self._queue:
                await self._gathering.wait()
                batch = self._take()
                if batch:
                    await self._read(batch)
                self._gathering.note_batch(len(batch))
        finally:
            self._task = None

    def _take(self) -> list[_QueuedRead]:
        """Take the next batch from the queue; drop the reads whose caller has left."""
        batch: list[_QueuedRead] = []
        while self._queue and len(batch) < MAX_BATCH:
            queued = self._queue.popleft()
            if not queued[1].done():
                batch.append(queued)
        return batch

    async def _read(self, batch: Sequence[_QueuedRead]) -> None:
        """Read a batch and answer it. A batch that fails is split until only the cart that causes the failure fails."""
        distinct = list(dict.fromkeys(wanted for wanted, _ in batch))
        try:
            with self.failures.translated():
                found = await self._fetch(distinct)
        except Exception as error:  # noqa: BLE001 - each caller gets the error of its own cart
            is_database_down = isinstance(error, DatabaseUnavailable) and not isinstance(error, DatabaseDamaged)
            if len(batch) > 1 and not is_database_down:
                middle = len(batch) // 2
                await self._read(batch[:middle])
                await self._read(batch[middle:])
                return
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        for wanted, answer in batch:
            if not answer.done():
                answer.set_result(found[wanted])

    async def _fetch(self, wanted: Sequence[_Wanted]) -> dict[_Wanted, Found]:
        parameters = bind_carts(self._engine.dialect, wanted)

        def read(connection: Connection) -> list[Found]:
            (row,) = self._statement.fetch(connection, parameters)
            return parse_carts(row)

        return dict(zip(wanted, await self._engine.read(read), strict=True))
