"""Several shards of one PostgreSQL: each user's rows are in one of them, and no reader or writer notices."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, delete, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.util import await_only

from cart_grpc import app, database_setup
from cart_grpc.admin import OperatorActions
from cart_grpc.background import clock_watcher, sweeper
from cart_grpc.background.clock_watcher import ClockWatcher
from cart_grpc.carts.refusals import CartClosed, CartNotFound, DatabaseUnavailable
from cart_grpc.commands.direct import Claim, Pause
from cart_grpc.metrics import DATABASE_RETRIES
from cart_grpc.names import CartKey, cart_key, user_key
from cart_grpc.protocol.lanes import HOLD_LANE, RELEASE_LANE
from cart_grpc.store import batch_writer, restore
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.clock_steps import ClockReading
from cart_grpc.store.database_clock import Noticed
from cart_grpc.store.dialects import Dialect
from cart_grpc.store.due_shards import POLLED, DueShards
from cart_grpc.store.engine import Engine
from cart_grpc.store.postgresql import PostgresqlEngine
from cart_grpc.store.postgresql_session import IN_USE
from cart_grpc.store.read.cart_search import CartSearch
from cart_grpc.store.read.operator_reads import WorkState
from cart_grpc.store.read.reservation_search import ReservationPage
from cart_grpc.store.schema import commit_markers
from cart_grpc.store.shards import is_distributed, shard_index
from cart_grpc.store.store import Store
from tests.counting import value_of
from tests.databases import SHARDS, open_database
from tests.store.test_database_clock import MovableClock
from tests.store.test_merge import merge
from tests.store.test_migration_run import session
from tests.store.test_two_carts import NotingFailures
from tests.store.writes import (
    HOUR,
    LEASE,
    LIMITS,
    SECOND,
    Wrapped,
    add,
    answered,
    before_commit,
    claim,
    claim_one,
    overwrite,
    snapshot,
)
from tests.waiting import until

_numbers = itertools.count()


@pytest.fixture
def backend() -> str:
    return "postgresql"


def of_shard(number: int, count: int = 1) -> list[CartKey]:
    """Carts of `count` users of a shard."""
    names = (f"user-{each}" for each in itertools.count())
    keys = (cart_key(user_key(name), "default") for name in names)
    return list(itertools.islice((key for key in keys if shard_index(key.slice, SHARDS) == number), count))


EVERYWHERE = [key for number in range(SHARDS) for key in of_shard(number, 3)]


async def fill(store: Store, keys: Sequence[CartKey] = EVERYWHERE) -> None:
    await asyncio.gather(*(store.mutate(add(key=key)) for key in keys))


@asynccontextmanager
async def another_store(url: str) -> AsyncIterator[Store]:
    """A store of another process on the same database."""
    engine = open_database(url)
    store = Store(engine, app.new_id, queue_size=1000)
    await store.start()
    yield store
    await store.close()
    await engine.close()


async def count_in(shard: Engine, table: str) -> int:
    def read(connection: Connection) -> int:
        return int(connection.execute(text(f"SELECT count(*) FROM {shard.schema}.{table}")).scalar_one())  # noqa: S608

    return await shard.query(read)


async def test_the_rows_of_a_user_are_in_the_schema_of_its_slice_and_in_no_other(store: Store, engine: Engine) -> None:
    await fill(store, [*of_shard(0, 5), *of_shard(2, 2)])
    for table in ("users", "carts", "items", "reservations"):
        assert [await count_in(shard, table) for shard in engine.shards] == [5, 0, 2, 0]


async def test_commands_of_one_shard_share_a_transaction_and_those_of_others_do_not(counted: Wrapped) -> None:
    store = Store(counted, app.new_id, queue_size=1000)
    await store.start()
    counted.transactions = 0
    await fill(store, of_shard(1, 8))
    assert counted.transactions == 1
    await fill(store, EVERYWHERE)
    assert counted.transactions == 1 + SHARDS
    await store.close()


async def test_merges_between_shards_in_both_directions_and_two_processes_neither_deadlock_nor_lose(
    database_url: str, store: Store
) -> None:
    pairs = list(zip(of_shard(0, 6), of_shard(3, 6), strict=True))
    async with another_store(database_url) as other:
        for first, second in pairs:
            await store.mutate(add("tea", 2, first))
            await store.mutate(add("tea", 3, second))
        for _ in range(3):
            calls = [store.mutate(merge(*pair)) for pair in pairs]
            calls += [other.mutate(merge(*pair[::-1])) for pair in pairs]
            results = await asyncio.gather(*calls, return_exceptions=True)
            # One of each two is first. It ends the cart that the other one would take.
            assert {type(each) for each in results} <= {bytes, CartNotFound, CartClosed}
            for first, second in pairs:
                found = [await store.reads.find_cart(key) for key in (first, second)]
                assert sum(each.cart.total_quantity for each in found if each) == 5


async def test_merges_that_share_users_lock_them_in_one_order(database_url: str) -> None:
    engines = [NotingFailures(open_database(database_url)) for _ in range(2)]
    stores = [Store(engine, app.new_id, queue_size=1000) for engine in engines]
    for store in stores:
        await store.start()
    ring = list(itertools.chain(*zip(of_shard(0, 4), of_shard(3, 4), strict=True)))
    for _ in range(10):
        for key in ring:
            await stores[0].mutate(add("tea", key=key))
        steps = list(zip(ring, ring[1:] + ring[:1], strict=True))
        calls = [stores[0].mutate(merge(*step)) for step in steps]
        calls += [stores[1].mutate(merge(*step[::-1])) for step in reversed(steps)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(each) for each in results} <= {bytes, CartNotFound, CartClosed}
    for store, engine in zip(stores, engines, strict=True):
        await store.close()
        await engine.close()
        assert engine.failures == []


@pytest.mark.parametrize("target", [0, 3], ids=["one shard", "two shards"])
async def test_a_writer_that_was_idle_has_a_marker_before_its_batch_commits(
    database_url: str, store: Store, engine: Engine, monkeypatch: pytest.MonkeyPatch, target: int
) -> None:
    [source, _], [_, other] = of_shard(0, 2), of_shard(target, 2)
    await store.mutate(add(key=source))
    # A process that starts deletes the markers of writers that seem to be gone.
    for shard in engine.shards:
        await shard.transact(lambda connection: connection.execute(delete(commit_markers)))
    monkeypatch.setattr(batch_writer, "IDLE_SECONDS", 0)
    markers = list[int]()
    async with session(database_url) as reader:

        def count_committed(_: Connection) -> None:
            markers.append(await_only(reader.fetchval("SELECT count(*) FROM cart_shard_0.commit_markers")))

        assert isinstance(engine, PostgresqlEngine)
        before_commit(engine, count_committed)
        await store.mutate(merge(source, other))
    # Otherwise, to look for the marker of a COMMIT that broke and still runs would find nothing to wait for.
    assert markers == [0, 1]


async def test_a_claim_takes_the_due_rows_of_all_shards_up_to_its_limit(store: Store) -> None:
    await fill(store)
    some = await store.claim(Claim(HOLD_LANE, 7, LEASE))
    rest = await store.claim(Claim(HOLD_LANE, 100, LEASE))
    assert (len(some), len(rest)) == (7, len(EVERYWHERE) - 7)
    assert Counter(each.cart for each in (*some, *rest)) == Counter(EVERYWHERE)


async def test_answers_of_several_shards_are_recorded_together_and_each_gets_its_own(store: Store) -> None:
    await fill(store)
    claimed = await claim(store)
    # Neighbours are of different shards.
    claimed.sort(key=lambda each: EVERYWHERE.index(each.cart) % 3)
    recorded = await store.record_all([answered(each) for each in claimed])
    assert [each.reservation.reservation_id for each in recorded if not isinstance(each, Exception)] == [
        each.reservation_id for each in claimed
    ]
    for key in EVERYWHERE:
        assert (await snapshot(store, key)).lines[0].reservation.granted_quantity == 1


async def test_a_process_finds_the_due_rows_of_another_one_at_the_next_poll(store: Store, database_url: str) -> None:
    async with another_store(database_url) as other:
        while await other.has_due(HOLD_LANE):
            pass
        await fill(store)
        assert not await other.has_due(HOLD_LANE)
        other.due_shards.poll()
        assert await other.has_due(HOLD_LANE)
        assert len(await other.claim(Claim(HOLD_LANE, 100, LEASE))) == len(EVERYWHERE)


def test_polls_take_turns_if_there_are_many_shards() -> None:
    shards = DueShards(4 * POLLED, ChangeNotifier())
    seen = list[int]()
    for number in shards.find(HOLD_LANE):
        shards.begin_look(HOLD_LANE, number)
    for _ in range(4):
        shards.poll()
        polled = shards.find(HOLD_LANE)
        assert len(polled) == POLLED
        seen += polled
        for number in polled:
            shards.begin_look(HOLD_LANE, number)
    assert sorted(seen) == list(range(4 * POLLED))


async def test_a_claim_begins_with_the_shard_that_has_a_due_row(store: Store) -> None:
    await fill(store, of_shard(1))
    store.due_shards.poll(everywhere=True)
    assert await store.has_due(HOLD_LANE)
    assert store.due_shards.find(HOLD_LANE)[0] == 1


async def test_a_shard_with_a_backlog_keeps_no_other_shard_waiting(store: Store) -> None:
    await fill(store, [*of_shard(0, 5), *of_shard(3, 1)])
    store.due_shards.poll(everywhere=True)
    shards = set[int]()
    for _ in range(SHARDS):
        shards |= {shard_index(each.cart.slice, SHARDS) for each in await store.claim(Claim(HOLD_LANE, 1, LEASE))}
    assert shards == {0, 3}


def test_a_hint_that_comes_during_a_look_is_not_lost() -> None:
    notifier = ChangeNotifier()
    shards = DueShards(SHARDS, notifier)
    for number in shards.find(HOLD_LANE):
        shards.begin_look(HOLD_LANE, number)
    assert shards.find(HOLD_LANE) == []
    [key] = of_shard(2)
    notifier.publish([key], claimed=(), due=True)
    assert shards.find(HOLD_LANE) == [2]
    shards.begin_look(HOLD_LANE, 2)
    notifier.publish([key], claimed=(), due=True)
    assert shards.find(HOLD_LANE) == [2]


@pytest.mark.parametrize(("source", "target"), [(3, 0), (0, 3)])
async def test_an_operator_finds_a_reservation_that_moves_between_shards_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch, source: int, target: int
) -> None:
    [before], [after] = of_shard(source), of_shard(target)
    await store.mutate(add(key=before))
    [line] = (await snapshot(store, before)).lines
    reader, moving = store.operator_reads._reader, True
    fetch = reader._fetch

    async def fetch_and_move(*read: Any) -> Any:
        nonlocal moving
        rows = await fetch(*read)
        if moving:
            moving = False
            await store.mutate(merge(before, after))
        return rows

    monkeypatch.setattr(reader, "_fetch", fetch_and_move)
    found = await store.operator_reads.get(line.reservation.reservation_id)
    assert found.reservation.cart == after


async def test_no_server_starts_while_the_revisions_of_some_shards_are_yet_to_be_raised(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with another_store(database_url) as other:
        await fill(other)
    raise_revisions, let_in = restore.raise_revisions, list[bool]()
    async with session(database_url) as server:

        def try_to_start(connection: Connection, dialect: Dialect) -> int:
            # As a server's session, but without its wait.
            let_in.append(await_only(server.fetchval(f"SELECT pg_try_advisory_lock_shared({IN_USE})")))
            await_only(server.execute("SELECT pg_advisory_unlock_all()"))
            return raise_revisions(connection, dialect)

        monkeypatch.setattr(restore, "raise_revisions", try_to_start)
        engine = open_database(database_url)
        assert await database_setup.raise_revisions(engine) == len(EVERYWHERE)
        assert let_in == [False] * SHARDS
        await engine.close()


@pytest.mark.parametrize("size", [1, 5, 100])
@pytest.mark.parametrize("states", [frozenset(WorkState), frozenset({WorkState.DUE})], ids=["every state", "backlog"])
async def test_pages_of_reservations_go_through_all_shards_without_a_gap(
    store: Store, size: int, states: frozenset[WorkState]
) -> None:
    await fill(store)
    page, carts = ReservationPage(size, states, 0, 0, None), Counter[CartKey]()
    while True:
        found = await store.reservation_searches.find(page)
        carts.update(each.reservation.cart for each in found.reservations)  # type: ignore[union-attr]
        if found.next_after is None:
            break
        page = replace(page, after=found.next_after)
    assert carts == Counter(EVERYWHERE)


@pytest.mark.parametrize("prefix", ["", "user-"])
async def test_pages_of_carts_go_through_all_shards_without_a_gap(store: Store, prefix: str) -> None:
    await fill(store)
    search, seen = CartSearch(5, prefix, frozenset(), 0, "", None), list[CartKey]()
    while True:
        found = await store.cart_searches.find(search)
        seen += [each.cart.key for each in found.carts]
        if found.next_after is None:
            break
        search = replace(search, after=found.next_after)
    assert seen == sorted(EVERYWHERE)


async def test_a_pause_and_its_end_are_in_force_in_all_shards_or_in_none(store: Store, engine: Engine) -> None:
    await fill(store)
    operator = OperatorActions(store, LIMITS, None)
    last = f"{engine.shards[-1].schema}.pauses"
    refusal = f"ALTER TABLE {last} ADD CONSTRAINT refusal CHECK (reason <> 'refused')"
    await engine.transact(lambda connection: connection.execute(text(refusal)))
    with pytest.raises(IntegrityError, match="refusal"):
        await operator.pause("refused")
    assert (await operator.get_stats()).pause is None
    assert {shard_index(each.cart.slice, SHARDS) for each in await claim(store)} == set(range(SHARDS))
    await operator.pause("maintenance")
    await fill(store, of_shard(2, 4))
    assert await claim(store) == []
    await operator.resume()
    assert len(await claim(store)) == 1


async def test_a_pause_is_written_although_merges_between_shards_never_stop(store: Store) -> None:
    paused, refused = asyncio.Event(), list[CartKey]()

    async def keep_merging(source: CartKey, target: CartKey) -> None:
        while not paused.is_set():
            with pytest.raises(CartNotFound):
                await store.mutate(merge(source, target))
            refused.append(source)

    # More than the writers of these batches, so that a merge always waits.
    callers = [asyncio.create_task(keep_merging(*of_shard(0), *of_shard(3))) for _ in range(9)]
    try:
        await until(lambda: len(refused) > len(callers))
        async with asyncio.timeout(10):
            await store.pause(Pause("maintenance"))
    finally:
        paused.set()
        await asyncio.gather(*callers)


@pytest.mark.parametrize("number", range(SHARDS))
async def test_erasures_that_wait_do_not_keep_out_one_of_another_shard(
    store: Store, engine: Engine, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    # A round has room for the users of one shard, and their releases are never confirmed.
    monkeypatch.setattr(sweeper, "BATCH_SIZE", 2)
    waiting = [key for other in range(SHARDS) if other != number for key in of_shard(other, 2)]
    await fill(store, [*waiting, *of_shard(number)])
    operator = OperatorActions(store, LIMITS, None)
    rounds = sweeper.Sweeper(store, sweeper.Retention(HOUR, HOUR, HOUR), 0)
    for key in [*waiting, *of_shard(number)]:
        await operator.erase_user(key.user, progress_only=False)
    for _ in range(4 * SHARDS):
        await rounds.run_once()
        for each in await claim(store, RELEASE_LANE):
            if each.cart not in waiting:
                await store.record(answered(each))
    assert [await count_in(shard, "users") for shard in engine.shards] == [
        0 if each == number else 2 for each in range(SHARDS)
    ]


async def test_figures_count_every_shard(store: Store) -> None:
    await fill(store)
    stats = await OperatorActions(store, LIMITS, None).get_stats()
    assert stats.due_count == len(EVERYWHERE)
    assert [each.count for each in stats.backlog] == [len(EVERYWHERE)]


class TestNodes:
    """Shards on several nodes. Each shard has the clock of its node."""

    async def steps(self, engine: Engine) -> list[bool]:
        """Whether a step back was noted, by shard."""
        return [await count_in(shard, "clock WHERE set_back_time > 0") > 0 for shard in engine.shards]

    @asynccontextmanager
    async def two_nodes(self, engine: Engine) -> AsyncIterator[None]:
        """The tables in which Citus says where shards are: here on two nodes, in turn."""
        names = ", ".join(f"('{shard.schema}.clock'::regclass, {each})" for each, shard in enumerate(engine.shards))

        def create(connection: Connection) -> None:
            connection.exec_driver_sql(
                f"CREATE TABLE pg_dist_shard AS SELECT * FROM (VALUES {names}) AS _ (logicalrelid, shardid)"  # noqa: S608
            )
            connection.exec_driver_sql(
                "CREATE TABLE pg_dist_placement AS SELECT shardid, shardid % 2 AS groupid, 1 AS shardstate "
                "FROM pg_dist_shard"
            )

        await engine.transact(create)
        yield
        await engine.transact(lambda connection: connection.exec_driver_sql("DROP TABLE pg_dist_shard"))
        await engine.transact(lambda connection: connection.exec_driver_sql("DROP TABLE pg_dist_placement"))

    async def test_a_step_that_shows_in_one_shard_moves_the_times_of_no_other_on_several_nodes(
        self, store: Store, engine: Engine
    ) -> None:
        # A process that is gone wrote it, while the clock of the shard's node was ahead.
        await overwrite(engine.shards[2], commit_markers, update_time=2**60)
        async with self.two_nodes(engine):
            for _ in range(2):
                await ClockWatcher(store.clock(app.monotonic_us, 0)).run_once()
            assert await self.steps(engine) == [False, False, True, False]

    async def test_a_step_that_shows_in_one_shard_moves_the_times_of_all_on_one_node(
        self, store: Store, engine: Engine
    ) -> None:
        # The others had no commit for longer than the step.
        await overwrite(engine.shards[2], commit_markers, update_time=2**60)
        await ClockWatcher(store.clock(app.monotonic_us, 0)).run_once()
        assert await self.steps(engine) == [True] * SHARDS

    async def test_a_node_that_hangs_hides_no_step_of_another_one(
        self, engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monotonic = MovableClock()
        async with self.two_nodes(engine), another_store(database_url) as other:
            clock = other.clock(monotonic, 0)
            assert await clock.find_nodes() == [[0, 2], [1, 3]]
            watcher = ClockWatcher(clock)
            await watcher.run_once()
            monkeypatch.setattr(clock_watcher, "READ_SECONDS", 0.2)

            def hang(connection: Connection) -> None:
                connection.exec_driver_sql(f"LOCK TABLE {engine.shards[0].schema}.clock")
                monotonic.ahead += HOUR
                with pytest.raises(DatabaseUnavailable):
                    await_only(watcher.run_once())

            await engine.transact(hang)
            assert await self.steps(engine) == [False, True, False, True]
            await watcher.run_once()
            assert await self.steps(engine) == [True] * SHARDS

    async def test_the_clock_of_one_slice_can_be_asked_alone(self, store: Store, engine: Engine) -> None:
        monotonic = MovableClock()
        async with self.two_nodes(engine):
            watcher = ClockWatcher(store.clock(monotonic, 0))
            await watcher.run_once()
            monotonic.ahead += HOUR
            await watcher.run_once(of_shard(3)[0].slice)
            assert await self.steps(engine) == [False, False, False, True]

    async def test_a_reservation_that_moves_to_another_shard_while_a_step_is_applied_keeps_no_time_from_before(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        [before], [after] = of_shard(3), of_shard(0)
        await store.mutate(add(key=before))
        await store.record(answered(await claim_one(store)))
        [held] = (await snapshot(store, before)).lines
        monotonic = MovableClock()
        clock = store.clock(monotonic, 0)
        watcher = ClockWatcher(clock)
        await watcher.run_once()
        notice, retries = clock.notice, value_of(DATABASE_RETRIES)
        merging = list[asyncio.Future[bytes]]()

        async def notice_and_merge(shard: int, last: ClockReading | None, since: int) -> Noticed:
            noticed = await notice(shard, last, since)
            if shard == 0:
                merging.append(asyncio.ensure_future(store.mutate(merge(before, after))))
                await until(lambda: merging[0].done() or value_of(DATABASE_RETRIES) > retries)
            return noticed

        monkeypatch.setattr(clock, "notice", notice_and_merge)
        monotonic.ahead += HOUR // 12
        await watcher.run_once()
        await asyncio.gather(*merging)
        [moved] = (await snapshot(store, after)).lines
        for name in ("expire_time", "due_time"):
            step = getattr(held.reservation, name) - getattr(moved.reservation, name)
            assert step == pytest.approx(HOUR // 12, abs=5 * SECOND)

    async def test_a_distributed_database_gets_statements_of_its_own_that_write_the_same(
        self, store: Store, engine: Engine, database_url: str
    ) -> None:
        await fill(store)
        async with self.two_nodes(engine), another_store(database_url) as other:
            await fill(other)
            claimed = await claim(other)
            await other.record_all([answered(each) for each in claimed])
            assert await engine.shards[0].transact(is_distributed) is False
            assert await other._engine.shards[0].transact(is_distributed) is True
        for key in EVERYWHERE:
            [line] = (await snapshot(store, key)).lines
            assert (line.item.quantity, line.reservation.granted_quantity) == (2, 2)

    async def test_two_sessions_write_on_several_nodes_and_one_on_one(self, engine: Engine, database_url: str) -> None:
        def most(of: Engine) -> int:
            return next(pool.most for pool in of.pools() if pool.name == "write")

        async with self.two_nodes(engine):
            distributed = open_database(database_url)
            await distributed.transact(is_distributed)
            assert (most(engine), most(distributed)) == (1, 2)
            await distributed.close()

    async def test_shards_of_one_postgresql_have_one_clock(self, store: Store) -> None:
        assert [[*shards] for shards in await store.clock(app.monotonic_us, 0).find_nodes()] == [[*range(SHARDS)]]


async def test_a_command_of_the_store_works_after_a_pause_in_each_shard(store: Store) -> None:
    await store.pause(Pause("first"))
    await store.pause(Pause("second"))
    found = await store.operator_reads.find_pause()
    assert found is not None
    assert found.reason == "second"
