"""The database of a simulation: real SQLite in the event loop's thread, behind a network that fails.

A transaction queues behind earlier ones, takes some time, and then runs in one instant at its end, with the clock
pinned to its beginning. Transactions never overlap, so no observer can tell this from a transaction that was open all
the time. A kill before that instant rolls back; a kill after it loses the reply.

A transaction about two shards commits in both at once.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from cart_grpc.store.dialects import Dialect
from cart_grpc.store.engine import Engine
from cart_grpc.store.failures import CommitFailed
from cart_grpc.store.pool_usage import PoolUsage
from cart_grpc.store.shards import Shard, schema_names, shard_index
from tests.simulation.clock import SimulatedClock
from tests.simulation.loop import OUTSIDE, Process
from tests.simulation.template import MAIN, template

T = TypeVar("T")
# How a transaction ends. LOST: COMMIT fails without effect. UNHEARD: it fails with effect.
COMMITTED, LOST, UNHEARD = "committed", "lost", "unheard"
KILLED_BEFORE, KILLED_AFTER = "killed before the commit", "killed after the commit"


@dataclass
class DatabaseFaults:
    """Faults of the database.

    `commit_lost` and `reply_lost` are the probabilities that COMMIT fails without and with effect; `killed` is the
    probability that a process dies during what concerns several shards, before or after a COMMIT: a merge of two
    shards, a pause of all or its end; `slowest` and `slowest_reply` are the maximum durations of a transaction and of a
    reply, in seconds.
    """

    commit_lost: float = 0.0
    reply_lost: float = 0.0
    killed: float = 0.0
    slowest: float = 0.01
    slowest_reply: float = 0.002


def discard(*_: object) -> None:
    """Log nothing."""


class Database:
    """The database of a run. After each commit it calls `after_commit(process_name, begin_time)`.

    After it has killed a process, it calls `after_kill(process_name)`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: SimulatedClock,
        faults: DatabaseFaults,
        rng: Random,
        after_commit: Callable[[str, int], None],
        log_event: Callable[..., None] = discard,
        *,
        shard_count: int = 1,
        after_kill: Callable[[str], None] = discard,
    ) -> None:
        self.shard_count = shard_count
        self.faults = faults
        self.clock = clock
        self.latest = 0
        # With several shards, a start makes many commits, and begins again if one fails. So only the commits of
        # processes that have started may fail, or hardly any would start.
        self.started: set[str] = set()
        self.is_closed = False
        self.commit_count = 0
        self._loop = loop
        self._rng = rng
        self._after_commit = after_commit
        self._after_kill = after_kill
        self._log_event = log_event
        # What the transaction is a part of, if that concerns several shards.
        self._part_of = ""
        self._busy_until = 0.0
        self._pinned: int | None = None
        self._cut: set[str] = set()
        self._template = template()
        self._template.clear()
        self._template.clock = self.now
        self._template.queries.log_event = log_event
        self._template.queries.note = self._note
        for queries in self._template.spanning.values():
            queries.note = self._note
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

    @property
    def shards(self) -> Sequence[int]:
        """The numbers of the shards in the views."""
        return range(self.shard_count) if self.shard_count > 1 else [MAIN]

    @property
    def schemas(self) -> Sequence[str | None]:
        """The schemas that the statements of the shards name."""
        return schema_names(self.shard_count) if self.shard_count > 1 else [None]

    def _note(self, part_of: str) -> None:
        self._part_of = part_of if self.shard_count > 1 else ""

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
        outcome = self._run(process, work, begun_at)
        self._loop.call_later(
            self.delay(self.faults.slowest_reply), self._reply, process, reply, outcome, context=OUTSIDE
        )

    def _reply(self, process: Process, reply: Any, outcome: Any) -> None:
        if self.is_cut(process) and not isinstance(outcome, BaseException):
            outcome = commit_failed(outcome)
        _answer(reply, outcome)

    def _run(self, process: Process, work: Callable[[Connection], Any], begun_at: int) -> Any:
        """Run a transaction in one instant. Returns its result or what it raised."""
        self._pinned = begun_at
        self._part_of = ""
        self.latest = max(self.latest, begun_at)
        self.raw.execute("BEGIN IMMEDIATE")
        try:
            result = work(self._template.connection)
        except Exception as error:  # noqa: BLE001 - the transaction's own exception is its result
            self.raw.execute("ROLLBACK")
            return error
        finally:
            self._pinned = None
        end = self._draw_end(process)
        if self._part_of:
            self._log_event("shards", f"{self._part_of} {end}")
        if end in (KILLED_BEFORE, KILLED_AFTER):
            process.kill()
            self._after_kill(process.name)
        if end in (KILLED_BEFORE, LOST):
            self.raw.execute("ROLLBACK")
            return commit_failed(result)
        self.raw.execute("COMMIT")
        self.commit_count += 1
        self._after_commit(process.name, begun_at)
        return result if end == COMMITTED else commit_failed(result)

    def _draw_end(self, process: Process) -> str:
        """Draw how a transaction ends."""
        if self._part_of:
            probability = self.faults.killed / (1 if self._part_of == "merge" else self.shard_count)
            is_killed, is_before = self._rng.random() < probability, self._rng.random() < 0.5
            if is_killed:
                return KILLED_BEFORE if is_before else KILLED_AFTER
        fate = self._rng.random()
        if self.shard_count > 1 and process.name not in self.started:
            return COMMITTED
        if fate < self.faults.commit_lost:
            return LOST
        return UNHEARD if fate > 1 - self.faults.reply_lost else COMMITTED


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
        self.dialect: Dialect = template().dialect
        self._database = database
        self._process = process
        self.shards: Sequence[Engine] = [Shard(self, name) if name else self for name in database.schemas]

    def shard_of(self, slice_: int) -> Engine:
        return self.shards[shard_index(slice_, len(self.shards))]

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

    def write_at_once(self, count: int) -> None:
        """Do nothing."""

    def pools(self) -> Sequence[PoolUsage]:
        return ()

    async def close(self) -> None:
        """Nothing to close."""
