"""Limits of one user: carts, items and units, counted as intended and exactly, whatever ends a cart."""

from dataclasses import replace

import pytest

from cart_grpc.carts.calls import (
    AddItems,
    Call,
    CartUpdate,
    Change,
    ClearCart,
    CreateCart,
    DeleteCart,
    ItemUpdate,
    Limits,
    RemoveItem,
    ReplaceItems,
    UpdateCart,
    UpdateItem,
    addition,
)
from cart_grpc.carts.model import Money, UserTotals
from cart_grpc.carts.refusals import LimitExceeded
from cart_grpc.commands.direct import Purge
from cart_grpc.commands.mutation import Mutation
from cart_grpc.names import CartKey, cart_key, item_id_of, user_key
from cart_grpc.store import schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.store import Store
from tests.invariants.dump import read_dump
from tests.store.writes import KEY, LIMITS, SECOND, add, clear, encode, mutation, overwrite, release_all, remove

BOB = cart_key(user_key("bob"), "default")
SECOND_CART = KEY._replace(cart_id="second")
THIRD_CART = KEY._replace(cart_id="third")
FULL = Limits(max_carts_per_user=2, max_items_per_user=3, max_units_per_user=10)
LOWERED = Limits(max_carts_per_user=1, max_items_per_user=1, max_units_per_user=1)


def new_cart(key: CartKey) -> Call:
    return CreateCart(key, CartUpdate(set()))


def set_quantity(quantity: int) -> Call:
    return UpdateItem(KEY, item_id_of("a", {}), ItemUpdate({"quantity"}, quantity))


def replacement(*quantities: int) -> Call:
    """ReplaceItems of KEY with items a, b, and so on."""
    additions = [addition(sku, {}, quantity, None, None) for sku, quantity in zip("abcd", quantities, strict=False)]
    return ReplaceItems(KEY, additions)


def added(sku: str, quantity: int = 1, key: CartKey = KEY) -> Call:
    return AddItems(key, (addition(sku, {}, quantity, None, None),))


async def totals(engine: Engine) -> tuple[int, ...]:
    """The carts, items and units of alice; those of a user for whom nothing is stored are 0."""
    dump = await engine.transact(read_dump)
    return tuple(dump.totals.get("users/alice", UserTotals()))[1:]


async def fill(store: Store) -> None:
    """Two carts with 3 items and 10 units: all that FULL allows."""
    for command in (add("a", 5), add("b", 4), add("c", 1, SECOND_CART)):
        await store.mutate(command)


REFUSED = {
    "carts": (new_cart(THIRD_CART), "carts_per_user", 3),
    "carts, by an item": (added("a", key=THIRD_CART), "carts_per_user", 3),
    "items": (added("d"), "items_per_user", 4),
    "items, by ReplaceItems": (replacement(1, 1, 1), "items_per_user", 4),
    "units": (added("a"), "units_per_user", 11),
    "units, by UpdateItem": (set_quantity(6), "units_per_user", 11),
    "units, by ReplaceItems": (replacement(6, 4), "units_per_user", 11),
}


async def test_a_call_that_raises_a_total_beyond_its_limit_is_refused_without_effect(
    store: Store, engine: Engine
) -> None:
    await fill(store)
    for call, quota, value in REFUSED.values():
        with pytest.raises(LimitExceeded) as refused:
            await store.mutate(Mutation(call, encode, FULL))
        metadata = refused.value.metadata
        assert (metadata["quota"], metadata["subject"], metadata["value"]) == (quota, "users/alice", str(value))
    assert await totals(engine) == (2, 3, 10)
    # Another user has limits of its own.
    await store.mutate(Mutation(added("a", 10, BOB), encode, FULL))


