"""The database of a simulation: real SQLite in the event loop's thread, behind a network that fails.

A transaction queues behind earlier ones, takes some time, and then runs in one instant at its end, with the clock
pinned to its beginning. Transactions never overlap, so no observer can tell this from a transaction that was open all
the time. A kill before that instant rolls back; a kill after it loses the reply.
"""

import asyncio
import gc
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

from cart_grpc.protocol.reservation import Reservation
from cart_grpc.store import schema
from cart_grpc.store.dialects import Dialect, SqliteDialect
from cart_grpc.store.engine import Engine
from cart_grpc.store.failures import CommitFailed
from cart_grpc.store.pool_usage import PoolUsage
from cart_grpc.store.queries import WriteQueries
from tests.simulation.clock import SimulatedClock
from tests.simulation.loop import OUTSIDE, Process

T = TypeVar("T")


@dataclass
class DatabaseFaults:
    """Faults of the database.

    `commit_lost` and `reply_lost` are the probabilities that COMMIT fails without and with effect; `slowest` and
    `slowest_reply` are the maximum durations of a transaction and of a reply, in seconds.
    """

    commit_lost: float = 0.0
    reply_lost: float = 0.0
    slowest: float = 0.01
    slowest_reply: float = 0.002


def discard(*_: object) -> None:
    """Log nothing."""


class _LoggedQueries(WriteQueries):
    """The real statements. It logs how many answers were recorded without reading, and how many were refused."""

    log_event: Callable[..., None]

    def settle(self, connection: Connection, changes: Sequence[tuple[Reservation, Reservation, bool]]) -> set[str]:
        settled = super().settle(connection, changes)
        self.log_event("settled", len(settled), "refused" if len(settled) < len(changes) else "")
        return settled


class Template:
    """One connection per Python process, so that compiled and prepared statements serve every seed."""

    def __init__(self) -> None:
        self.clock: Callable[[], int] = int
        self.dialect: Dialect = SqliteDialect(lambda: self.clock())  # noqa: PLW0108 - each run sets another
        self.raw = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        engine = create_engine("sqlite+pysqlite://", creator=lambda: self.raw, poolclass=StaticPool)
        self.connection: Connection = engine.connect()
        schema.metadata.create_all(self.connection)
        self.connection.commit()
        # Built once: SQLAlchemy caches compiled statements by object.
        self.queries = _LoggedQueries(self.dialect, lock_users=False)
        # Otherwise each garbage collection would scan all imported modules.
        gc.freeze()

    def clear(self) -> None:
        """Empty every table."""
        for table in schema.metadata.tables:
            self.raw.execute(f"DELETE FROM {table}")  # noqa: S608 - our own tables' names


@cache
def template() -> Template:
    return Template()


