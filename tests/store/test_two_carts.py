"""A call about two carts of two users: one transaction, one reply, no deadlock.

The call exists only here. It moves an item from one cart to another.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from cart_grpc import app
from cart_grpc.carts import rules
from cart_grpc.carts.calls import (
    AddItems,
    Call,
    CartRead,
    Change,
    Given,
    LoadedCart,
    OpenCart,
    RemoveItem,
    addition,
)
from cart_grpc.carts.refusals import ItemNotFound, LimitExceeded, RequestIdReused
from cart_grpc.commands.mutation import Mutation
from cart_grpc.names import CartKey, cart_key, item_id_of, user_key
from cart_grpc.protocol.reservation import Disposition
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.engine import Engine
from cart_grpc.store.failures import get_sqlstate
from cart_grpc.store.store import Store
from cart_grpc.store.write_queue import WriteQueue
from tests.databases import open_database
from tests.store.writes import LIMITS, SKU, Wrapped, add, claim, snapshot

T = TypeVar("T")
ALICE = cart_key(user_key("alice"), "default")
BOB = cart_key(user_key("bob"), "default")
LOCK_USER = text("SELECT 1 FROM users WHERE user_id = :user FOR UPDATE")


@dataclass(frozen=True, slots=True)
class MoveItem(Call):
    """Move the item with `sku` from the cart `source` to the call's cart."""

    source: CartKey
    sku: str

    @property
    def reads(self) -> tuple[CartRead, ...]:
        item_id = item_id_of(self.sku, {})
        return (CartRead(self.cart, (item_id,), (self.sku,)), CartRead(self.source, (item_id,)))


def move_item(target: OpenCart, call: MoveItem, given: Given) -> Change:
    (source,) = target.others
    removal = rules.decide(source, RemoveItem(source.key, item_id_of(call.sku, {})), given)
    additions = (addition(call.sku, {}, removal.removed[0].item.quantity, None, None),)
    loaded = LoadedCart(call.cart, target.cart, target.lines, target.releasing)
    return rules.decide(loaded, AddItems(call.cart, additions), given)._replace(others=(removal,))


@pytest.fixture(autouse=True)
def rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.RULES, MoveItem, rules.Rule(move_item, rules.Needs.OPEN_CART_OR_NONE))


def encode(change: Change, now: int) -> bytes:
    """The two carts' total quantities and revisions."""
    carts = (change.cart, *(other.cart for other in change.others))
    return json.dumps([[[cart.total_quantity, cart.revision] for cart in carts], now]).encode()


def move(
    source: CartKey, target: CartKey, sku: str = SKU, *, request_id: str = "", fingerprint: bytes = b""
) -> Mutation:
    return Mutation(MoveItem(target, source, sku, request_id=request_id, fingerprint=fingerprint), encode, LIMITS)


async def quantities(store: Store, key: CartKey) -> dict[str, int]:
    return {line.item.sku: line.item.quantity for line in (await snapshot(store, key)).lines}


async def test_both_carts_change_in_one_transaction(store: Store) -> None:
    await store.mutate(add(quantity=2, key=ALICE))
    await store.mutate(add(quantity=3, key=BOB))
    totals, _ = json.loads(await store.mutate(move(ALICE, BOB)))
    assert totals == [[5, 2], [0, 2]]
    assert (await quantities(store, ALICE), await quantities(store, BOB)) == ({}, {SKU: 5})


async def test_the_moved_item_is_held_for_its_new_cart_and_released_for_its_old_one(store: Store) -> None:
    await store.mutate(add(quantity=2, key=ALICE))
    await claim(store)
    await store.mutate(move(ALICE, BOB))
    [line] = (await snapshot(store, BOB)).lines
    assert (line.reservation.cart, line.reservation.quantity) == (BOB, 2)
    assert line.reservation.disposition is Disposition.HOLD
    assert (await snapshot(store, ALICE)).is_releasing(line.item.item_id)


async def test_a_repeated_request_id_gets_the_first_reply_and_moves_nothing(store: Store) -> None:
    await store.mutate(add(quantity=2, key=ALICE))
    first = await store.mutate(move(ALICE, BOB, request_id="r-1", fingerprint=b"a"))
    await store.mutate(add(quantity=7, key=ALICE))
    assert await store.mutate(move(ALICE, BOB, request_id="r-1", fingerprint=b"a")) == first
    assert (await quantities(store, ALICE), await quantities(store, BOB)) == ({SKU: 7}, {SKU: 2})
    with pytest.raises(RequestIdReused):
        await store.mutate(move(ALICE, BOB, request_id="r-1", fingerprint=b"b"))


