"""Purges delete ended rows in small steps, and no cart whose last release is not recorded."""

from sqlalchemy import text

from cart_grpc.carts.calls import DeleteCart
from cart_grpc.commands.direct import Purge
from cart_grpc.commands.mutation import Mutation
from cart_grpc.store import schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.store import Store
from tests.store.writes import KEY, SECOND, add, answered, claim_one, count, mutation, release_all, remove, snapshot

NEVER = 10**15
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


async def test_the_lock_row_of_a_user_is_deleted_with_the_last_cart_and_reply(store: Store, engine: Engine) -> None:
    locked = 1 if engine.locks_users else 0
    await held_and_deleted(store, request_id="first")
    await release_all(store)
    assert await store.purge(CARTS_NOW) == 1
    assert await count(engine, schema.users) == locked
    assert await store.purge(Purge(-SECOND, NEVER, NEVER, 10)) == 1
    assert await count(engine, schema.users) == 0
    await store.mutate(add())
    assert await count(engine, schema.users) == locked


async def test_a_late_answer_for_a_purged_cart_is_recorded(store: Store, engine: Engine) -> None:
    await store.mutate(add())
    await store.mutate(remove())
    released = answered(await claim_one(store, "release"))
    await engine.transact(lambda connection: connection.execute(text("DELETE FROM carts")))
    recorded = await store.record(released)
    assert recorded.reservation.settled