class Database:
    """The database of a run. After each commit it calls `after_commit(process_name, begin_time)`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: SimulatedClock,
        faults: DatabaseFaults,
        rng: Random,
        after_commit: Callable[[str, int], None],
        log_event: Callable[..., None] = discard,
    ) -> None:
        self.faults = faults
        self.clock = clock
        self.latest = 0
        self.is_closed = False
        self.commit_count = 0
        self._loop = loop
        self._rng = rng
        self._after_commit = after_commit
        self._busy_until = 0.0
        self._pinned: int | None = None
        self._cut: set[str] = set()
        self._template = template()
        self._template.clear()
        self._template.clock = self.now
        self._template.queries.log_event = log_event
        self.raw = self._template.raw

    def now(self) -> int:
        """The database's time in microseconds. Inside a transaction: the time of its beginning."""
        if self._pinned is not None:
            return self._pinned
        return self.clock.now()

    def cut(self, process_name: str) -> None:
        """Partition a process from the database."""
        self._cut.add(process_name)

    def reconnect(self, process_name: str) -> None:
        self._cut.discard(process_name)

    def is_cut(self, process: Process) -> bool:
        return self.is_closed or process.name in self._cut

    @property
    def connection(self) -> Connection:
        return self._template.connection

    def delay(self, slowest: float) -> float:
        """A random delay of at most `slowest`; most are short."""
        return slowest * self._rng.random() ** 4

    def chance(self) -> float:
        return self._rng.random()

    def submit(self, process: Process, work: Callable[[Connection], Any], reply: "asyncio.Future[Any]") -> None:
        """Queue a transaction. `reply` gets its result or exception, unless the process dies or is partitioned."""
        if self.is_cut(process):
            self._loop.call_later(0.01, _answer, reply, unreachable(), context=OUTSIDE)
            return
        begin = max(self._loop.time(), self._busy_until)
        end = self._busy_until = begin + 0.0005 + self.delay(self.faults.slowest)
        self._loop.call_at(begin, self._begin, process, work, reply, end, context=OUTSIDE)

    def _begin(self, process: Process, work: Callable[[Connection], Any], reply: Any, end: float) -> None:
        self._loop.call_at(end, self._finish, process, work, reply, self.now(), context=OUTSIDE)

    def _finish(self, process: Process, work: Callable[[Connection], Any], reply: Any, begun_at: int) -> None:
        if process.dead:
            return
        if self.is_cut(process):
            _answer(reply, unreachable())
            return
        outcome = self._run(process.name, work, begun_at)
        self._loop.call_later(
            self.delay(self.faults.slowest_reply), self._reply, process, reply, outcome, context=OUTSIDE
        )

    def _reply(self, process: Process, reply: Any, outcome: Any) -> None:
        if self.is_cut(process) and not isinstance(outcome, BaseException):
            outcome = commit_failed(outcome)
        _answer(reply, outcome)

    def _run(self, process_name: str, work: Callable[[Connection], Any], begun_at: int) -> Any:
        """Run a transaction in one instant. Returns its result or what it raised."""
        self._pinned = begun_at
        self.latest = max(self.latest, begun_at)
        self.raw.execute("BEGIN IMMEDIATE")
        try:
            result = work(self._template.connection)
        except Exception as error:  # noqa: BLE001 - the transaction's own exception is its result
            self.raw.execute("ROLLBACK")
            return error
        finally:
            self._pinned = None
        fate = self._rng.random()
        if fate < self.faults.commit_lost:
            self.raw.execute("ROLLBACK")
            return commit_failed(result)
        self.raw.execute("COMMIT")
        self.commit_count += 1
        self._after_commit(process_name, begun_at)
        return commit_failed(result) if fate > 1 - self.faults.reply_lost else result


def unreachable() -> OperationalError:
    return OperationalError("the network", None, OSError("connection lost"), connection_invalidated=True)


def commit_failed(result: Any) -> CommitFailed:
    failure = CommitFailed(result)
    failure.__cause__ = unreachable()
    return failure


def _answer(reply: "asyncio.Future[Any]", outcome: Any) -> None:
    if reply.done():
        return
    if isinstance(outcome, BaseException):
        reply.set_exception(outcome)
    else:
        reply.set_result(outcome)


class SimulatedEngine:
    """One replica's connection to the shared database. Implements `Engine`."""

    locks_users = False
    is_shared = True
    hints = None
    is_in_process = False
    has_log = False
    schema: str | None = None

    def __init__(self, database: Database, process: Process) -> None:
        self.name = process.name
        self.shards: Sequence[Engine] = (self,)
        self.dialect: Dialect = template().dialect
        self._database = database
        self._process = process

    def shard_of(self, slice_: int) -> Engine:
        return self

    async def transact(self, work: Callable[[Connection], T]) -> T:
        reply: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._database.submit(self._process, work, reply)
        return await asyncio.shield(reply)

    async def read(self, work: Callable[[Connection], T]) -> T:
        database = self._database
        if database.chance() < 0.3:
            await asyncio.sleep(database.delay(database.faults.slowest_reply))
        if database.is_cut(self._process):
            raise unreachable()
        return work(database.connection)

    query = read

    @property
    def connection(self) -> Connection:
        return self._database.connection

    @property
    def move_count(self) -> int:
        """How often times were moved after a step back of the clock."""
        return self._database.clock.move_count

    @property
    def skew(self) -> int:
        """By how many microseconds the database's clock is ahead."""
        return self._database.clock.skew

    @property
    def is_step_applied(self) -> bool:
        """Whether the last step back of the clock was applied, and no read from before is under way."""
        return self._database.clock.is_step_applied

    @property
    def is_step_open(self) -> bool:
        """Whether a step back of the clock is not yet applied."""
        return self._database.clock.is_step_open

    @property
    def is_set_back(self) -> bool:
        """Whether the database's clock is behind the time of an earlier transaction."""
        return self._database.now() < self._database.latest

    def pools(self) -> Sequence[PoolUsage]:
        return ()

    async def close(self) -> None:
        """Nothing to close."""
