"""Watching a cart: watchers see its current state and each newer one, share reads, and leave nothing behind.

No test here waits for a time to pass: polls are a millisecond apart, and the tests wait for states and counts.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, ExitStack

import pytest

from cart_grpc import app
from cart_grpc.carts.progress import HOLD_MARGIN_US, ProgressState, progress
from cart_grpc.carts.refusals import DatabaseUnavailable, Overloaded
from cart_grpc.commands.direct import Purge
from cart_grpc.names import CartKey, cart_key, user_key
from cart_grpc.store import schema
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.engine import Engine
from cart_grpc.store.read import cart_watches
from cart_grpc.store.read.cache_validator import CacheValidator
from cart_grpc.store.read.cart_json import CartJson, Found
from cart_grpc.store.read.cart_watches import CartWatches
from cart_grpc.store.read.reads import Reads
from cart_grpc.store.read.revision_check import Known
from cart_grpc.store.read.snapshot import Snapshot, parse_snapshot
from cart_grpc.store.read.watch import Watch
from cart_grpc.store.store import Store
from tests.deadlines import growing
from tests.store.writes import (
    HOUR,
    KEY,
    SECOND,
    add,
    answered,
    claim_one,
    clear,
    count,
    decided,
    overwrite,
    release_all,
    remove,
    silent,
)
from tests.waiting import until

OTHER = cart_key(user_key("bob"), "default")


class CountedReads(Reads):
    """Reads that count their results, wait while `gate` is closed, and raise `error` if there is one."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.read_count = 0
        self.whole_cart_count = 0
        self.check_count = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def find_json(self, key: CartKey, validator: CacheValidator | None = None) -> Found:
        self.read_count += 1
        await self.gate.wait()
        if self.error:
            raise self.error
        found = await super().find_json(key, validator)
        self.whole_cart_count += isinstance(found, CartJson)
        return found

    async def find_changed(self, known: Sequence[tuple[CartKey, Known]]) -> list[CartKey]:
        self.check_count += 1
        return await super().find_changed(known)


class Watched:
    """The watches of a store, with their reads counted."""

    def __init__(self, store: Store, engine: Engine, *, polls: bool = False) -> None:
        self.store = store
        self.reads = CountedReads(engine)
        self.notifier: ChangeNotifier = store.notifier
        self.watches = CartWatches(self.reads, store.notifier, checks=polls, check_seconds=0.001, retry_seconds=0.001)

    def watch(self, key: CartKey) -> AbstractContextManager[Watch[Snapshot]]:
        return self.watches.watch(key, parse_snapshot)

    def is_idle(self) -> bool:
        """Whether nothing is left of any watch."""
        return not (self.watches._subscriptions or self.watches._due or self.watches._task or self.watches._checking)


@pytest.fixture
async def watched(store: Store, engine: Engine) -> AsyncIterator[Watched]:
    """Watches that do not poll, as on a database of one process."""
    watched = Watched(store, engine)
    yield watched
    await until(watched.is_idle)


@pytest.fixture
async def polled(store: Store, engine: Engine) -> AsyncIterator[Watched]:
    """Watches that poll, as on a shared database. Other processes' commits come without a hint: see `unhinted`."""
    watched = Watched(store, engine, polls=True)
    yield watched
    await until(watched.is_idle)


@pytest.fixture
async def unhinted(engine: Engine) -> AsyncIterator[Store]:
    """The store of another process on the same database: its commits give no hints here."""
    store = Store(engine, app.new_id, queue_size=100)
    await store.start()
    yield store
    await store.close()


async def next_state(states: Watch[Snapshot]) -> Snapshot:
    async with asyncio.timeout(20):
        state = await anext(states)
    assert state is not None
    return state


async def state_with(states: Watch[Snapshot], quantity: int) -> Snapshot:
    """The first state with this total quantity; revisions rise on the way to it."""
    last = 0
    while True:
        state = await next_state(states)
        assert state.cart.revision > last
        last = state.cart.revision
        if state.cart.total_quantity == quantity:
            return state


def shown(state: Snapshot) -> ProgressState:
    (line,) = state.lines
    return progress(line, state.now).state


async def test_the_first_state_is_current_and_each_commit_brings_a_newer_one(watched: Watched) -> None:
    await watched.store.mutate(add())
    with watched.watch(KEY) as states:
        assert (await next_state(states)).cart.total_quantity == 1
        await watched.store.mutate(add())
        assert (await next_state(states)).cart.total_quantity == 2
        await watched.store.record(answered(await claim_one(watched.store)))
        assert shown(await next_state(states)) is ProgressState.RESERVED


