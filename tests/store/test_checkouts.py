"""Checkouts from begin to end, on both databases."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from sqlalchemy import select

from cart_grpc import app
from cart_grpc.background.sweeper import Retention, Sweeper
from cart_grpc.carts.checkout_refusals import (
    CartFrozen,
    CheckoutClosed,
    CheckoutCompleted,
    CheckoutExpired,
    CheckoutNotFound,
    CheckoutNotReady,
    NotReserved,
)
from cart_grpc.carts.model import CartState, CheckoutState
from cart_grpc.commands.checkout import EndCheckout
from cart_grpc.commands.direct import Purge
from cart_grpc.commands.operator import Release
from cart_grpc.protocol.lanes import HOLD_LANE
from cart_grpc.protocol.reservation import Disposition, Observed
from cart_grpc.store import migration_run, schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.restore import raise_revisions
from cart_grpc.store.store import Store
from tests.databases import open_database
from tests.store.checkouts import (
    LONG,
    all_rows,
    begin,
    begun,
    cancel,
    checkout_of,
    claim_of_checkout,
    complete,
    completing,
    failed,
    hold_items,
    key_in,
    refused,
    rows_of,
    sold,
    state_of,
)
from tests.store.writes import (
    HOUR,
    KEY,
    LIMITS,
    SECOND,
    add,
    answered,
    claim,
    clear,
    count,
    overwrite,
    release_all,
    row_of,
    snapshot,
)

NEVER = 10**15


def a_sweeper(store: Store) -> Sweeper:
    return Sweeper(store, Retention(HOUR, HOUR, HOUR), HOUR)


async def test_a_sale_passes_the_items_to_the_checkout_and_frees_the_name_of_the_cart(
    store: Store, engine: Engine
) -> None:
    key, claimed = await completing(store, "a", "b")
    assert {row.disposition for row in claimed} == {Disposition.COMMIT}
    assert (await snapshot(store)).cart.state is CartState.CHECKED_OUT
    assert not (await snapshot(store)).lines
    await store.mutate(add("a", 3))
    assert (await snapshot(store)).cart.total_quantity == 3
    for row in claimed:
        assert await state_of(engine, key) is CheckoutState.COMPLETING
        await store.record(sold(row))
    assert await state_of(engine, key) is CheckoutState.COMPLETED
    assert await count(engine, schema.checkout_items) == 2
    # The new hold of "a" did not wait for the old reservation, and knows nothing of it.
    [fresh] = await claim(store, HOLD_LANE)
    assert fresh.quantity == 3


async def test_a_call_that_adds_an_item_during_a_checkout_is_refused_and_nothing_is_wiped(store: Store) -> None:
    key = await begun(store, "a")
    with pytest.raises(CartFrozen) as refusal:
        await store.mutate(add("b"))
    assert refusal.value.metadata["checkout"] == key.name
    with pytest.raises(CartFrozen):
        await store.mutate(clear())
    assert (await snapshot(store)).cart.item_count == 1


@pytest.mark.parametrize("together", [True, False])
async def test_two_begins_make_one_checkout(store: Store, engine: Engine, together: bool) -> None:
    await hold_items(store, "a", "b")
    if together:
        replies = await asyncio.gather(*(store.mutate(begin()) for _ in range(5)))
    else:
        replies = [await store.mutate(begin()) for _ in range(2)]
    assert len(set(map(key_in, replies))) == 1
    assert await count(engine, schema.checkouts) == 1


async def test_completing_twice_sells_once_and_gives_the_same_answer(store: Store, engine: Engine) -> None:
    key = await begun(store, "a")
    first, second = await asyncio.gather(store.mutate(complete(key)), store.mutate(complete(key)))
    assert first == second
    [row] = await claim_of_checkout(store)
    await store.record(sold(row))
    assert json.loads(await store.mutate(complete(key)))[1:3] == ["COMPLETED", ["a"]]
    assert await claim_of_checkout(store) == []
    assert (await row_of(engine, row.reservation_id)).revision == row.revision


async def test_a_repeated_request_id_gets_the_same_bytes(store: Store) -> None:
    await hold_items(store, "a")
    first = await store.mutate(begin(request_id="q"))
    key = key_in(first)
    await store.mutate(complete(key))
    assert await store.mutate(begin(request_id="q")) == first


async def test_holds_that_end_too_early_are_extended_and_the_checkout_is_ready_once_they_outlast_the_window(
    store: Store, engine: Engine
) -> None:
    key = await begun(store, "a", "b", window=LONG)
    assert not (await checkout_of(engine, key)).is_ready
    with pytest.raises(CheckoutNotReady):
        await store.mutate(complete(key))
    first, second = await claim_of_checkout(store)
    assert first.ttl_us > LONG
    for claimed, ready in ((first, False), (second, True)):
        await store.record(answered(claimed))
        assert (await checkout_of(engine, key)).is_ready is ready
    await store.mutate(complete(key))


async def test_a_hold_that_is_granted_for_less_than_the_window_thaws_the_cart(store: Store, engine: Engine) -> None:
    key = await begun(store, "a", "b", window=LONG)
    first, _ = await claim_of_checkout(store)
    await store.record(answered(first, expire_time=first.create_time + LONG - SECOND))
    ended = await checkout_of(engine, key)
    assert (ended.state, ended.reason) == (CheckoutState.CANCELLED, "HOLD_TOO_SHORT")
    assert (await snapshot(store)).cart.state is CartState.ACTIVE
    assert {row.ttl_us for row in await rows_of(store)} == {LIMITS.hold_ttl_us}
    # The other hold's extension was under way: another revision restores its ttl, in the lane of ordinary holds.
    assert [row.reservation_id != first.reservation_id for row in await claim(store, HOLD_LANE)] == [True]
    await store.mutate(add("c"))


async def test_a_hold_that_is_lost_thaws_the_cart(store: Store, engine: Engine) -> None:
    key = await begun(store, "a", window=LONG)
    [claimed] = await claim_of_checkout(store)
    await store.record(answered(claimed, state=Observed.EXPIRED, granted_quantity=0, expire_time=None))
    assert (await checkout_of(engine, key)).reason == "HOLD_LOST"
    with pytest.raises(CheckoutClosed):
        await store.mutate(complete(key))
    with pytest.raises(NotReserved):
        await store.mutate(begin())


async def test_the_sweeper_ends_a_window_and_complete_refuses_even_before(store: Store, engine: Engine) -> None:
    key = await begun(store, "a")
    await overwrite(engine, schema.checkouts, expire_time=1)
    with pytest.raises(CheckoutExpired):
        await store.mutate(complete(key))
    assert (await a_sweeper(store).run_once()).changed["end windows"] == 1
    assert await state_of(engine, key) is CheckoutState.EXPIRED
    assert (await snapshot(store)).cart.state is CartState.ACTIVE
    with pytest.raises(CheckoutExpired):
        await store.mutate(complete(key))


@pytest.mark.parametrize("thaw_first", [True, False])
async def test_a_thaw_that_races_a_completion_leaves_one_of_them(
    store: Store, engine: Engine, thaw_first: bool
) -> None:
    key = await begun(store, "a")
    calls = [store.mutate(cancel(key)), store.mutate(complete(key))]
    outcomes = await asyncio.gather(*(calls if thaw_first else reversed(calls)), return_exceptions=True)
    state, cart = await state_of(engine, key), (await snapshot(store)).cart.state
    if thaw_first:
        assert isinstance(outcomes[1], CheckoutClosed)
        assert (state, cart) == (CheckoutState.CANCELLED, CartState.ACTIVE)
    else:
        assert isinstance(outcomes[1], CheckoutCompleted)
        assert (state, cart) == (CheckoutState.COMPLETING, CartState.CHECKED_OUT)


async def test_the_sweeper_makes_up_for_a_lost_trigger(store: Store, engine: Engine) -> None:
    key, claimed = await completing(store, "a", "b")
    for row in claimed:
        await store.record(sold(row))
    await overwrite(engine, schema.checkouts, state=int(CheckoutState.COMPLETING))
    assert (await a_sweeper(store).run_once()).changed["evaluate checkouts"] == 1
    assert await state_of(engine, key) is CheckoutState.COMPLETED
    assert (await a_sweeper(store).run_once()).total == 0


async def test_the_sweeper_finds_a_ready_checkout_that_lost_a_hold(store: Store, engine: Engine) -> None:
    key = await begun(store, "a")
    assert (await a_sweeper(store).run_once()).total == 0
    await overwrite(engine, schema.reservations, state=int(Observed.EXPIRED), granted_quantity=0)
    assert (await a_sweeper(store).run_once()).changed["evaluate checkouts"] == 1
    assert (await checkout_of(engine, key)).reason == "HOLD_LOST"


async def test_a_refused_commit_fails_the_checkout_and_completing_again_asks_for_the_refused_items(
    store: Store, engine: Engine
) -> None:
    key, [first, second] = await completing(store, "a", "b")
    await store.record(sold(first))
    recorded = await store.record(refused(second))
    assert recorded.alarm
    assert "FAILED" in recorded.alarm
    assert await state_of(engine, key) is CheckoutState.FAILED
    await store.mutate(complete(key))
    [again] = await claim_of_checkout(store)
    assert (again.reservation_id, again.revision) == (second.reservation_id, second.revision + 1)
    await store.record(sold(again))
    assert await state_of(engine, key) is CheckoutState.COMPLETED


async def test_cancelling_a_failed_checkout_releases_what_is_not_sold(store: Store, engine: Engine) -> None:
    key = await failed(store, "a", "b")
    reply = json.loads(await store.mutate(cancel(key)))
    assert reply[1:3] == ["CANCELLED", ["a", "b"]]
    await release_all(store)
    table = schema.reservations
    rows = await engine.transact(lambda connection: connection.execute(select(table.c.sku, table.c.state)).all())
    assert sorted(map(tuple, rows)) == [("a", Observed.RELEASED), ("b", Observed.COMMITTED)]


async def test_an_item_that_an_operator_released_gets_a_new_reservation_when_the_sale_is_completed_again(
    store: Store, engine: Engine
) -> None:
    key = await failed(store, "a", "b")
    [stuck] = [row for row in await all_rows(engine) if row.sku == "a"]
    await store.intervene(Release(stuck, "gone", force=True))
    await store.mutate(complete(key))
    [again] = await claim_of_checkout(store)
    assert (again.sku, again.disposition, again.revision) == ("a", Disposition.COMMIT, 1)
    assert again.reservation_id != stuck.reservation_id
    await store.record(sold(again))
    assert await state_of(engine, key) is CheckoutState.COMPLETED


async def test_a_release_by_an_operator_thaws_the_cart_in_the_same_transaction(store: Store, engine: Engine) -> None:
    await hold_items(store, "a", "b")
    # Read before the checkout begins, as an operator's page may be.
    [stale, _] = await rows_of(store)
    key = key_in(await store.mutate(begin()))
    await store.intervene(Release(stale, "gone", force=False))
    assert (await checkout_of(engine, key)).reason == "HOLD_LOST"
    assert (await snapshot(store)).cart.state is CartState.ACTIVE
    assert {row.checkout_id for row in await rows_of(store)} == {""}


async def test_an_operator_ends_a_checkout_in_each_state(store: Store, engine: Engine) -> None:
    key = await begun(store, "a")
    ended = await store.intervene(EndCheckout(key, "stuck", force=False))
    assert (ended.view.checkout.state, ended.view.checkout.reason) == (CheckoutState.CANCELLED, "ENDED_BY_OPERATOR")
    key = key_in(await store.mutate(begin()))
    await store.mutate(complete(key))
    with pytest.raises(CheckoutCompleted):
        await store.intervene(EndCheckout(key, "stuck", force=False))
    ended = await store.intervene(EndCheckout(key, "stuck", force=True))
    assert ended.view.checkout.state is CheckoutState.COMPLETED
    assert ended.alarm
    assert "1 of a" in ended.alarm
    with pytest.raises(CheckoutNotFound):
        await store.intervene(EndCheckout(KEY.checkout("0" * 36), "stuck", force=False))


async def test_a_checkout_and_its_reservations_are_purged_together_and_leave_no_bytes(
    store: Store, engine: Engine
) -> None:
    key, claimed = await completing(store, "a", "b")
    for row in claimed:
        await store.record(sold(row))
    assert await store.purge(Purge(NEVER, -SECOND, -SECOND, 10, NEVER)) == 1  # the cart
    assert await count(engine, schema.reservations) == 2
    assert await store.purge(Purge(NEVER, NEVER, NEVER, 10, -SECOND)) == 1
    assert await count(engine, schema.checkout_items) == 0
    with pytest.raises(CheckoutNotFound):
        await store.mutate(complete(key))
    assert await store.purge(Purge(-SECOND, -SECOND, -SECOND, 10, -SECOND)) == 2
    assert await count(engine, schema.users) <= 1
    totals = await engine.transact(lambda connection: connection.execute(select(schema.users)).all())
    assert [tuple(row)[2:6] for row in totals] in ([], [(0, 0, 0, 0)])


async def test_totals_count_a_sold_cart_by_its_bytes_only(store: Store, engine: Engine) -> None:
    await completing(store, "a", "b")
    [row] = await engine.transact(lambda connection: connection.execute(select(schema.users)).all())
    assert (row.cart_count, row.item_count, row.unit_count) == (0, 0, 0)
    assert row.stored_bytes > 3000


async def test_after_a_restore_a_failed_checkout_waits_for_new_answers(database_url: str) -> None:
    async with opened(database_url) as (engine, store):
        key = await failed(store, "a", "b")
    # No server may run: the sessions of the store above have ended.
    restoring = open_database(database_url)
    await restoring.transact(partial(raise_revisions, dialect=restoring.dialect))
    await restoring.close()
    async with opened(database_url) as (engine, store):
        assert await state_of(engine, key) is CheckoutState.COMPLETING
        with pytest.raises(CheckoutCompleted):
            await store.mutate(cancel(key))
        [again] = await claim_of_checkout(store)
        await store.record(sold(again))
        assert await state_of(engine, key) is CheckoutState.COMPLETED


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[Engine, Store]]:
    """A store and its engine, until both are closed."""
    engine = open_database(url)
    await migration_run.run(engine)
    store = Store(engine, app.new_id, queue_size=1000)
    await store.start()
    yield engine, store
    await store.close()
    await engine.close()
