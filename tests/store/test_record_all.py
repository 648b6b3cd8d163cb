"""Records of many outcomes as one queued unit: each has its own answer, and they share a batch with other commands."""

import asyncio
from dataclasses import replace
from functools import partial

import pytest

from cart_grpc import app
from cart_grpc.commands.record import RecordAll, Recorded
from cart_grpc.names import cart_key, user_key
from cart_grpc.protocol.reservation import Decision, Observed, Reservation
from cart_grpc.store import schema
from cart_grpc.store.batch_writer import BatchWriter, QueuedCommand
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.engine import Engine
from cart_grpc.store.queries import WriteQueries
from cart_grpc.store.shard_queue import MAX_BATCH, Handover
from cart_grpc.store.store import Store
from cart_grpc.store.write_queue import WriteQueue
from tests.store.writes import (
    KEY,
    SECOND,
    Wrapped,
    add,
    answered,
    claim,
    claim_one,
    forbid,
    overwrite,
    remove,
    row_of,
    silent,
    snapshot,
)

BOB = cart_key(user_key("bob"), "default")


async def claim_many(store: Store, *skus: str) -> list[Reservation]:
    """Add items and claim their reservations, in the order of their skus."""
    for sku in skus:
        await store.mutate(add(sku))
    return sorted(await claim(store), key=lambda row: row.sku)


def settled(answers: object) -> list[bool]:
    assert isinstance(answers, list)
    return [isinstance(one, Recorded) and one.reservation.settled for one in answers]


async def test_each_record_has_its_own_answer_in_the_order_of_the_records(store: Store) -> None:
    first, second, third = await claim_many(store, "a", "b", "c")
    await store.mutate(add("b"))
    records = [silent(first, 7 * SECOND), answered(second), answered(third)]
    answers = await store.record_all(records)
    assert [one.reservation.sku for one in answers if isinstance(one, Recorded)] == ["a", "b", "c"]
    assert settled(answers) == [False, False, True]


async def test_the_records_of_a_batch_raise_the_revision_of_their_cart(store: Store) -> None:
    claims = await claim_many(store, "a", "b")
    before = (await snapshot(store)).cart
    await store.record_all([answered(one) for one in claims])
    after = await snapshot(store)
    assert after.cart.revision > before.revision
    assert after.cart.etag == before.etag
    assert not after.reconciling


async def test_two_records_of_one_reservation_in_one_batch_count_once(store: Store) -> None:
    (claimed,) = await claim_many(store, "a")
    renamed = answered(claimed, granted_quantity=0, state=Observed.REJECTED, expire_time=None, reason="LATER")
    first, second = await store.record_all([answered(claimed), renamed])
    assert first == second
    assert (await snapshot(store)).cart.revision == 2


async def test_a_renewal_that_callers_do_not_see_keeps_the_revision(store: Store, engine: Engine) -> None:
    (claimed,) = await claim_many(store, "a")
    await store.record_all([answered(claimed)])
    before = (await snapshot(store)).cart
    await overwrite(engine, schema.reservations, due_time=0)
    renewal = await claim_one(store)
    await store.record_all([answered(renewal)])
    assert (await snapshot(store)).cart == before
    assert (await row_of(engine, claimed.reservation_id)).observed_revision == renewal.revision


@pytest.mark.one_shard
async def test_a_callers_change_sees_the_answer_that_its_batch_settled(counted: Wrapped, idle: WriteQueue) -> None:
    store = Store(counted, app.new_id, queue_size=10)
    await store.start()
    (claimed,) = await claim_many(store, "a")
    recorded, reply = idle.submit_to(0, RecordAll([answered(claimed)])), idle.submit(add("a"))
    await asyncio.gather(recorded, reply)
    row = await row_of(counted, claimed.reservation_id)
    assert (row.revision, row.observed_revision, row.granted_quantity) == (2, 1, 1)
    assert (await snapshot(store)).cart.revision == 3


async def test_the_carts_of_settled_records_are_published(store: Store) -> None:
    (claimed,) = await claim_many(store, "a")
    published: list[object] = []
    store.notifier.subscribe(published.extend, lambda: None)
    store.notifier.due.clear()
    await store.record_all([answered(claimed)])
    assert published == [KEY]
    assert not store.notifier.due.is_set()


async def test_a_settled_hold_that_has_expired_already_is_due(store: Store) -> None:
    (claimed,) = await claim_many(store, "a")
    store.notifier.due.clear()
    await store.record_all([answered(claimed, state=Observed.EXPIRED, granted_quantity=0, expire_time=None)])
    assert store.notifier.due.is_set()


@pytest.mark.one_shard
async def test_a_row_that_cannot_be_written_fails_alone(store: Store, engine: Engine) -> None:
    claims = await claim_many(store, "a", "b", "c")
    await engine.transact(partial(forbid, "NEW.sku = 'b'"))
    first, second, third = await store.record_all([answered(one) for one in claims])
    assert settled([first, third]) == [True, True]
    assert isinstance(second, Exception)
    with pytest.raises(type(second)):
        await store.record(answered(claims[1]))


async def test_a_bug_in_one_record_is_its_answer(store: Store) -> None:
    first, second = await claim_many(store, "a", "b")
    broken = replace(answered(first), retry_delay_us="soon")  # type: ignore[arg-type]
    wrong, right = await store.record_all([broken, answered(second)])
    assert isinstance(wrong, TypeError)
    assert settled([right]) == [True]


async def test_a_release_makes_the_waiting_hold_due(store: Store) -> None:
    await store.mutate(add("a", key=BOB))
    await store.mutate(remove("a", key=BOB))
    await store.mutate(add("a", key=BOB))
    await store.record_all([answered(await claim_one(store, "release"))])
    assert (await claim_one(store)).cart == BOB


async def test_a_unit_of_many_records_counts_as_many_commands(engine: Engine) -> None:
    handover = Handover(
        [BatchWriter(engine, WriteQueries(engine.dialect, lock_users=False), ChangeNotifier(), str, lambda _: None)]
    )
    claimed = Reservation("r", KEY, "i", "s", 1, 1, 1, 1, 1, 1, 1)  # type: ignore[arg-type]
    record = answered(claimed, state=Observed.HELD)
    assert isinstance(record.outcome, Decision)
    for _ in range(3):
        unit = QueuedCommand(RecordAll([record] * (MAX_BATCH // 2)), asyncio.get_running_loop().create_future())
        handover.background.append(unit)
    handover.begin_turn()
    assert len(handover.take()) == 2
