"""Many commands in one transaction, each as if it had been alone."""

import asyncio
import json

import pytest

from cart_grpc import app
from cart_grpc.carts.refusals import ItemNotFound, RequestIdReused
from cart_grpc.names import cart_key, user_key
from cart_grpc.store import schema
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.engine import Engine
from cart_grpc.store.read.reads import Reads
from cart_grpc.store.write_queue import MAX_BATCH, WriteQueue
from tests.store.writes import KEY, SKU, Wrapped, add, clear, count, decode, remove


@pytest.fixture
def counted(engine: Engine) -> Wrapped:
    return Wrapped(engine)


@pytest.fixture
async def idle(counted: Wrapped) -> WriteQueue:
    """A writer that has not begun: what is written to it waits, and then is one batch."""
    return WriteQueue(counted, ChangeNotifier(), app.new_id, 1000)


async def test_commands_on_one_cart_are_folded_in_order_each_with_its_own_answer(
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
    # One to register the writer, one for all six.
    assert counted.transactions == 2


async def test_what_was_folded_is_what_is_stored(idle: WriteQueue, engine: Engine) -> None:
    answers = [idle.submit(add(sku)) for sku in ("a", "b", "a", "c")] + [idle.submit(remove("b"))]
    await idle.start()
    await asyncio.gather(*answers)
    await idle.close()
    found = await Reads(engine).find_cart(KEY)
    assert found is not None
    assert sorted((line.item.sku, line.item.quantity) for line in found.lines) == [("a", 2), ("c", 1)]
    assert (found.cart.item_count, found.cart.total_quantity, found.cart.revision) == (2, 3, 5)
    # The hold of the item that came and went is to be released all the same.
    assert await count(engine, schema.reservations) == 3


async def test_carts_of_many_users_share_a_batch_and_nothing_else(idle: WriteQueue, engine: Engine) -> None:
    keys = [cart_key(user_key(f"user-{number}"), "default") for number in range(50)]
    answers = [idle.submit(add(quantity=number + 1, key=key)) for number, key in enumerate(keys)]
    await idle.start()
    assert [decode(await answer)[SKU] for answer in answers] == list(range(1, 51))
    await idle.close()


async def test_a_request_id_twice_in_one_batch_is_one_effect_with_equal_bytes(idle: WriteQueue, engine: Engine) -> None:
    twice = [idle.submit(add(request_id="r1", body=b"x")) for _ in range(2)]
    await idle.start()
    first, second = await asyncio.gather(*twice)
    assert first == second
    assert await idle.submit(add(request_id="r1", body=b"x")) == first
    assert decode(await idle.submit(add())) == {SKU: 2}
    await idle.close()


@pytest.mark.parametrize("same_batch", [True, False])
async def test_a_request_id_with_another_body_is_refused_without_effect(idle: WriteQueue, same_batch: bool) -> None:
    first = idle.submit(add(request_id="r1", body=b"x"))
    other = idle.submit(add(request_id="r1", body=b"y")) if same_batch else None
    await idle.start()
    await first
    with pytest.raises(RequestIdReused):
        await (other or idle.submit(add(request_id="r1", body=b"y")))
    assert decode(await idle.submit(add())) == {SKU: 2}
    await idle.close()


async def test_request_ids_are_one_key_space_per_user(writer: WriteQueue) -> None:
    bob = cart_key(user_key("bob"), "default")
    await writer.submit(add(request_id="r1", body=b"x"))
    assert decode(await writer.submit(add(quantity=5, key=bob, request_id="r1", body=b"y"))) == {SKU: 5}


async def test_a_refusal_is_not_remembered_under_its_request_id(writer: WriteQueue) -> None:
    wrong_etag = add(request_id="r1", body=b"x", etag='"7"')
    with pytest.raises(Exception, match="does not exist"):
        await writer.submit(wrong_etag)
    assert decode(await writer.submit(add(request_id="r1", body=b"other"))) == {SKU: 1}


async def test_more_than_a_batch_holds_is_written_in_several(idle: WriteQueue, counted: Wrapped) -> None:
    answers = [idle.submit(add(quantity=1)) for _ in range(2 * MAX_BATCH + 1)]
    await idle.start()
    replies = [decode(await answer)[SKU] for answer in answers]
    await idle.close()
    assert replies == list(range(1, 2 * MAX_BATCH + 2))
    assert counted.transactions == 1 + 3


async def test_clearing_sees_what_the_same_batch_has_added(idle: WriteQueue) -> None:
    before = [idle.submit(add("a")), idle.submit(add("b"))]
    cleared = idle.submit(clear())
    late = idle.submit(remove("a"))
    await idle.start()
    await asyncio.gather(*before)
    assert json.loads(await cleared)[1] == 3
    with pytest.raises(ItemNotFound):
        await late
    await idle.close()
