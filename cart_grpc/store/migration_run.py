"""Runs all migrations that a database lacks while other processes use it: short waits for locks, many tries.

Each migration has a transaction of its own. If the run ends early, the next one goes on at the same place.
"""

import asyncio
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy import Connection

from cart_grpc.store import migrate, shard_setup
from cart_grpc.store.engine import Engine
from cart_grpc.store.failures import Unsuitable, get_sqlstate
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


def _say_nothing(_: str) -> None:
    """Report nothing."""


async def run(engine: Engine, report: Report = _say_nothing, versions: Path = VERSIONS) -> tuple[str | None, str]:
    """Migrate to the newest revision in the folder `versions`. Return the revisions before and after.

    `report` gets one line for each migration and for each wait. Raises Unsuitable, and the database's errors.
    """
    await _take_turn(engine, report)
    try:
        await engine.transact(partial(shard_setup.create, len(engine.shards)))
        # One after the other: the session that has the turn runs all of them.
        runs = [await _run_shard(engine, shard.schema, report, versions) for shard in engine.shards]
        # A run that was interrupted has migrated the first shards only.
        return min(runs, key=lambda run: run[0] or "")
    finally:
        await engine.transact(migrate.end_turn)


async def _run_shard(engine: Engine, schema: str | None, report: Report, versions: Path) -> tuple[str | None, str]:
    first: migrate.Step | None = None
    shard = f"{schema}: " if schema else ""
    while True:
        begin = time.monotonic()
        step = await run_next(engine, schema, report, versions)
        first = first or step
        if step.after == step.before:
            return first.before, step.after
        report(f"{shard}schema {step.after}: {step.title} ({time.monotonic() - begin:.1f} s)")


async def _take_turn(engine: Engine, report: Report) -> None:
    is_reported = False
    while True:
        try:
            return await engine.transact(migrate.take_turn)
        except migrate.NotOurTurn:
            if not is_reported:
                report("another process migrates the database; waiting for its end")
            is_reported = True
        await _pause(TURN_PAUSE_SECONDS)


async def run_next(engine: Engine, schema: str | None, report: Report, versions: Path) -> migrate.Step:
    """Run the next migration of a shard, with as many tries as its locks need."""
    work = partial(shard_setup.in_schema, schema, partial(migrate.run_next, versions=versions))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return await engine.transact(work)
        except migrate.NotOurTurn:
            # The session that had our turn is gone.
            await _take_turn(engine, report)
            continue
        except Exception as error:
            if get_sqlstate(error) not in _LOCKED:
                raise
            oldest = await engine.transact(_describe_oldest)
            if time.monotonic() > deadline:
                raise Unsuitable(f"its tables stay locked; {oldest}; run `cart-grpc migrate` again later") from error
        report(f"a table is locked; {oldest}; callers go on, the next try is in {PAUSE_SECONDS:g} s")
        await _pause(PAUSE_SECONDS)


def _describe_oldest(connection: Connection) -> str:
    found = find_oldest_transaction(connection)
    return f"the oldest transaction is {found}" if found else "its transaction is over"


async def _pause(seconds: float) -> None:
    # Jitter: two processes that wait for the same should not come together.
    await asyncio.sleep(seconds * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
