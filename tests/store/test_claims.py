"""Claims: leases save work, epochs keep overtaken workers from the bookkeeping, every answer counts."""

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from cart_grpc import app
from cart_grpc.commands.direct import ExtendLeases, ReturnClaims
from cart_grpc.names import cart_key, user_key
from cart_grpc.protocol.lanes import HOLD_LANE, RELEASE_LANE
from cart_grpc.protocol.reservation import Observed
from cart_grpc.store.engine import Engine
from cart_grpc.store.store import Store
from tests.databases import SHARDED, open_database
from tests.postgres import PostgresServer
from tests.store.writes import (
    KEY,
    LEASE,
    SECOND,
    add,
    answered,
    claim,
    claim_one,
    release_all,
    remove,
    row_of,
    silent,
    snapshot,
)

# A lease that has expired when the next statement runs.
NO_TIME = 1


async def test_a_claim_raises_epoch_and_attempt_count_and_no_other_claim_gets_the_row(store: Store) -> None:
    await store.mutate(add())
    claimed = await claim_one(store)
    assert (claimed.lease_epoch, claimed.attempt_count) == (1, 1)
    assert await claim(store) == []


async def test_a_claim_takes_up_to_its_limit_and_the_longest_due_first(store: Store) -> None:
    for sku in "abcde":
        await store.mutate(add(sku))
    first = await claim(store, limit=2)
    assert sorted(row.sku for row in first) == ["a", "b"]
    assert sorted(row.sku for row in await claim(store)) == ["c", "d", "e"]


async def test_concurrent_claims_share_the_due_rows_without_overlap(store: Store) -> None:
    for number in range(20):
        await store.mutate(add(f"sku-{number}"))
    shares = await asyncio.gather(*(claim(store, limit=4) for _ in range(8)))
    taken = [row.reservation_id for share in shares for row in share]
    assert len(taken) == len(set(taken)) == 20


async def test_a_row_with_an_expired_lease_is_claimed_again_under_a_higher_epoch(store: Store) -> None:
    await store.mutate(add())
    first = await claim_one(store, lease=NO_TIME)
    second = await claim_one(store)
    assert second.reservation_id == first.reservation_id
    assert (second.lease_epoch, second.attempt_count) == (2, 2)


async def test_an_overtaken_claim_cannot_change_the_bookkeeping(store: Store, engine: Engine) -> None:
    await store.mutate(add())
    overtaken = await claim_one(store, lease=NO_TIME)
    current = await claim_one(store)
    await store.record(silent(overtaken, retry_delay=SECOND))
    row = await row_of(engine, current.reservation_id)
    assert (row.lease_epoch, row.lease_expire_time, row.due_time) == (2, current.lease_expire_time, current.due_time)
    assert row.last_error == ""


async def test_a_decision_recorded_under_an_overtaken_claim_counts(store: Store) -> None:
    await store.mutate(add(quantity=2))
    overtaken = await claim_one(store, lease=NO_TIME)
    await claim_one(store)
    recorded = await store.record(answered(overtaken))
    assert (recorded.reservation.state, recorded.reservation.granted_quantity) == (Observed.HELD, 2)
    assert recorded.reservation.settled
    assert await claim(store) == []


async def test_a_late_answer_for_an_older_revision_changes_nothing(store: Store) -> None:
    await store.mutate(add(quantity=2))
    old = await claim_one(store, lease=NO_TIME)
    await store.mutate(add(quantity=3))
    await store.record(answered(await claim_one(store)))
    before = await snapshot(store)
    recorded = await store.record(answered(old))
    after = await snapshot(store)
    assert (recorded.reservation.observed_revision, recorded.reservation.granted_quantity) == (2, 5)
    assert (after.cart, after.lines) == (before.cart, before.lines)


async def test_the_same_answer_recorded_twice_concurrently_counts_once(store: Store) -> None:
    await store.mutate(add())
    claimed = await claim_one(store)
    await asyncio.gather(store.record(answered(claimed)), store.record(answered(claimed)))
    assert (await snapshot(store)).cart.revision == 2


async def test_a_call_without_an_answer_is_due_again_after_its_retry_delay(store: Store) -> None:
    await store.mutate(add())
    await store.record(silent(await claim_one(store), retry_delay=3600 * SECOND))
    assert await claim(store) == []
    await store.mutate(add())
    await store.record(silent(await claim_one(store), retry_delay=0))
    assert (await claim_one(store)).attempt_count == 2


async def test_holds_and_releases_have_separate_lanes(store: Store) -> None:
    for sku in ("kept", "gone"):
        await store.mutate(add(sku))
    await store.mutate(remove("gone"))
    assert [row.sku for row in await claim(store, HOLD_LANE)] == ["kept"]
    assert [row.sku for row in await claim(store, RELEASE_LANE)] == ["gone"]


async def test_a_release_is_claimed_while_the_call_for_the_hold_hangs(store: Store) -> None:
    await store.mutate(add())
    hanging = await claim_one(store)
    await store.mutate(remove())
    releasing = await claim_one(store, RELEASE_LANE)
    assert releasing.lease_epoch > hanging.lease_epoch
    await store.record(answered(releasing))
    late = await store.record(answered(hanging))
    assert late.reservation.state is Observed.RELEASED


