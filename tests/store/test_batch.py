"""Many commands in one transaction have the same results as one after another."""

import asyncio
import json

import pytest

from cart_grpc.carts.refusals import ItemNotFound, RequestIdReused
from cart_grpc.names import cart_key, user_key
from cart_grpc.store import schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.read.reads import Reads
from cart_grpc.store.write_queue import WriteQueue
from tests.store.writes import KEY, SKU, Wrapped, add, clear, count, decode, remove


@pytest.mark.one_shard
async def test_commands_on_one_cart_are_folded_in_order_and_each_has_its_own_answer(
    idle: WriteQueue, counted: Wrapped
) -> None:
    answers = [idle.submit(add(quantity=quantity)) for quantity in (1, 2, 3)]
    answers += [idle.submit(remove()), idle.submit(add(quantity=7)), idle.submit(add("filters"))]
    await idle.start()
    replies = [json.loads(await answer) for answer in answers]
    await idle.close()
    assert [reply[0] for reply in replies] == [{SKU: 1}, {SKU: 3}, {SKU: 6}, {}, {SKU: 7}, {"filters": 1}]
    assert [reply[1] for reply in replies] == [1, 2, 3, 4, 5, 6]
    assert len({reply[2] for reply in replies}) == 1
    # One transaction registers the writers, and one runs all six commands.
    assert counted.transactions == 2


async def test_the_folded_result_is_stored(idle: WriteQueue, engine: Engine) -> None:
    answers = [idle.submit(add(sku)) for sku in ("a", "b", "a", "c")] + [idle.submit(remove("b"))]
    await idle.start()
    await asyncio.gather(*answers)
    await idle.close()
    found = await Reads(engine).find_cart(KEY)
    assert found is not None
    assert sorted((line.item.sku, line.item.quantity) for line in found.lines) == [("a", 2), ("c", 1)]
    assert (found.cart.item_count, found.cart.total_quantity, found.cart.revision) == (2, 3, 5)
    # The hold of the item that was added and removed must be released, too.
    assert await count(engine, schema.reservations) == 3


async def test_carts_of_many_users_in_one_batch_do_not_mix(idle: WriteQueue, engine: Engine) -> None:
    keys = [cart_key(user_key(f"user-{number}"), "default") for number in range(50)]
    answers = [idle.submit(add(quantity=number + 1, key=key)) for number, key in enumerate(keys)]
    await idle.start()
    assert [decode(await answer)[SKU] for answer in answers] == list(range(1, 51))
    await idle.close()


async def test_a_request_id_twice_in_one_batch_has_one_effect_and_equal_replies(
    idle: WriteQueue, engine: Engine
) -> None:
    twice = [idle.submit(add(request_id="r1", body=b"x")) for _ in range(2)]
    await idle.start()
    first, second = await asyncio.gather(*twice)
    assert first == second
    assert await idle.submit(add(request_id="r1", body=b"x")) == first
    assert decode(await idle.submit(add())) == {SKU: 2}
    await idle.close()


@pytest.mark.parametrize("same_batch", [True, False])
async def test_a_request_id_with_a_different_body_is_refused_without_effect(idle: WriteQueue, same_batch: bool) -> None:
    first = idle.submit(add(request_id="r1", body=b"x"))
    other = idle.submit(add(request_id="r1", body=b"y")) if same_batch else None
    await idle.start()
    await first
    with pytest.raises(RequestIdReused):
        await (other or idle.submit(add(request_id="r1", body=b"y")))
    assert decode(await idle.submit(add())) == {SKU: 2}
    await idle.close()


async def test_a_request_id_is_scoped_to_its_user(queue: WriteQueue) -> None:
    bob = cart_key(user_key("bob"), "default")
    await queue.submit(add(request_id="r1", body=b"x"))
    assert decode(await queue.submit(add(quantity=5, key=bob, request_id="r1", body=b"y"))) == {SKU: 5}


async def test_a_refusal_is_not_stored_under_its_request_id(queue: WriteQueue) -> None:
    wrong_etag = add(request_id="r1", body=b"x", etag='"7"')
    with pytest.raises(Exception, match="does not exist"):
        await queue.submit(wrong_etag)
    assert decode(await queue.submit(add(request_id="r1", body=b"other"))) == {SKU: 1}


async def test_clear_cart_removes_items_that_the_same_batch_added(idle: WriteQueue) -> None:
    before = [idle.submit(add("a")), idle.submit(add("b"))]
    cleared = idle.submit(clear())
    late = idle.submit(remove("a"))
    await idle.start()
    await asyncio.gather(*before)
    assert json.loads(await cleared)[1] == 3
    with pytest.raises(ItemNotFound):
        await late
    await idle.close()
