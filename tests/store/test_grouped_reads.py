"""Reads of several callers share a statement, and each caller gets its own cart or error."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from cartgrpc.v1 import cart_service_pb2
from sqlalchemy import Connection, select

from cart_grpc import app
from cart_grpc.carts.progress import HOLD_MARGIN_US
from cart_grpc.carts.refusals import DatabaseUnavailable, Overloaded
from cart_grpc.logs import events
from cart_grpc.names import cart_key, item_id_of, user_key
from cart_grpc.rpc import get_cart_cache
from cart_grpc.store import schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.failure_log import FailureLog
from cart_grpc.store.prepared import Prepared
from cart_grpc.store.read import cart_json
from cart_grpc.store.read.cart_json import CartJson
from cart_grpc.store.read.grouped_reads import GroupedReads
from cart_grpc.store.read.reads import Reads
from cart_grpc.store.rows import to_cart, to_item, to_reservation
from cart_grpc.store.store import Store
from tests.store.writes import (
    KEY,
    SECOND,
    SKU,
    Wrapped,
    add,
    answered,
    claim_one,
    overwrite,
    release_all,
    remove,
    snapshot,
)

T = TypeVar("T")
KEYS = [cart_key(user_key(f"user{number}"), "default") for number in range(5)]

FAILURES = FailureLog(events.READS_FAILING, events.READS_RECOVERED, "reads fail", "reads work again")


class Held(Wrapped):
    """An engine whose reads wait for `go_on`."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.go_on = asyncio.Event()
        self.count = 0

    async def read(self, work: Callable[[Connection], T]) -> T:
        self.count += 1
        await self.go_on.wait()
        return await self.inner.read(work)


async def until_reading(engine: Held) -> None:
    async with asyncio.timeout(20):
        while not engine.count:
            await asyncio.sleep(0)


async def test_a_read_shows_the_stored_rows(store: Store, engine: Engine) -> None:
    for sku in ("a", 'b"\\', "ü😀\u2028", "%s ? $1 :x"):
        await store.mutate(add(sku))
    await store.mutate(remove("a"))
    found = await snapshot(store)
    cart, lines = await engine.transact(_read_by_columns)
    assert (found.cart, list(found.lines)) == (cart, lines)
    assert [line.item.sku for line in found.lines] == ['b"\\', "ü😀\u2028", "%s ? $1 :x"]
    # Only the removed item's release is not confirmed.
    assert found.releasing == [item_id_of("a", {})]
    assert found.reconciling
    assert abs(found.now - app.clock()) < 10 * SECOND


def _read_by_columns(connection: Connection) -> tuple[Any, Any]:
    (cart,) = connection.execute(select(schema.carts)).all()
    rows = connection.execute(select(schema.items).order_by(schema.items.c.create_time, schema.items.c.uid)).all()
    reservations = {row.reservation_id: row for row in connection.execute(select(schema.reservations))}
    return to_cart(cart), [(to_item(row), to_reservation(reservations[row.reservation_id])) for row in rows]


async def test_a_removed_item_is_releasing_until_its_release_is_confirmed(store: Store) -> None:
    await store.mutate(add("a"))
    await store.mutate(add("b"))
    assert not (await snapshot(store)).is_releasing(None)
    await store.mutate(remove("a"))
    found = await snapshot(store)
    assert [found.is_releasing(item_id_of(sku, {})) for sku in "ab"] == [True, False]
    assert found.is_releasing(None)
    await release_all(store)
    assert not (await snapshot(store)).is_releasing(None)


@pytest.mark.one_shard
async def test_a_cart_with_too_many_releases_shows_each_item_as_being_released(
    store: Store, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cart_json, "MAX_RELEASING", 2)
    reads = Reads(engine)
    reads.carts[0]._statement = Prepared(cart_json.select_carts(engine.dialect))
    for sku in "abc":
        await store.mutate(add(sku))
    for sku, is_releasing_all in (("a", False), ("b", True), ("c", True)):
        await store.mutate(remove(sku))
        found = await reads.find_cart(KEY)
        assert found
        assert len(found.releasing) <= 2
        assert found.is_releasing("another") is is_releasing_all


@pytest.mark.one_shard
async def test_each_caller_gets_the_cart_that_it_asked_for(store: Store, engine: Engine) -> None:
    for number, key in enumerate(KEYS[:3]):
        await store.mutate(add(quantity=number + 1, key=key))
    await store.mutate(add(key=KEYS[2]))
    await store.mutate(remove(key=KEYS[2]))
    held = Held(engine)
    reads = Reads(held, 100)
    held.go_on.set()
    found = await asyncio.gather(*(reads.find_cart(key) for key in [*KEYS, *reversed(KEYS)]))
    totals = [one.cart.total_quantity if one else None for one in found]
    assert totals == [1, 2, 0, None, None, None, None, 0, 2, 1]
    assert held.count == 1


