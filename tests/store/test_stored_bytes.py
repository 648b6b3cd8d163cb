"""The running totals of carts and users equal the sums over their rows after every kind of change."""

import asyncio
from dataclasses import replace

import pytest

from cart_grpc.carts.calls import AddItems, Limits, addition
from cart_grpc.carts.refusals import LimitExceeded
from cart_grpc.commands.direct import Purge
from cart_grpc.commands.mutation import Mutation
from cart_grpc.commands.operator import Retry
from cart_grpc.names import cart_key, user_key
from cart_grpc.protocol.reservation import Observed
from cart_grpc.store import schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.store import Store
from cart_grpc.store.write_queue import WriteQueue
from tests.invariants.dump import read_dump
from tests.invariants.rows import check_atomic
from tests.store.checkouts import begun, cancel, completing, refused
from tests.store.writes import (
    KEY,
    LIMITS,
    SECOND,
    add,
    answered,
    claim_one,
    clear,
    decided,
    encode,
    overwrite,
    release_all,
    remove,
    snapshot,
)

BOB = cart_key(user_key("bob"), "default")


async def assert_consistent(engine: Engine) -> None:
    dump = await engine.transact(read_dump)
    assert dump.totals
    assert [one for one in check_atomic([], dump) if "counts" in one] == []


async def test_the_totals_follow_every_kind_of_change(store: Store, engine: Engine) -> None:
    await store.mutate(add(request_id="first"))
    await store.mutate(add("tea", key=BOB, request_id="first"))
    await store.mutate(add("tea"))
    await assert_consistent(engine)
    await store.mutate(remove("tea"))
    await store.mutate(clear())
    await assert_consistent(engine)
    await release_all(store)
    await store.mutate(add())
    await overwrite(engine, schema.carts, expire_time=1, ttl_us=1, update_time=0)
    assert await store.expire(BOB)
    await assert_consistent(engine)
    await release_all(store)
    await store.purge(Purge(-SECOND, -SECOND, -SECOND, 2))
    await assert_consistent(engine)
    await store.purge(Purge(-SECOND, -SECOND, -SECOND, 10))
    await assert_consistent(engine)


async def test_the_totals_follow_a_cart_through_its_checkout(store: Store, engine: Engine) -> None:
    key = await begun(store, "a", "b")
    await assert_consistent(engine)
    await store.mutate(cancel(key))
    await assert_consistent(engine)
    key, claimed = await completing(store, "c")
    await assert_consistent(engine)
    for row in claimed:
        await store.record(refused(row))
    await store.mutate(cancel(key))
    await assert_consistent(engine)
    for limit in (1, 10):
        await store.purge(Purge(-SECOND, -SECOND, -SECOND, limit, -SECOND))
        await assert_consistent(engine)
    assert [one for one in check_atomic([], await engine.transact(read_dump)) if "belongs to no item" in one] == []


async def test_an_operators_new_reservation_is_counted(store: Store, engine: Engine) -> None:
    rejected = await decided(store, Observed.RELEASED)
    await store.intervene(Retry(rejected, LIMITS))
    assert (await snapshot(store)).lines[0].reservation.reservation_id != rejected.reservation_id
    await assert_consistent(engine)


async def test_one_batch_cannot_exceed_a_limit_together(idle: WriteQueue, store: Store, engine: Engine) -> None:
    one = await store.mutate(add("sku-0"))
    assert one
    cart = (await snapshot(store)).cart
    room = Limits(max_cart_bytes=cart.byte_size + 700)

    def bounded(sku: str, limits: Limits) -> Mutation:
        return Mutation(AddItems(KEY, (addition(sku, {}, 1, None, None),)), encode, limits)

    answers = [idle.submit(bounded(sku, room)) for sku in ("sku-1", "sku-2")]
    answers += [idle.submit(bounded("sku-3", replace(LIMITS, max_user_bytes=3_000)))]
    await idle.start()
    first, second, third = await asyncio.gather(*answers, return_exceptions=True)
    await idle.close()
    assert isinstance(first, bytes)
    assert isinstance(second, LimitExceeded)
    assert isinstance(third, LimitExceeded)
    assert (second.metadata["quota"], third.metadata["quota"]) == ("bytes_per_cart", "bytes_per_user")
    await assert_consistent(engine)


async def test_a_repeated_call_beyond_the_limit_gets_its_stored_reply(store: Store) -> None:
    call = AddItems(KEY, (addition("tea", {}, 1, None, None),), request_id="once", fingerprint=b"x")
    reply = await store.mutate(Mutation(call, encode, LIMITS))
    assert await store.mutate(Mutation(call, encode, Limits(max_user_bytes=1))) == reply
    with pytest.raises(LimitExceeded):
        await store.mutate(Mutation(replace(call, request_id="again"), encode, Limits(max_user_bytes=1)))


async def test_a_reservation_that_ended_counts_until_it_is_purged(store: Store, engine: Engine) -> None:
    await store.mutate(add())
    await store.record(answered(await claim_one(store)))
    before = await engine.transact(read_dump)
    for _ in range(3):
        await store.mutate(remove())
        await release_all(store)
        await store.mutate(add())
        await store.record(answered(await claim_one(store)))
    after = await engine.transact(read_dump)
    more = after.totals["users/alice"].stored_bytes - before.totals["users/alice"].stored_bytes
    assert more == 3 * 512
    await store.purge(Purge(-SECOND, -SECOND, -SECOND, 10))
    assert (await engine.transact(read_dump)).totals == before.totals