async def test_a_second_watcher_begins_with_a_state_read_after_it_arrived(watched: Watched, unhinted: Store) -> None:
    await watched.store.mutate(add())
    with watched.watch(KEY) as first:
        await next_state(first)
        await unhinted.mutate(add())
        with watched.watch(KEY) as second:
            assert (await next_state(second)).cart.total_quantity == 2
        # What one watcher's arrival finds, all watchers get.
        assert (await next_state(first)).cart.total_quantity == 2


async def test_a_watcher_that_arrives_during_a_read_waits_for_the_next_one(watched: Watched) -> None:
    await watched.store.mutate(add())
    watched.reads.gate.clear()
    with watched.watch(KEY) as first, ExitStack() as stack:
        await until(lambda: watched.reads.read_count == 1)
        second = stack.enter_context(watched.watch(KEY))
        watched.reads.gate.set()
        await next_state(first)
        await next_state(second)
    assert watched.reads.read_count == 2


async def test_a_commit_during_a_read_causes_another_read(watched: Watched) -> None:
    await watched.store.mutate(add())
    with watched.watch(KEY) as states:
        await next_state(states)
        watched.reads.gate.clear()
        await watched.store.mutate(add())
        await until(lambda: watched.reads.read_count == 2)
        await watched.store.mutate(add())
        watched.reads.gate.set()
        await state_with(states, 3)
        await until(lambda: watched.reads.read_count == 3)


async def test_watchers_of_one_cart_share_its_reads(watched: Watched) -> None:
    await watched.store.mutate(add())
    with ExitStack() as stack:
        all_states = [stack.enter_context(watched.watch(KEY)) for _ in range(20)]
        assert {(await next_state(states)).cart.total_quantity for states in all_states} == {1}
        await watched.store.mutate(add())
        assert {(await next_state(states)).cart.total_quantity for states in all_states} == {2}
    assert watched.reads.read_count == watched.reads.whole_cart_count == 2


async def test_a_change_of_another_cart_causes_no_read(watched: Watched) -> None:
    await watched.store.mutate(add())
    with watched.watch(KEY) as states:
        await next_state(states)
        await watched.store.mutate(add(key=OTHER))
        assert watched.reads.read_count == 1
        assert await count(watched.reads._engine, schema.carts) == 2


async def test_a_slow_watcher_gets_only_the_last_state(watched: Watched) -> None:
    await watched.store.mutate(add())
    with watched.watch(KEY) as slow, watched.watch(KEY) as quick:
        for quantity in range(1, 6):
            await state_with(quick, quantity)
            await watched.store.mutate(add())
        await state_with(quick, 6)
        assert (await next_state(slow)).cart.total_quantity == 6
        assert not slow.has_pending


async def test_a_missing_cart_is_none_until_it_is_created(watched: Watched) -> None:
    with watched.watch(KEY) as states:
        assert await anext(states) is None
        await watched.store.mutate(add())
        assert (await next_state(states)).cart.total_quantity == 1


async def test_a_purged_cart_becomes_none(polled: Watched, engine: Engine) -> None:
    await decided(polled.store)
    await polled.store.mutate(remove())
    await release_all(polled.store)
    with polled.watch(KEY) as states:
        await next_state(states)
        await overwrite(engine, schema.carts, update_time=0, ttl_us=1)
        assert await polled.store.expire(KEY)
        await next_state(states)
        await polled.store.purge(Purge(0, 0, 0, 100))
        async with asyncio.timeout(20):
            assert await anext(states) is None


async def test_the_end_of_a_hold_wakes_a_watcher_without_a_commit(watched: Watched, engine: Engine) -> None:
    await decided(watched.store)
    lifetimes = growing(1)
    while True:
        end = app.clock() + int(next(lifetimes) * SECOND)
        await overwrite(engine, schema.reservations, expire_time=end + HOLD_MARGIN_US, due_time=end + HOUR)
        before = watched.reads.whole_cart_count
        with watched.watch(KEY) as states:
            if shown(await next_state(states)) is not ProgressState.RESERVED:
                # The hold had ended before the watch began.
                continue
            state = await next_state(states)
            break
    assert shown(state) is ProgressState.EXPIRED
    assert state.now >= end
    assert watched.reads.whole_cart_count == before + 2


async def test_polls_find_the_commits_of_another_process(polled: Watched, unhinted: Store) -> None:
    await polled.store.mutate(add())
    with polled.watch(KEY) as states:
        await next_state(states)
        await unhinted.mutate(add())
        await state_with(states, 2)
        await unhinted.record(answered(await claim_one(unhinted)))
        assert shown(await next_state(states)) is ProgressState.RESERVED


