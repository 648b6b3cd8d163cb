"""Purges delete ended rows in small steps, and no cart whose last release is not recorded."""

import pytest
from sqlalchemy import Connection, select, text
from sqlalchemy.ext.asyncio import create_async_engine

from cart_grpc import app
from cart_grpc.carts.calls import DeleteCart
from cart_grpc.carts.sizes import REPLY_ROOM, RESERVATION_BYTES
from cart_grpc.commands.direct import Purge
from cart_grpc.commands.mutation import Mutation
from cart_grpc.names import cart_key, user_key
from cart_grpc.store import schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.store import Store
from tests.store.writes import (
    HOUR,
    KEY,
    SECOND,
    add,
    answered,
    claim_one,
    count,
    mutation,
    release_all,
    remove,
    snapshot,
)

NEVER = 10**15
BOB = cart_key(user_key("bob"), "default")
CARTS_NOW = Purge(NEVER, NEVER, -SECOND, 10)


def delete_cart() -> Mutation:
    return mutation(DeleteCart(KEY))


async def held_and_deleted(store: Store, request_id: str = "") -> None:
    """Make an ended cart whose only item is still held by the Reservation API."""
    await store.mutate(add(request_id=request_id))
    await store.record(answered(await claim_one(store)))
    await store.mutate(delete_cart())


async def test_an_ended_cart_is_kept_until_its_last_release_is_recorded(store: Store) -> None:
    await held_and_deleted(store)
    assert await store.purge(CARTS_NOW) == 0
    assert await store.reads.find_cart(KEY) is not None
    await release_all(store)
    assert await store.purge(CARTS_NOW) == 1
    assert await store.reads.find_cart(KEY) is None


async def test_an_ended_cart_is_kept_for_its_retention_and_an_active_cart_for_ever(store: Store) -> None:
    await held_and_deleted(store)
    await release_all(store)
    assert await store.purge(Purge(NEVER, NEVER, 60 * SECOND, 10)) == 0
    await store.mutate(add("kettle"))
    assert await store.purge(CARTS_NOW) == 0
    assert (await snapshot(store)).cart.item_count == 1


async def test_the_etag_of_a_purged_cart_does_not_match_the_next_cart_of_the_same_name(store: Store) -> None:
    await store.mutate(add())
    before = (await snapshot(store)).cart
    await store.mutate(delete_cart())
    await release_all(store)
    assert await store.purge(CARTS_NOW) == 1
    await store.mutate(add())
    after = (await snapshot(store)).cart
    assert after.revision == before.revision
    assert after.etag != before.etag


async def test_a_purge_deletes_up_to_its_limit(store: Store, engine: Engine) -> None:
    for number in range(5):
        await store.mutate(add(request_id=f"request-{number}"))
    assert await store.purge(Purge(-SECOND, NEVER, NEVER, 2)) == 2
    assert await count(engine, schema.replies) == 3


async def stored_bytes(engine: Engine) -> list[int]:
    """The totals of all users."""
    rows = await engine.transact(lambda connection: connection.execute(select(schema.users.c.stored_bytes)).all())
    return [row.stored_bytes for row in rows]


async def test_a_purge_lowers_the_users_total_and_deletes_the_row_of_a_user_for_whom_nothing_is_left(
    store: Store, engine: Engine
) -> None:
    await held_and_deleted(store, request_id="first")
    await release_all(store)
    cart, reply = (await snapshot(store)).cart.byte_size, await engine.transact(read_reply)
    assert await stored_bytes(engine) == [cart + len(reply) + REPLY_ROOM + RESERVATION_BYTES]
    assert await store.purge(CARTS_NOW) == 1
    assert await stored_bytes(engine) == [len(reply) + REPLY_ROOM + RESERVATION_BYTES]
    assert await store.purge(Purge(-SECOND, NEVER, NEVER, 10)) == 1
    assert await stored_bytes(engine) == [RESERVATION_BYTES]
    assert await store.purge(Purge(NEVER, -SECOND, NEVER, 10)) == 1
    assert await stored_bytes(engine) == []
    await store.mutate(add())
    assert await count(engine, schema.users) == 1


def read_reply(connection: Connection) -> bytes:
    reply: bytes = connection.execute(select(schema.replies.c.reply)).scalar_one()
    return reply


class TestBesideAnotherReplica:
    """Only PostgreSQL has replicas."""

    @pytest.fixture
    def backend(self) -> str:
        return "postgresql"

    async def test_a_purge_skips_a_user_who_is_locked_and_finds_its_rows_the_next_time(
        self, store: Store, engine: Engine, database_url: str
    ) -> None:
        for each in (add(request_id="first"), add(key=BOB, request_id="second")):
            await store.mutate(each)
        replies_now = Purge(-SECOND, NEVER, NEVER, 10)
        outside = create_async_engine(database_url)
        async with outside.connect() as other:
            await other.execute(text("SELECT 1 FROM users WHERE user_id = 'alice' FOR UPDATE"))
            assert await store.purge(replies_now) == 1
        await outside.dispose()
        assert await store.purge(replies_now) == 1
        assert await count(engine, schema.replies) == 0


async def test_a_late_answer_for_a_purged_cart_is_recorded(store: Store, engine: Engine) -> None:
    await store.mutate(add())
    await store.mutate(remove())
    released = answered(await claim_one(store, "release"))
    await engine.transact(lambda connection: connection.execute(text("DELETE FROM carts")))
    recorded = await store.record(released)
    assert recorded.reservation.settled


@pytest.mark.one_shard
async def test_a_start_deletes_the_commit_markers_that_are_older_than_their_retention(engine: Engine) -> None:
    table = schema.commit_markers
    for _ in range(2):
        store = Store(engine, app.new_id, queue_size=10, marker_retention_us=HOUR)
        await store.start()
        await store.close()
    assert await count(engine, table) > 1

    def age(connection: Connection) -> None:
        connection.execute(table.update().values(update_time=table.c.update_time - 2 * HOUR))

    await engine.transact(age)
    store = Store(engine, app.new_id, queue_size=10, marker_retention_us=HOUR)
    await store.start()
    assert await count(engine, table) == (2 if engine.is_shared else 1)
    await store.close()
