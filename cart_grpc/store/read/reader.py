"""Reads that are not grouped: lists of carts, and the reads of operators and of background loops."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, Select, literal_column, select

from cart_grpc.carts.refusals import DatabaseUnavailable
from cart_grpc.logs import events
from cart_grpc.store.engine import Engine
from cart_grpc.store.failure_log import FailureLog
from cart_grpc.store.pinged_shard import PingedShard
from cart_grpc.store.schema import pauses


class Reader:
    """Runs each statement on a connection of its own, and waits while all of them are in use.

    `failures` is the log of failures.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # How many reads run in each shard, by its schema.
        self._running = Counter[str | None]()
        self._pinged = PingedShard(len(engine.shards))
        # How often `fetch_some` has run each statement.
        self._turns = Counter[Select[Any]]()
        # A table with at most one row.
        self._ping: Select[Any] = select(literal_column("1")).select_from(pauses)
        self.failures = FailureLog(
            events.READS_FAILING, events.READS_RECOVERED, "reads of lists fail", "reads of lists work again"
        )

    async def fetch(self, statement: Select[Any], parameters: Mapping[str, Any], slice_: int = 0) -> Sequence[Row[Any]]:
        """Return all rows of a read of the shard that has `slice_`. Raises DatabaseUnavailable."""
        return await self._fetch(self._engine.shard_of(slice_), statement, parameters)

    async def fetch_all(self, statement: Select[Any], parameters: Mapping[str, Any]) -> Sequence[Row[Any]]:
        """Return the rows of a read of each shard. Raises DatabaseUnavailable."""
        # One after the other: all at once would take every connection from the callers' lists.
        return [row for shard in self._engine.shards for row in await self._fetch(shard, statement, parameters)]

    async def fetch_some(self, statement: Select[Any], limit: int) -> Sequence[Row[Any]]:
        """Return up to `limit` rows of a read that has the parameter `most`.

        If there are more, those of another shard come first each time. Raises DatabaseUnavailable if there are none and
        a shard does not answer.
        """
        shards = self._engine.shards
        rows: list[Row[Any]] = []
        failure: DatabaseUnavailable | None = None
        # Each statement has turns of its own. With one count for the four of the sweeper, each would always begin with
        # the same shard.
        first = self._turns[statement] % len(shards)
        self._turns[statement] += 1
        for shard in (*shards[first:], *shards[:first]):
            try:
                rows += await self._fetch(shard, statement, {"most": limit - len(rows)})
            except DatabaseUnavailable as refusal:
                failure = refusal
            if len(rows) == limit:
                break
        if failure and not rows:
            raise failure
        return rows

    async def _fetch(self, shard: Engine, statement: Select[Any], parameters: Mapping[str, Any]) -> Sequence[Row[Any]]:
        self._running[shard.schema] += 1
        try:
            with self.failures.translated():
                rows: Sequence[Row[Any]] = await shard.query(
                    lambda connection: connection.execute(statement, parameters).all()
                )
        finally:
            self._running[shard.schema] -= 1
        return rows

    async def ping(self) -> None:
        """Raise DatabaseUnavailable if reads fail."""
        await self._pinged.ask(self._ping_shard)

    async def _ping_shard(self, number: int) -> None:
        shard = self._engine.shards[number]
        if not self._running[shard.schema]:
            await self._fetch(shard, self._ping, {})
        elif self.failures.is_failing:
            # The reads that run show whether reads work. A ping might wait for all of them, although nothing fails.
            raise DatabaseUnavailable
