"""A COMMIT whose connection breaks may have happened. The caller gets the right answer, and there is one effect."""

import asyncio
import itertools
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import await_only

from cart_grpc import app
from cart_grpc.carts.refusals import Unavailable
from cart_grpc.metrics import AMBIGUOUS_COMMITS, DATABASE_RETRIES
from cart_grpc.store import batch_writer, schema
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.engine import Engine
from cart_grpc.store.postgresql import PostgresqlEngine
from cart_grpc.store.sqlite import SqliteEngine
from cart_grpc.store.store import Store
from cart_grpc.store.write_queue import WriteQueue
from tests.counting import counting
from tests.store.writes import SKU, add, answered, before_commit, claim_one, count, decode, snapshot

KILL = "SELECT pg_terminate_backend(pg_backend_pid())"


def break_connection(connection: Connection) -> None:
    """Fail as a cut connection or a killed backend does: an error, and the connection is unusable."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(KILL)
        raise AssertionError("the backend is still there")
    raise sqlite3.OperationalError("disk I/O error")


class Breaking:
    """Breaks the writer's connection at the next commits: `x` in `plan` breaks one, `.` lets one pass.

    The commit after a batch's broken commit is that of the transaction which reads the commit marker.
    """

    def __init__(self, engine: Engine, *, committed: bool, plan: str = "x") -> None:
        self._committed = committed
        self._plan = list(plan)
        self.broken = 0
        assert isinstance(engine, SqliteEngine | PostgresqlEngine)
        before_commit(engine, self)

    def __call__(self, connection: Connection) -> None:
        if not self._plan or self._plan.pop(0) == ".":
            return
        self.broken += 1
        if self._committed:
            connection.exec_driver_sql("COMMIT")
        break_connection(connection)


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "not committed"])
async def test_a_lost_commit_reply_is_resolved_by_the_commit_marker(
    store: Store, engine: Engine, committed: bool
) -> None:
    await store.mutate(add(quantity=1))
    breaking = Breaking(engine, committed=committed)
    outcome = AMBIGUOUS_COMMITS.labels("committed" if committed else "not_committed")
    with counting(outcome), counting(DATABASE_RETRIES, by=not committed):
        assert decode(await store.mutate(add(quantity=2))) == {SKU: 3}
    assert breaking.broken == 1
    found = await snapshot(store)
    assert (found.cart.total_quantity, found.cart.revision) == (3, 2)
    assert decode(await store.mutate(add(quantity=4))) == {SKU: 7}


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "not committed"])
async def test_every_command_of_a_broken_batch_keeps_its_own_answer(
    queue: WriteQueue, engine: Engine, committed: bool
) -> None:
    breaking = Breaking(engine, committed=committed)
    answers = [queue.submit(add(request_id="r1")), queue.submit(add()), queue.submit(add(request_id="r1"))]
    first, second, replay = await asyncio.gather(*answers)
    assert breaking.broken == 1
    assert [decode(first), decode(second)] == [{SKU: 1}, {SKU: 2}]
    assert replay == first
    assert await count(engine, schema.replies) == 1
    assert decode(await queue.submit(add())) == {SKU: 3}


async def test_a_commit_that_breaks_several_times_has_one_effect(store: Store, engine: Engine) -> None:
    breaking = Breaking(engine, committed=False, plan="x.x.x")
    assert decode(await store.mutate(add())) == {SKU: 1}
    assert breaking.broken == 3
    assert (await snapshot(store)).cart.revision == 1


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "not committed"])
async def test_reading_the_commit_marker_is_retried_if_that_connection_breaks_too(
    store: Store, engine: Engine, committed: bool
) -> None:
    breaking = Breaking(engine, committed=committed, plan="xx")
    assert decode(await store.mutate(add())) == {SKU: 1}
    assert breaking.broken == 2


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "not committed"])
async def test_a_claim_and_its_record_survive_a_broken_commit(store: Store, engine: Engine, committed: bool) -> None:
    await store.mutate(add())
    Breaking(engine, committed=committed)
    claimed = await claim_one(store)
    assert (claimed.lease_epoch, claimed.attempt_count) == (1, 1)
    Breaking(engine, committed=committed)
    assert (await store.record(answered(claimed))).reservation.settled
    assert (await snapshot(store)).cart.revision == 2


async def test_two_processes_on_one_database_do_not_confuse_their_commit_markers(store: Store, engine: Engine) -> None:
    other = WriteQueue(engine, ChangeNotifier(), app.new_id, 10)
    await other.start()
    for _ in range(3):
        await other.submit(add())
    Breaking(engine, committed=False)
    assert decode(await store.mutate(add())) == {SKU: 4}
    await other.close()


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "not committed"])
async def test_a_broken_commit_is_resolved_after_the_other_writer_has_committed_the_next_batch(
    queue: WriteQueue, engine: Engine, committed: bool
) -> None:
    loop, is_there = asyncio.get_running_loop(), threading.Event()
    breaking = Breaking(engine, committed=committed)
    answers: list[asyncio.Future[bytes]] = []

    def put_next() -> None:
        answers.append(queue.submit(add(quantity=2)))
        is_there.set()

    def put_next_first(_: Connection) -> None:
        end()
        if isinstance(engine, SqliteEngine):
            loop.call_soon_threadsafe(put_next)
            assert is_there.wait(10)
        else:
            put_next()

    assert isinstance(engine, SqliteEngine | PostgresqlEngine)
    end = before_commit(engine, put_next_first)
    first = decode(await queue.submit(add(quantity=1)))
    second = decode(await answers[0])
    assert breaking.broken == 1
    # If it was committed, it came first. If not, it was retried before or after the second batch.
    assert (first, second) == ({SKU: 1}, {SKU: 3}) or (not committed and (first, second) == ({SKU: 3}, {SKU: 2}))
    assert decode(await queue.submit(add(quantity=4))) == {SKU: 7}


@pytest.mark.one_shard
async def test_the_time_a_batch_waits_for_the_other_writer_does_not_count_against_its_retries(
    queue: WriteQueue, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, answers = asyncio.get_running_loop(), list[asyncio.Future[bytes]]()
    monkeypatch.setattr(batch_writer, "RETRY_SECONDS", 0.5)
    assert isinstance(engine, SqliteEngine | PostgresqlEngine)

    def take_long(_: Connection) -> None:
        end()
        Breaking(engine, committed=False)
        if isinstance(engine, SqliteEngine):
            loop.call_soon_threadsafe(lambda: answers.append(queue.submit(add(quantity=2))))
            time.sleep(0.6)
        else:
            answers.append(queue.submit(add(quantity=2)))
            await_only(asyncio.sleep(0.6))

    end = before_commit(engine, take_long)
    # `Breaking` breaks the commit of the next batch, not of this one.
    assert decode(await queue.submit(add(quantity=1))) == {SKU: 1}
    assert decode(await answers[0]) == {SKU: 3}


async def test_a_command_whose_caller_left_after_a_failed_attempt_is_not_retried(
    queue: WriteQueue, engine: Engine
) -> None:
    loop = asyncio.get_running_loop()
    breaking = Breaking(engine, committed=False)
    assert isinstance(engine, SqliteEngine | PostgresqlEngine)
    given_up, other = queue.submit(add("given up")), queue.submit(add())

    def give_up(_: Connection) -> None:
        loop.call_soon_threadsafe(given_up.cancel)
        end()

    end = before_commit(engine, give_up)
    assert decode(await other) == {SKU: 1}
    assert breaking.broken == 1
    assert given_up.cancelled()
    assert await count(engine, schema.items) == 1


Kill = Callable[[], Awaitable[None]]


@pytest.fixture
async def kill(store: Store, engine: Engine, database_url: str) -> AsyncIterator[Kill]:
    """Kill the backends, whatever they are doing. SQLite has none, so there the next commit breaks."""
    if isinstance(engine, SqliteEngine):
        plan = itertools.cycle((True, False))

        async def break_next_commit() -> None:
            Breaking(engine, committed=next(plan))

        yield break_next_commit
        return
    outside = create_async_engine(database_url, isolation_level="AUTOCOMMIT")

    async def kill_backends() -> None:
        async with outside.connect() as connection:
            await connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name = 'cart-grpc'"
            )

    yield kill_backends
    await outside.dispose()


async def test_connections_killed_under_load_neither_lose_nor_double_an_effect(store: Store, kill: Kill) -> None:
    async def add_for_certain(request_id: str) -> None:
        for _ in range(100):
            try:
                await store.mutate(add(request_id=request_id))
            except Unavailable:
                continue
            return
        raise AssertionError("the item was never added")

    async def caller(name: int) -> None:
        for number in range(15):
            adding = asyncio.create_task(add_for_certain(f"{name}-{number}"))
            if number % 5 == name % 5:
                # Somewhere between the first statement and the commit.
                for _ in range(name):
                    await asyncio.sleep(0)
                await kill()
            await adding

    await asyncio.gather(*(caller(name) for name in range(8)))
    found = await snapshot(store)
    assert found.cart.total_quantity == found.cart.revision == 8 * 15