async def test_a_request_id_is_scoped_to_the_user_of_the_calls_first_cart(store: Store) -> None:
    await store.mutate(add(quantity=2, key=ALICE))
    await store.mutate(move(ALICE, BOB, request_id="r-1", fingerprint=b"a"))
    await store.mutate(move(BOB, ALICE, request_id="r-1", fingerprint=b"b"))
    assert (await quantities(store, ALICE), await quantities(store, BOB)) == ({SKU: 2}, {})


async def test_a_refused_call_leaves_both_carts_as_they_were(store: Store) -> None:
    most = LIMITS.max_quantity_per_item
    for key in (ALICE, BOB):
        await store.mutate(add(quantity=most, key=key))
    before = [replace(await snapshot(store, key), now=0) for key in (ALICE, BOB)]
    # Both in one batch: the second command must not see anything of the refused one.
    refused, rest = store.mutate(move(ALICE, BOB)), store.mutate(move(BOB, ALICE, "not there"))
    results = await asyncio.gather(refused, rest, return_exceptions=True)
    assert [type(result) for result in results] == [LimitExceeded, ItemNotFound]
    assert [replace(await snapshot(store, key), now=0) for key in (ALICE, BOB)] == before


@pytest.mark.one_shard
async def test_calls_in_opposite_directions_in_one_batch_run_in_order(engine: Engine, store: Store) -> None:
    await store.mutate(add("a", 2, ALICE))
    await store.mutate(add("b", 3, BOB))
    counted = Wrapped(engine)
    queue = WriteQueue(counted, ChangeNotifier(), app.new_id, 1000)
    answers = [queue.submit(move(ALICE, BOB, "a")), queue.submit(move(BOB, ALICE, "b"))]
    answers += [queue.submit(move(BOB, ALICE, "a"))]
    await queue.start()
    replies = [json.loads(await answer)[0] for answer in answers]
    await queue.close()
    assert [[total for total, _ in reply] for reply in replies] == [[5, 0], [3, 2], [5, 0]]
    # One registers the writer, and one runs all three calls.
    assert counted.transactions == 2
    assert (await quantities(store, ALICE), await quantities(store, BOB)) == ({"b": 3, "a": 2}, {})


class NotingFailures(Wrapped):
    """An engine that notes the SQLSTATE of every transaction that the database refuses: the writer retries it."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.failures: list[str] = []

    async def transact(self, work: Callable[[Connection], T]) -> T:
        try:
            return await super().transact(work)
        except Exception as error:
            self.failures.append(get_sqlstate(error))
            raise


class TestTwoReplicas:
    """Two writers with connections of their own. Only PostgreSQL has replicas."""

    @pytest.fixture
    def backend(self) -> str:
        return "postgresql"

    @pytest.fixture
    async def engines(self, database_url: str, engine: Engine) -> AsyncIterator[list[NotingFailures]]:
        other = open_database(database_url)
        yield [NotingFailures(engine), NotingFailures(other)]
        await other.close()

    @pytest.fixture
    async def stores(self, engines: list[NotingFailures]) -> AsyncIterator[list[Store]]:
        stores = [Store(engine, app.new_id, queue_size=1000) for engine in engines]
        for store in stores:
            await store.start()
        yield stores
        for store in stores:
            await store.close()

    @pytest.fixture
    async def outside(self, database_url: str) -> AsyncIterator[AsyncConnection]:
        """A connection beside the stores."""
        engine = create_async_engine(database_url)
        async with engine.connect() as connection:
            yield connection
        await engine.dispose()

    @pytest.mark.one_shard
    async def test_calls_in_opposite_directions_do_not_deadlock(
        self, stores: list[Store], engines: list[NotingFailures], outside: AsyncConnection
    ) -> None:
        keys = sorted(cart_key(user_key(f"user-{number}"), "default") for number in range(20))
        ring = list(zip(keys, keys[1:] + keys[:1], strict=True))
        for key in keys:
            await stores[0].mutate(add("clockwise", key=key))
            await stores[1].mutate(add("counterclockwise", key=key))
        for _ in range(5):
            # Each batch locks every user. Both stop at a user in the middle, and keep the locks that they have by then.
            await outside.execute(LOCK_USER, {"user": keys[10].user_id})
            calls = [stores[0].mutate(move(source, target, "clockwise")) for source, target in ring]
            calls += [stores[1].mutate(move(target, source, "counterclockwise")) for source, target in reversed(ring)]
            writing = asyncio.gather(*calls)
            await _until_waiting(outside, 2)
            await outside.rollback()
            await writing
        totals = [(await snapshot(stores[0], key)).cart.total_quantity for key in keys]
        assert sum(totals) == 2 * len(keys)
        assert [engine.failures for engine in engines] == [[], []]


async def _until_waiting(connection: AsyncConnection, count: int) -> None:
    """Return once `count` connections wait for a lock."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(20):
        while (await connection.execute(waiting)).scalar_one() < count:
            await asyncio.sleep(0.005)
