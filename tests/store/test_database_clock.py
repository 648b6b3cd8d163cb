"""A step back of the database's clock on real databases.

A process cannot tell whether the database's clock was set back by an hour, or its own monotonic clock went on by an
hour more. So these tests move the monotonic clock, and store times as a clock that was ahead would have.
"""

import logging
from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import update

from cart_grpc import app
from cart_grpc.background.claims import key_of
from cart_grpc.background.clock_watcher import ClockWatcher
from cart_grpc.background.recorded_attempt import RecordedAttempt
from cart_grpc.commands.direct import SetAside
from cart_grpc.commands.record import OpenAttempt
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.rpc.get_cart_cache import GetCartCache
from cart_grpc.store import database_clock, schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.store import Store
from tests.store.writes import HOUR, KEY, LEASE, SECOND, add, answered, claim, claim_one, overwrite, row_of, silent

LONGEST_ATTEMPT = 180 * SECOND


class MovableClock:
    """The monotonic clock in microseconds, `ahead` of the real one."""

    def __init__(self) -> None:
        self.ahead = 0

    def __call__(self) -> int:
        return app.monotonic_us() + self.ahead


class Setting:
    """A store, and a watcher of its clock that has looked once."""

    def __init__(self, store: Store, engine: Engine) -> None:
        self.store = store
        self.engine = engine
        self.monotonic = MovableClock()
        self.watcher = self.new_watcher()

    def new_watcher(self) -> ClockWatcher:
        return ClockWatcher(self.store.clock(self.monotonic, LONGEST_ATTEMPT))

    async def set_back(self, us: int = HOUR) -> None:
        """Set the database's clock back, as far as the watchers see."""
        self.monotonic.ahead += us
        await self.watcher.run_once()

    async def move_times(self, table: Any, us: int, *names: str) -> None:
        """Store times as a clock that is ahead by `us` would have."""
        columns: Mapping[str, Any] = {name: table.c[name] + us for name in names}
        await self.engine.transact(lambda connection: connection.execute(update(table).values(**columns)))

    async def row(self, reservation: Reservation) -> Any:
        return await row_of(self.engine, reservation.reservation_id)


@pytest.fixture
async def setting(store: Store, engine: Engine) -> Setting:
    setting = Setting(store, engine)
    await setting.watcher.run_once()
    return setting


async def test_what_backs_off_is_due_when_it_would_have_been(setting: Setting) -> None:
    await setting.store.mutate(add())
    claimed = await claim_one(setting.store)
    await setting.store.record(silent(claimed, retry_delay=60 * SECOND))
    before = await setting.row(claimed)
    await setting.move_times(schema.reservations, HOUR, "due_time")
    await setting.set_back()
    assert -SECOND < (await setting.row(claimed)).due_time - before.due_time <= 0


async def test_a_wait_that_is_over_stays_over_and_none_moves_to_before_now(setting: Setting) -> None:
    await setting.store.mutate(add())
    await setting.set_back()
    assert len(await claim(setting.store)) == 1


async def test_a_hold_ends_when_it_would_have_ended(setting: Setting) -> None:
    await setting.store.mutate(add())
    claimed = await claim_one(setting.store)
    await setting.store.record(answered(claimed))
    before = await setting.row(claimed)
    await setting.move_times(schema.reservations, HOUR, "due_time", "expire_time")
    await setting.set_back()
    after = await setting.row(claimed)
    assert -SECOND < after.expire_time - before.expire_time <= 0
    assert -SECOND < after.due_time - before.due_time <= 0


async def test_a_hold_that_is_set_aside_ends_when_it_would_have_ended(setting: Setting) -> None:
    await setting.store.mutate(add())
    claimed = await claim_one(setting.store)
    await setting.store.record(answered(claimed))
    assert await setting.store.set_aside(SetAside(key_of(claimed), "why"))
    before = await setting.row(claimed)
    await setting.move_times(schema.reservations, HOUR, "expire_time")
    await setting.set_back()
    assert -SECOND < (await setting.row(claimed)).expire_time - before.expire_time <= 0


async def test_the_claim_of_a_lost_process_ends_when_its_lease_would_have_ended(setting: Setting) -> None:
    await setting.store.mutate(add())
    lost = await claim_one(setting.store, lease=SECOND)
    await setting.move_times(schema.reservations, HOUR, "due_time", "lease_expire_time")
    await setting.set_back(HOUR + 2 * SECOND)
    again = await claim_one(setting.store)
    assert (again.reservation_id, again.lease_epoch) == (lost.reservation_id, lost.lease_epoch + 1)


async def open_attempt(setting: Setting) -> Reservation:
    await setting.store.mutate(add())
    claimed = await claim_one(setting.store)
    await setting.store.open_attempt(OpenAttempt(claimed, LONGEST_ATTEMPT))
    return claimed


async def test_an_attempt_that_may_take_effect_never_ends_early(setting: Setting) -> None:
    claimed = await open_attempt(setting)
    before = await setting.row(claimed)
    await setting.set_back()
    assert (await setting.row(claimed)).uncertain_until == before.uncertain_until


