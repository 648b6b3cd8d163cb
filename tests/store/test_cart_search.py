"""The operators' search for carts of all users, on both databases."""

from typing import Any

import pytest

from cart_grpc.carts.model import CartState
from cart_grpc.names import CartKey, cart_key, user_key
from cart_grpc.store import schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.read.cart_search import CartSearch, CartsFound
from cart_grpc.store.store import Store
from tests.store.writes import HOUR, SKU, add, overwrite

USERS = ("ann", "anna", "anne", "bob", "guest-1", "guest-2", "guest-3")


def key_of(user: str, cart: str = "default") -> CartKey:
    return cart_key(user_key(user), cart)


async def search(store: Store, after: CartKey | None = None, size: int = 100, **filters: Any) -> CartsFound:
    page: dict[str, Any] = {"user_prefix": "", "states": frozenset(), "min_age_us": 0, "sku": ""}
    return await store.cart_searches.find(CartSearch(size=size, after=after, **(page | filters)))


async def find(store: Store, size: int = 100, **filters: Any) -> list[CartKey]:
    """The keys of all pages."""
    found: list[CartKey] = []
    page = await search(store, size=size, **filters)
    found += [one.cart.key for one in page.carts]
    while page.next_after:
        page = await search(store, page.next_after, size, **filters)
        found += [one.cart.key for one in page.carts]
    return found


async def fill(store: Store) -> list[CartKey]:
    """Two carts for each user. Returns their keys in order."""
    keys = [key_of(user, cart) for user in USERS for cart in ("default", "wishes")]
    for key in keys:
        await store.mutate(add(key=key))
    return sorted(keys)


async def test_every_page_size_and_every_look_find_each_cart_once_in_the_order_of_the_keys(store: Store) -> None:
    keys = await fill(store)
    for size, look in ((1, 5_000), (3, 5_000), (100, 1), (100, 4), (2, 3), (14, 14)):
        assert await find(store, size, look=look) == keys, (size, look)


async def test_carts_that_come_and_go_between_the_pages_move_no_other_cart(store: Store, engine: Engine) -> None:
    keys = await fill(store)
    found: list[CartKey] = []
    page = await search(store, size=3)
    for number in range(100):
        found += [one.cart.key for one in page.carts]
        if not page.next_after:
            break
        # One before and one after the place, and a change of the cart at the place.
        await store.mutate(add(key=key_of(f"new-{number}")))
        await store.mutate(add("other", key=page.next_after))
        await engine.transact(
            lambda connection, gone=found[0]: connection.execute(  # type: ignore[misc]
                schema.carts.delete().where(
                    schema.carts.c.user_id == gone.user_id, schema.carts.c.cart_id == gone.cart_id
                )
            )
        )
        page = await search(store, page.next_after, size=3)
    assert [key for key in found if key in keys] == keys
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("prefix", "users"),
    [("ann", ["ann", "anna", "anne"]), ("anna", ["anna"]), ("guest-", ["guest-1", "guest-2", "guest-3"]), ("z", [])],
)
async def test_a_prefix_finds_the_users_that_begin_with_it(store: Store, prefix: str, users: list[str]) -> None:
    keys = await fill(store)
    for size, look in ((100, 5_000), (1, 5_000), (100, 1), (3, 2)):
        expected = [key for key in keys if key.user_id in users]
        assert await find(store, size, user_prefix=prefix, look=look) == expected, (size, look)


async def test_states_age_and_sku_filter_and_combine(store: Store, engine: Engine) -> None:
    keys = await fill(store)
    await store.mutate(add("kettle", key=keys[3]))
    await store.mutate(add("kettle", key=keys[5]))
    old, carts = keys[5], schema.carts
    await overwrite(engine, carts, carts.c.user_id == old.user_id, carts.c.cart_id == old.cart_id, update_time=1)
    await overwrite(engine, carts, carts.c.user_id == "bob", state=int(CartState.DELETED))
    assert await find(store, sku="kettle") == [keys[3], keys[5]]
    assert await find(store, sku="kettle", look=1) == [keys[3], keys[5]]
    assert await find(store, min_age_us=HOUR) == [old]
    assert await find(store, sku=SKU, min_age_us=HOUR, states=frozenset({CartState.ACTIVE})) == [old]
    assert await find(store, states=frozenset({CartState.DELETED})) == [key for key in keys if key.user_id == "bob"]
    assert await find(store, sku="kettle", states=frozenset({CartState.DELETED})) == []


async def test_a_filter_that_lets_nothing_through_ends_a_page_after_the_carts_that_it_may_look_at(store: Store) -> None:
    keys = await fill(store)
    for prefix in ("", "ann"):
        page = await search(store, user_prefix=prefix, sku="no-such-sku", look=4)
        assert page.carts == []
        matching = [key for key in keys if key.user_id.startswith(prefix)]
        assert page.next_after == matching[3]