async def test_a_call_that_raises_no_total_is_accepted_also_after_the_limits_were_lowered(
    store: Store, engine: Engine
) -> None:
    await fill(store)
    for call in (set_quantity(4), replacement(3, 4), replacement(7), set_quantity(7)):
        await store.mutate(Mutation(call, encode, LOWERED))
    assert await totals(engine) == (2, 2, 8)
    await store.mutate(Mutation(DeleteCart(SECOND_CART), encode, LOWERED))
    assert await totals(engine) == (1, 1, 7)
    with pytest.raises(LimitExceeded):
        await store.mutate(Mutation(set_quantity(8), encode, LOWERED))


async def test_what_leaves_a_cart_makes_room_before_its_stock_is_released(store: Store, engine: Engine) -> None:
    await fill(store)
    await store.mutate(remove("b"))
    await store.mutate(Mutation(added("d", 4), encode, FULL))
    await store.mutate(mutation(DeleteCart(SECOND_CART)))
    await store.mutate(Mutation(new_cart(THIRD_CART), encode, FULL))
    assert await totals(engine) == (2, 2, 9)
    await store.mutate(clear())
    assert await totals(engine) == (2, 0, 0)


async def test_carts_that_expire_or_are_purged_leave_nothing_in_the_totals(store: Store, engine: Engine) -> None:
    await fill(store)
    await store.mutate(mutation(DeleteCart(SECOND_CART)))
    await overwrite(engine, schema.carts, schema.carts.c.cart_id == KEY.cart_id, expire_time=1, ttl_us=1, update_time=0)
    assert await store.expire(KEY)
    assert await totals(engine) == (0, 0, 0)
    await store.mutate(Mutation(added("a", 10), encode, FULL))
    assert await totals(engine) == (1, 1, 10)
    await release_all(store)
    await store.purge(Purge(-SECOND, -SECOND, -SECOND, 10))
    assert await totals(engine) == (1, 1, 10)


async def test_a_user_who_has_used_up_all_bytes_can_remove_items_and_end_carts_whatever_the_replies_store(
    store: Store,
) -> None:
    def say_much(_: Change, __: int) -> bytes:
        return b"x" * 5_000

    def remembered(call: Call) -> Mutation:
        once = replace(call, request_id=f"{type(call).__name__}-{call.cart.cart_id}", fingerprint=b"x")
        return Mutation(once, say_much, replace(LIMITS, max_user_bytes=1))

    for command in (add("a"), add("b"), add("a", key=SECOND_CART)):
        await store.mutate(command)
    removals: list[Call] = [RemoveItem(KEY, item_id_of("a", {})), ClearCart(KEY), DeleteCart(KEY)]
    for call in removals:
        await store.mutate(remembered(call))
    # Calls that remove nothing could store replies without end.
    await store.mutate(clear(SECOND_CART))
    for call in (ClearCart(SECOND_CART), UpdateCart(SECOND_CART, CartUpdate({"labels"})), new_cart(KEY)):
        with pytest.raises(LimitExceeded) as refused:
            await store.mutate(remembered(call))
        assert refused.value.metadata["quota"] == "bytes_per_user"


async def test_a_subtotal_is_exact_up_to_64_bits(store: Store, engine: Engine) -> None:
    limits = replace(LIMITS, max_quantity_per_item=10**6, max_units_per_user=10**9)
    price = 10**12
    million = [addition(f"sku-{number}", {}, 10**6, Money("EUR", price), None) for number in range(9)]
    rest = 2**63 - 1 - 9 * 10**18
    last = [
        addition("rest", {}, rest // price, Money("EUR", price), None),
        addition("last", {}, 1, Money("EUR", rest % price), None),
    ]
    await store.mutate(Mutation(ReplaceItems(KEY, [*million, *last]), encode, limits))
    found = await store.reads.find_cart(KEY)
    assert found
    assert found.cart.subtotal == 2**63 - 1
    with pytest.raises(LimitExceeded) as refused:
        await store.mutate(Mutation(AddItems(KEY, (addition("x", {}, 1, Money("EUR", 1), None),)), encode, limits))
    assert refused.value.metadata["quota"] == "subtotal"
    assert refused.value.metadata["value"] == str(2**63)
