"""A command that fails does not affect the others in its batch."""

import asyncio
from dataclasses import replace
from sqlite3 import IntegrityError

import pytest
from asyncpg import IntegrityConstraintViolationError

from cart_grpc import app
from cart_grpc.carts.refusals import ItemNotFound
from cart_grpc.names import cart_key, user_key
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.engine import Engine
from cart_grpc.store.read.reads import Reads
from cart_grpc.store.write_queue import WriteQueue
from tests.store.writes import KEY, SKU, Wrapped, add, broken, decode, read_total, refused_by_the_database, remove


class Held(Wrapped):
    """An engine that does not return between the commit and the answers until `go_on` is set."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def committed(self) -> None:
        self.reached.set()
        await self.go_on.wait()


async def test_a_refused_command_does_not_fail_its_batch(queue: WriteQueue, engine: Engine) -> None:
    answers = [queue.submit(command) for command in (add(), remove("never-added"), add())]
    results = await asyncio.gather(*answers, return_exceptions=True)
    assert [type(result) for result in results] == [bytes, ItemNotFound, bytes]
    assert await read_total(engine) == 2


async def test_a_command_with_a_bug_does_not_fail_its_batch(queue: WriteQueue, engine: Engine) -> None:
    answers = [queue.submit(command) for command in (add(), broken(ZeroDivisionError("bug")), add())]
    results = await asyncio.gather(*answers, return_exceptions=True)
    assert [type(result) for result in results] == [bytes, ZeroDivisionError, bytes]
    assert await read_total(engine) == 2


async def test_a_reply_that_cannot_be_encoded_leaves_no_effect(queue: WriteQueue, engine: Engine) -> None:
    def fail(*_: object) -> bytes:
        raise ZeroDivisionError("bug")

    broken_reply = replace(add(quantity=5), encode=fail)
    answers = [queue.submit(broken_reply), queue.submit(add())]
    results = await asyncio.gather(*answers, return_exceptions=True)
    assert isinstance(results[0], ZeroDivisionError)
    assert await read_total(engine) == 1


@pytest.mark.parametrize("position", [0, 3, 6])
async def test_a_batch_that_violates_a_constraint_is_split_until_only_one_command_fails(
    queue: WriteQueue, engine: Engine, position: int
) -> None:
    bob = cart_key(user_key("bob"), "default")
    commands = [add() for _ in range(6)]
    commands.insert(position, refused_by_the_database(bob))
    results = await asyncio.gather(*map(queue.submit, commands), return_exceptions=True)
    assert isinstance(results.pop(position), IntegrityError | IntegrityConstraintViolationError)
    assert [decode(reply)[SKU] for reply in results if isinstance(reply, bytes)] == [1, 2, 3, 4, 5, 6]
    assert await read_total(engine) == 6
    assert await Reads(engine).find_cart(bob) is None


async def test_a_failed_command_leaves_no_trace_in_a_cart_that_others_change(queue: WriteQueue, engine: Engine) -> None:
    commands = [add(), refused_by_the_database(), add()]
    results = await asyncio.gather(*map(queue.submit, commands), return_exceptions=True)
    assert isinstance(results[1], IntegrityError | IntegrityConstraintViolationError)
    found = await Reads(engine).find_cart(KEY)
    assert found is not None
    assert [(line.item.sku, line.item.quantity) for line in found.lines] == [(SKU, 2)]
    assert found.cart.revision == 2


async def test_a_caller_that_leaves_during_the_commit_keeps_its_effect_and_disturbs_nobody(engine: Engine) -> None:
    held = Held(engine)
    queue = WriteQueue(held, ChangeNotifier(), app.new_id, 1000)
    await queue.start()
    held.reached.clear()
    held.go_on.clear()
    first, gone, last = (queue.submit(add()) for _ in range(3))
    await held.reached.wait()
    gone.cancel()
    held.go_on.set()
    assert [decode(await answer)[SKU] for answer in (first, last)] == [1, 3]
    assert decode(await queue.submit(add())) == {SKU: 4}
    await queue.close()