async def test_a_hanging_call_costs_one_read_of_the_whole_cart_however_often_it_is_polled(
    polled: Watched, unhinted: Store
) -> None:
    await polled.store.mutate(add())
    with polled.watch(KEY) as states:
        await next_state(states)
        claimed = await claim_one(unhinted)
        for _ in range(3):
            # More checks than a max_wait of 30 s makes.
            before = polled.reads.check_count
            await until(lambda before=before: polled.reads.check_count > before + 34)  # type: ignore[misc]
            await unhinted.record(silent(claimed))
            claimed = await claim_one(unhinted)
        assert polled.reads.whole_cart_count == 1
        await unhinted.record(answered(claimed, expire_time=claimed.create_time + claimed.ttl_us))
        assert shown(await next_state(states)) is ProgressState.RESERVED
    assert polled.reads.whole_cart_count == 2


async def test_a_cart_is_read_whole_again_after_its_greatest_age_and_an_equal_one_is_no_new_state(
    polled: Watched, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cart_watches, "MAX_WATCH_AGE_US", 0)
    await decided(polled.store)
    with polled.watch(KEY) as states:
        await next_state(states)
        await until(lambda: polled.reads.whole_cart_count > 3)
        assert not states.has_pending
        # A change by hand raises no revision.
        await overwrite(engine, schema.items, quantity=7)
        assert (await next_state(states)).lines[0].item.quantity == 7


async def test_a_failed_first_read_is_raised_and_a_later_one_is_tried_again(watched: Watched) -> None:
    await watched.store.mutate(add())
    watched.reads.error = Overloaded()
    with watched.watch(KEY) as states, pytest.raises(Overloaded):
        await anext(states)
    watched.reads.error = None
    with watched.watch(KEY) as states:
        await next_state(states)
        watched.reads.error = DatabaseUnavailable()
        await watched.store.mutate(add())
        await until(lambda: watched.reads.read_count > 4)
        watched.reads.error = None
        assert (await next_state(states)).cart.total_quantity == 2


async def test_a_bug_in_a_read_is_raised_in_every_watcher_of_the_cart_alone(watched: Watched) -> None:
    for key in (KEY, OTHER):
        await watched.store.mutate(add(key=key))
    with watched.watch(KEY) as states, watched.watch(OTHER) as others:
        await next_state(states)
        await next_state(others)
        watched.reads.error = ZeroDivisionError("bug")
        await watched.store.mutate(clear())
        with pytest.raises(ZeroDivisionError):
            await next_state(states)
        watched.reads.error = None
        await watched.store.mutate(add(key=OTHER))
        await state_with(others, 2)


async def test_a_stop_ends_every_watch_after_its_pending_state(watched: Watched) -> None:
    await watched.store.mutate(add())
    with watched.watch(KEY) as idle, watched.watch(KEY) as pending:
        await next_state(idle)
        await until(lambda: pending.has_pending)
        watched.notifier.close()
        assert [state async for state in idle] == []
        assert len([state async for state in pending]) == 1
    # A call that is still being answered gets the current state.
    with watched.watch(KEY) as late:
        assert [state.cart.total_quantity async for state in late if state] == [1]


async def test_a_watcher_that_leaves_leaves_nothing_behind(polled: Watched) -> None:
    await polled.store.mutate(add())
    tasks = asyncio.all_tasks()

    async def watch_until_cancelled() -> None:
        with polled.watch(KEY) as states:
            async for _ in states:
                pass

    watchers = [asyncio.create_task(watch_until_cancelled()) for _ in range(10)]
    await until(lambda: polled.reads.read_count > 0 and polled.reads.check_count > 10)
    (subscription,) = polled.watches._subscriptions.values()
    for watcher in watchers:
        watcher.cancel()
    await asyncio.wait(watchers)
    assert not subscription.watchers
    assert not subscription.new
    assert not polled.watches._subscriptions
    assert not polled.watches._due
    await until(polled.is_idle)
    await until(lambda: asyncio.all_tasks() <= tasks)
    assert subscription.timer is None
    reads = polled.reads.read_count
    await polled.store.mutate(add())
    assert polled.reads.read_count == reads


async def test_a_wait_that_is_cancelled_misses_no_state(watched: Watched) -> None:
    await watched.store.mutate(add())
    with watched.watch(KEY) as states:
        await next_state(states)
        waiting = asyncio.ensure_future(anext(states))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await watched.store.mutate(add())
        assert (await next_state(states)).cart.total_quantity == 2


async def test_thousands_of_polls_leave_room_in_the_queue_of_reads(watched: Watched) -> None:
    keys = [cart_key(user_key(f"user{number}"), "default") for number in range(1_500)]
    with ExitStack() as stack:
        all_states = [stack.enter_context(watched.watch(key)) for key in keys]
        first = asyncio.ensure_future(asyncio.gather(*map(anext, all_states)))
        for _ in range(20):
            await asyncio.sleep(0)
            assert await watched.reads.find_cart(KEY) is None
        assert await first == [None] * len(keys)
    assert watched.reads.read_count == len(keys)