async def test_all_queued_reads_share_the_next_statement(store: Store, engine: Engine) -> None:
    held = Held(engine)
    reads = GroupedReads(held, 100, FAILURES)
    first = asyncio.create_task(reads.find(KEY))
    await until_reading(held)
    others = [asyncio.create_task(reads.find(key)) for key in KEYS]
    await asyncio.sleep(0)
    held.go_on.set()
    assert await asyncio.gather(first, *others) == [None] * 6
    assert held.count == 2


async def test_a_cancelled_caller_does_not_disturb_the_others(store: Store, engine: Engine) -> None:
    await store.mutate(add())
    held = Held(engine)
    reads = GroupedReads(held, 100, FAILURES)
    callers = [asyncio.create_task(reads.find(KEY)) for _ in range(3)]
    await until_reading(held)
    late = [asyncio.create_task(reads.find(KEY)) for _ in range(2)]
    await asyncio.sleep(0)
    for gone in (callers[0], late[0]):
        gone.cancel()
    held.go_on.set()
    for waiting in (callers[1], callers[2], late[1]):
        assert await waiting
    assert callers[0].cancelled()
    assert late[0].cancelled()


async def test_a_full_queue_refuses_the_next_read_and_answers_the_others(engine: Engine) -> None:
    held = Held(engine)
    reads = GroupedReads(held, 2, FAILURES)
    first = asyncio.create_task(reads.find(KEY))
    await until_reading(held)
    waiting = [asyncio.create_task(reads.find(KEY)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await reads.find(KEY)
    held.go_on.set()
    assert await asyncio.gather(first, *waiting) == [None] * 3
    assert await reads.find(KEY) is None


class Failing(Wrapped):
    """An engine that fails each statement that reads KEYS[0]."""

    def __init__(self, engine: Engine, error: Exception) -> None:
        super().__init__(engine)
        self.error = error
        self.count = 0

    async def read(self, work: Callable[[Connection], T]) -> T:
        self.count += 1
        found: Any = await self.inner.read(work)
        # KEYS[0] is the only cart that was never made.
        if None in found:
            raise self.error
        return found  # type: ignore[no-any-return]


async def test_a_cart_that_makes_its_statement_fail_fails_alone(store: Store, engine: Engine) -> None:
    for key in KEYS[1:]:
        await store.mutate(add(key=key))
    reads = GroupedReads(
        Failing(engine, ZeroDivisionError("bug")),
        100,
        FAILURES,
    )
    failed, *found = await asyncio.gather(*(reads.find(key) for key in KEYS), return_exceptions=True)
    assert isinstance(failed, ZeroDivisionError)
    assert all(one and not isinstance(one, BaseException) for one in found)


async def test_a_batch_is_not_split_if_the_database_is_away(store: Store, engine: Engine) -> None:
    failing = Failing(engine, OSError("gone"))
    reads = GroupedReads(failing, 100, FAILURES)
    for refused in await asyncio.gather(*(reads.find(key) for key in KEYS), return_exceptions=True):
        assert isinstance(refused, DatabaseUnavailable)
    assert failing.count == 1


async def test_a_read_shows_one_moment(store: Store) -> None:
    await store.mutate(add("a"))
    await store.mutate(add("b"))
    writing = True

    async def write() -> None:
        nonlocal writing
        for number in range(40):
            await store.mutate(add("ab"[number % 2], 1 + number % 3))
        writing = False

    async def read() -> int:
        count = 0
        while writing:
            found = await snapshot(store)
            assert found.cart.total_quantity == sum(line.item.quantity for line in found.lines)
            assert all(line.item.quantity == line.reservation.quantity for line in found.lines)
            count += 1
        return count

    _, *counts = await asyncio.gather(write(), *(read() for _ in range(8)))
    assert all(counts)


async def test_a_hold_shows_as_reserved_until_its_margin_by_the_databases_clock(store: Store, engine: Engine) -> None:
    await store.mutate(add())
    claimed = await claim_one(store)
    await store.record(answered(claimed))
    for left, state in ((60 * SECOND, "STATE_RESERVED"), (-SECOND, "STATE_EXPIRED"), (60 * SECOND, "STATE_RESERVED")):
        await overwrite(engine, schema.reservations, expire_time=app.clock() + HOLD_MARGIN_US + left)
        found = await store.reads.find_json(KEY)
        assert isinstance(found, CartJson)
        (item,) = cart_service_pb2.GetCartResponse.FromString(get_cart_cache.encode_get_cart(found)).cart.items
        assert (item.sku, type(item.reservation).State.Name(item.reservation.state)) == (SKU, state)