async def test_an_attempt_that_may_take_effect_ends_as_soon_as_any_can_have_ended(setting: Setting) -> None:
    claimed = await open_attempt(setting)
    await setting.move_times(schema.reservations, HOUR, "uncertain_until")
    now = (await setting.store.clock(setting.monotonic, 0).read(0)).now
    await setting.set_back()
    left = (await setting.row(claimed)).uncertain_until - now
    assert LONGEST_ATTEMPT <= left < LONGEST_ATTEMPT + 30 * SECOND


async def test_an_attempt_gets_its_longest_time_again_after_a_step_forward(setting: Setting) -> None:
    claimed = await open_attempt(setting)
    # By a clock that was set forward, the attempt ended an hour ago.
    await setting.move_times(schema.reservations, -HOUR - LONGEST_ATTEMPT, "uncertain_until", "due_time")
    now = (await setting.store.clock(setting.monotonic, 0).read(0)).now
    setting.monotonic.ahead -= HOUR + LONGEST_ATTEMPT
    await setting.watcher.run_once()
    assert (await setting.row(claimed)).uncertain_until >= now + LONGEST_ATTEMPT
    assert await setting.store.open_attempt(OpenAttempt(claimed, LONGEST_ATTEMPT)) is None


async def test_no_attempt_is_opened_right_after_a_step_forward(setting: Setting) -> None:
    claimed = await open_attempt(setting)
    await setting.move_times(schema.reservations, -HOUR - LONGEST_ATTEMPT, "uncertain_until")
    setting.monotonic.ahead -= HOUR + LONGEST_ATTEMPT
    # The watcher looks twice a second. It has not looked since the step.
    attempt = RecordedAttempt(setting.store, claimed, LEASE, SECOND, setting.watcher.run_once)
    assert not await attempt.open(SECOND)


async def test_an_attempt_that_was_over_before_a_step_forward_stays_over(setting: Setting) -> None:
    claimed = await open_attempt(setting)
    await setting.move_times(schema.reservations, -3 * HOUR, "uncertain_until")
    before = await setting.row(claimed)
    setting.monotonic.ahead -= HOUR
    await setting.watcher.run_once()
    assert (await setting.row(claimed)).uncertain_until == before.uncertain_until


async def test_a_process_that_starts_counts_all_waits_as_over_if_the_last_commit_is_in_the_future(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    await setting.store.mutate(add())
    claimed = await claim_one(setting.store)
    await setting.store.record(answered(claimed))
    assert await claim(setting.store) == []
    # A process that is gone wrote it.
    await overwrite(setting.engine, schema.commit_markers, update_time=2**60)
    with caplog.at_level(logging.WARNING):
        await setting.new_watcher().run_once()
        await setting.new_watcher().run_once()
    assert caplog.text.count("the database's clock was set back while no process ran") == 1
    [renewed] = await claim(setting.store)
    assert renewed.revision == claimed.revision + 1


async def test_a_commit_after_the_step_does_not_hide_an_earlier_one_from_a_process_that_starts(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    await setting.store.mutate(add())
    # The clock was ahead then.
    await overwrite(setting.engine, schema.commit_markers, update_time=2**60)
    # A process that stops does not look at the clock any more, but still records answers.
    await setting.store.mutate(add())
    with caplog.at_level(logging.WARNING):
        await setting.new_watcher().run_once()
        await setting.store.mutate(add())
        await setting.new_watcher().run_once()
    assert caplog.text.count("the database's clock was set back while no process ran") == 1


async def test_two_processes_that_see_a_step_move_the_times_once(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    await setting.store.mutate(add())
    claimed = await claim_one(setting.store)
    await setting.store.record(silent(claimed, retry_delay=3 * HOUR))
    other = setting.new_watcher()
    await other.run_once()
    with caplog.at_level(logging.WARNING):
        # Each sees the step within a second.
        setting.monotonic.ahead += HOUR
        await setting.watcher.run_once()
        first = await setting.row(claimed)
        await other.run_once()
    assert (await setting.row(claimed)).due_time == first.due_time
    assert caplog.text.count("the database's clock was set back by 3600.") == 1


async def test_times_move_in_parts_and_another_process_can_go_on(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_clock, "MOVE_US", 0)
    clock = setting.store.clock(setting.monotonic, LONGEST_ATTEMPT)
    last = await clock.read(0)
    setting.monotonic.ahead += HOUR
    row = (await clock.notice(0, last)).row
    assert row.is_moving
    assert row.next_slice == database_clock.SLICES_PER_STATEMENT
    await setting.new_watcher().run_once()
    assert not (await clock.move(0)).is_moving


async def test_a_cached_reply_is_not_used_after_a_step(setting: Setting) -> None:
    await setting.store.mutate(add())
    await setting.store.record(answered(await claim_one(setting.store)))
    cache = GetCartCache(setting.store.reads)
    first = await cache.get_reply(KEY)
    await setting.set_back(60 * SECOND)
    assert await cache.get_reply(KEY) != first


@pytest.mark.one_shard
async def test_without_a_step_nothing_is_written(setting: Setting) -> None:
    await setting.watcher.run_once()
    [row] = await setting.engine.transact(lambda connection: connection.execute(schema.clock.select()).all())
    assert row.set_back_time == 0
