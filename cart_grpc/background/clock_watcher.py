"""The watcher of the database's clock: notices when it is set, and has the stored times moved."""

import asyncio
from collections.abc import Sequence
from typing import Final

from cart_grpc.background.loop import Loop
from cart_grpc.carts.refusals import DatabaseUnavailable, Unavailable
from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.metrics import CLOCK_STEPS
from cart_grpc.store.clock_steps import UNKNOWN_US, ClockReading, find_set_back, find_set_forward
from cart_grpc.store.database_clock import DatabaseClock
from cart_grpc.store.shards import shard_index
from cart_grpc.units import to_seconds, to_us

log = Log(__name__)
# Callers see a hold end two seconds early (HOLD_MARGIN_US). So a step must be noticed and applied within two seconds.
CHECK_INTERVAL_US: Final = to_us(0.5)
# The other nodes do not wait longer for one that hangs.
READ_SECONDS: Final = 2.0
_BACK_STEPS: Final = CLOCK_STEPS.labels("back")
_FORWARD_STEPS: Final = CLOCK_STEPS.labels("forward")


class ClockWatcher:
    """Reads the database's clock twice a second, that of each node. Any number of watchers may share a database."""

    def __init__(self, clock: DatabaseClock) -> None:
        self._clock = clock
        # For each shard: one that moves to another node takes that node's clock, which is a step for this shard.
        self._last: list[ClockReading | None] = [None] * clock.shard_count
        self._is_moving = [False] * clock.shard_count
        self._lock = asyncio.Lock()
        self._loop = Loop("clock watcher", self.run_once, self._pause)

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._loop.run()

    async def run_once(self, slice_: int | None = None) -> None:
        """Compare the clock of each node with this process's, the first time with the last commit. Apply a step.

        With `slice_`, only the clock that this slice has. Raises Unavailable if a node does not answer, once all the
        others have been looked at.
        """
        if slice_ is not None:
            await self._check([shard_index(slice_, self._clock.shard_count)])
            return
        failures: list[Unavailable] = []
        for shards in await self._clock.find_nodes():
            try:
                await self._check(shards)
            except Unavailable as failure:
                failures.append(failure)
        if failures:
            raise failures[0]

    async def _check(self, shards: Sequence[int]) -> None:
        """Look at the clock of a node, for its `shards`."""
        async with self._lock:
            reading = await self._read(shards[0])
            forward = [by_us for shard in shards if (by_us := await self._find_forward(shard, reading))]
            if forward:
                _FORWARD_STEPS.inc()
                seconds = to_seconds(max(forward))
                text = "the database's clock was set forward by %.1f s%s, or this machine slept"
                log(events.CLOCK_SET_FORWARD, text, seconds, self._name(shards), seconds=seconds)
            since = await self._find_last_commit(shards)
            back = [by_us for shard in shards if (by_us := await self._find_back(shard, reading, since))]
            if back:
                _BACK_STEPS.inc()
                by_us = max(back)
                by = "while no process ran" if by_us >= UNKNOWN_US else f"by {to_seconds(by_us):.1f} s"
                text = "the database's clock was set back %s%s: all waits and holds are adjusted"
                log(events.CLOCK_SET_BACK, text, by, self._name(shards))
            for shard in shards:
                while self._is_moving[shard]:
                    self._is_moving[shard] = (await self._clock.move(shard)).is_moving

    async def _read(self, shard: int) -> ClockReading:
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await self._clock.read(shard)
        except TimeoutError as error:
            raise DatabaseUnavailable from error

    async def _find_forward(self, shard: int, reading: ClockReading) -> int | None:
        """Apply a step forward of a shard's clock since the last look. Return by how much, None if there was none."""
        last = self._last[shard]
        by_us = find_set_forward(last, reading) if last else None
        if by_us:
            await self._clock.extend_attempts(shard, by_us)
        return by_us

    async def _find_last_commit(self, shards: Sequence[int]) -> int:
        """Return the time of the last commit before the first look, 0 if each shard must look for its own.

        If all shards are on one node, a commit in any of them shows a step of all: another may have had none for hours.
        If not, the commit of a shard may be by the clock of the node that it has left.
        """
        is_one_node = 1 < len(shards) == self._clock.shard_count
        return await self._clock.last_commit_time() if is_one_node and None in self._last else 0

    async def _find_back(self, shard: int, reading: ClockReading, since: int) -> int | None:
        """Begin to apply a step back of a shard's clock since the last look, or, the first time, the last commit.

        Notes the reading. Returns by how much if this process was the first to see the step.
        """
        last, by_us = self._last[shard], None
        if last is None or find_set_back(last, reading):
            noticed = await self._clock.notice(shard, last, since)
            reading, self._is_moving[shard] = noticed.reading, noticed.row.is_moving
            by_us = noticed.row.set_back_us if noticed.is_first else None
        self._last[shard] = reading
        return by_us

    def _name(self, shards: Sequence[int]) -> str:
        """Name the node of `shards` for the log, by its shards. Empty if all shards are on one node."""
        if len(shards) == self._clock.shard_count:
            return ""
        return f" on the node of shard{'s' if len(shards) > 1 else ''} {', '.join(map(str, shards))}"

    async def _pause(self, _: None) -> None:
        await asyncio.sleep(to_seconds(CHECK_INTERVAL_US))
