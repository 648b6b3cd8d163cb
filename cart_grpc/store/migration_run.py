"""Runs all migrations that a database lacks while other processes use it: short waits for locks, many tries.

Each migration of a shard has a transaction of its own. If the run ends early, the next one goes on at the same place.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy import Connection

from cart_grpc.store import migrate, shard_setup
from cart_grpc.store.engine import Engine
from cart_grpc.store.failures import Unsuitable, get_sqlstate, show_cause
from cart_grpc.store.postgresql_session import find_oldest_transaction
from cart_grpc.store.revisions import VERSIONS

T = TypeVar("T")
Report = Callable[[str], None]
# Lock timeout, deadlock.
_LOCKED: Final = {"55P03", "40P01"}
# How long to try to get the locks of one migration. A backup with pg_dump can hold them for hours.
PATIENCE_SECONDS: Final = 600.0
# Between two tries, the calls that have waited are served.
PAUSE_SECONDS: Final = 2.0
TURN_PAUSE_SECONDS: Final = 0.2
# One shard can go on while another one waits for a lock or builds an index.
_SHARDS_AT_ONCE: Final = 2


def _say_nothing(_: str) -> None:
    """Report nothing."""


async def run(engine: Engine, report: Report = _say_nothing, versions: Path = VERSIONS) -> tuple[str | None, str]:
    """Migrate to the newest revision in the folder `versions`. Return the revisions before and after.

    `report` gets one line for each migration and for each wait. Raises Unsuitable, and the database's errors.
    """
    return await MigrationRun(engine, report, versions).run_all()


class MigrationRun:
    """One run over all shards: _SHARDS_AT_ONCE at a time, each one step after the other.

    If a shard fails, the others end the step that they run, and no more.
    """

    def __init__(self, engine: Engine, report: Report, versions: Path) -> None:
        self._engine = engine
        self._report = report
        self._versions = versions
        self._is_turn_reported = False
        self._failure: Exception | None = None

    async def run_all(self) -> tuple[str | None, str]:
        """Migrate all shards. Return the lowest revision before, and the revision after."""
        await self._try("", partial(shard_setup.create, len(self._engine.shards)))
        waiting = iter(self._engine.shards)
        if len(self._engine.shards) > 1:
            self._engine.write_at_once(_SHARDS_AT_ONCE)
        found = await asyncio.gather(*(self._run_shards(waiting) for _ in range(_SHARDS_AT_ONCE)))
        if self._failure:
            raise self._failure
        # A run that was interrupted has migrated some shards only.
        return min((each for part in found for each in part), key=lambda revisions: revisions[0] or "")

    async def run_next(self, shard: Engine) -> migrate.Step:
        """Run the next migration of a shard, with as many tries as its locks need."""
        work = partial(shard_setup.in_schema, shard.schema, partial(migrate.run_next, versions=self._versions))
        return await self._try(_head(shard), work)

    async def _run_shards(self, waiting: Iterator[Engine]) -> list[tuple[str | None, str]]:
        found = []
        for shard in waiting:
            try:
                found.append(await self._run_shard(shard))
            except Exception as error:  # noqa: BLE001 - `run_all` raises the first
                self._note_failure(shard, error)
                break
        return found

    async def _run_shard(self, shard: Engine) -> tuple[str | None, str]:
        first: migrate.Step | None = None
        while True:
            begin = time.monotonic()
            step = await self.run_next(shard)
            first = first or step
            if step.after == step.before:
                return first.before, step.after
            seconds = time.monotonic() - begin
            self._report(f"{_head(shard)}schema {step.after}: {step.title} ({seconds:.1f} s)")

    def _note_failure(self, shard: Engine, error: Exception) -> None:
        if self._failure:
            return
        self._failure = error
        if shard.schema:
            self._failure = Unsuitable(f"{_head(shard)}{show_cause(error)}")
            self._failure.__cause__ = error
            self._report(f"{self._failure}; waiting for the migrations that run in other shards")

    async def _try(self, head: str, work: Callable[[Connection], T]) -> T:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            if self._failure:
                raise self._failure
            try:
                return await self._engine.transact(work)
            except migrate.NotOurTurn:
                self._report_turn()
                await _pause(TURN_PAUSE_SECONDS)
                continue
            except Exception as error:
                if get_sqlstate(error) not in _LOCKED:
                    raise
                oldest = await self._engine.transact(_describe_oldest)
                if time.monotonic() > deadline:
                    raise Unsuitable(
                        f"its tables stay locked; {oldest}; run `cart-grpc migrate` again later"
                    ) from error
            self._report(f"{head}a table is locked; {oldest}; callers go on, the next try is in {PAUSE_SECONDS:g} s")
            await _pause(PAUSE_SECONDS)

    def _report_turn(self) -> None:
        if not self._is_turn_reported:
            self._report("another process migrates the database; waiting for its end")
        self._is_turn_reported = True


def _head(shard: Engine) -> str:
    return f"{shard.schema}: " if shard.schema else ""


def _describe_oldest(connection: Connection) -> str:
    found = find_oldest_transaction(connection)
    return f"the oldest transaction is {found}" if found else "its transaction is over"


async def _pause(seconds: float) -> None:
    # Jitter: two processes that wait for the same should not come together.
    await asyncio.sleep(seconds * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