async def test_a_change_during_a_hanging_call_is_due_after_its_answer(store: Store) -> None:
    await store.mutate(add())
    hanging = await claim_one(store)
    await store.mutate(add())
    assert await claim(store) == []
    await store.record(answered(hanging))
    assert (await claim_one(store)).quantity == 2


async def test_an_overtaken_claim_is_not_extended(store: Store, engine: Engine) -> None:
    await store.mutate(add())
    overtaken = await claim_one(store, lease=NO_TIME)
    current = await claim_one(store)
    await store.update_leases(ExtendLeases([overtaken], 100 * LEASE))
    assert (await row_of(engine, current.reservation_id)).lease_expire_time == current.lease_expire_time
    await store.update_leases(ExtendLeases([current], 100 * LEASE))
    row = await row_of(engine, current.reservation_id)
    assert row.lease_expire_time == row.due_time > (current.lease_expire_time or 0)


async def test_an_overtaken_claim_is_not_returned(store: Store) -> None:
    await store.mutate(add())
    overtaken = await claim_one(store, lease=NO_TIME)
    current = await claim_one(store)
    await store.update_leases(ReturnClaims([overtaken]))
    assert await claim(store) == []
    await store.update_leases(ReturnClaims([current]))
    assert (await claim_one(store)).lease_epoch == 3


async def test_a_settled_reservation_is_neither_extended_nor_returned(store: Store) -> None:
    await store.mutate(add())
    claimed = await claim_one(store)
    await store.record(answered(claimed))
    await store.update_leases(ExtendLeases([claimed], LEASE))
    await store.update_leases(ReturnClaims([claimed]))
    assert await claim(store) == []


async def test_the_hold_of_a_readded_item_waits_until_the_old_release_is_recorded(store: Store) -> None:
    await store.mutate(add())
    await store.mutate(remove())
    await store.mutate(add())
    assert await claim(store) == []
    waiting = (await snapshot(store)).lines[0].reservation
    assert waiting.waiting
    await release_all(store)
    assert (await claim_one(store)).reservation_id == waiting.reservation_id


async def test_the_hold_of_a_readded_item_waits_for_every_older_release(store: Store) -> None:
    for _ in range(2):
        await store.mutate(add())
        await store.mutate(remove())
    await store.mutate(add())
    first, second = await claim(store, RELEASE_LANE)
    await store.record(answered(first))
    assert await claim(store) == []
    await store.record(answered(second))
    await claim_one(store)


async def test_a_release_without_an_answer_keeps_the_new_hold_waiting(store: Store) -> None:
    await store.mutate(add())
    await store.mutate(remove())
    await store.mutate(add())
    await store.record(silent(await claim_one(store, RELEASE_LANE)))
    assert await claim(store) == []


@pytest.mark.parametrize("stranger", ["another sku", "another user"])
async def test_holds_of_other_skus_and_users_do_not_wait_for_a_release(store: Store, stranger: str) -> None:
    key = KEY if stranger == "another sku" else cart_key(user_key("bob"), "default")
    await store.mutate(add("shared"))
    await store.mutate(remove("shared"))
    await store.mutate(add("filters" if key == KEY else "shared", key=key))
    await claim_one(store)


async def test_a_claim_on_postgresql_skips_a_row_that_another_replica_has_locked(
    postgres: PostgresServer,
) -> None:
    url = postgres.create_database("sharded_locked_rows", template=SHARDED)
    engine, other_replica = open_database(url), create_async_engine(url)
    store = Store(engine, app.new_id, queue_size=10)
    await store.start()
    await store.mutate(add("locked"))
    await store.mutate(add("free"))
    async with other_replica.begin() as connection:
        await connection.execute(text("SELECT 1 FROM reservations WHERE sku = 'locked' FOR UPDATE"))
        assert [row.sku for row in await claim(store)] == ["free"]
    assert [row.sku for row in await claim(store)] == ["locked"]
    await other_replica.dispose()
    await store.close()
    await engine.close()


async def test_a_hold_ends_at_most_its_ttl_after_its_call_began(store: Store) -> None:
    await store.mutate(add())
    claimed = await claim_one(store)
    claim_time = (claimed.lease_expire_time or 0) - LEASE
    late = answered(claimed, expire_time=claim_time + 100 * claimed.ttl_us)
    began = replace(late, claim_time=claim_time, elapsed_us=lambda: 0)
    assert (await store.record(began)).reservation.expire_time == claim_time + claimed.ttl_us


async def test_a_hold_is_limited_by_the_calls_duration_if_the_clock_was_set_back_during_the_call(store: Store) -> None:
    await store.mutate(add())
    claimed = await claim_one(store)
    claim_time = (claimed.lease_expire_time or 0) - LEASE
    late = answered(claimed, expire_time=claim_time + 100 * claimed.ttl_us)
    # By the clock as it is now, the claim was made an hour from now. The call took a minute.
    record = replace(late, claim_time=claim_time + 3600 * SECOND, elapsed_us=lambda: 60 * SECOND)
    ends = (await store.record(record)).reservation.expire_time or 0
    assert -60 * SECOND <= ends - claim_time - claimed.ttl_us < 0
