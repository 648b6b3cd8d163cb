"""What goes wrong with one command stays with it."""

import asyncio
from dataclasses import replace
from sqlite3 import IntegrityError

import pytest
from asyncpg import IntegrityConstraintViolationError

from cart_grpc import app
from cart_grpc.carts.refusals import ItemNotFound, Overloaded, ShuttingDown
from cart_grpc.commands.direct import Claim
from cart_grpc.names import cart_key, user_key
from cart_grpc.protocol.lanes import HOLD_LANE
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.engine import Engine
from cart_grpc.store.read.reads import Reads
from cart_grpc.store.write_queue import WriteQueue
from tests.store.writes import KEY, LEASE, SKU, Wrapped, add, broken, decode, refused_by_the_database, remove


class Held(Wrapped):
    """An engine that keeps its caller waiting between the commit and the answer."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def committed(self) -> None:
        self.reached.set()
        await self.go_on.wait()


async def total(engine: Engine) -> int:
    found = await Reads(engine).find_cart(KEY)
    return found.cart.total_quantity if found else 0


async def test_a_refused_command_does_not_fail_its_batch(writer: WriteQueue, engine: Engine) -> None:
    answers = [writer.submit(command) for command in (add(), remove("never-added"), add())]
    results = await asyncio.gather(*answers, return_exceptions=True)
    assert [type(result) for result in results] == [bytes, ItemNotFound, bytes]
    assert await total(engine) == 2


async def test_a_command_with_a_bug_does_not_fail_its_batch(writer: WriteQueue, engine: Engine) -> None:
    answers = [writer.submit(command) for command in (add(), broken(ZeroDivisionError("bug")), add())]
    results = await asyncio.gather(*answers, return_exceptions=True)
    assert [type(result) for result in results] == [bytes, ZeroDivisionError, bytes]
    assert await total(engine) == 2


async def test_a_reply_that_cannot_be_encoded_leaves_no_effect(writer: WriteQueue, engine: Engine) -> None:
    def fail(*_: object) -> bytes:
        raise ZeroDivisionError("bug")

    broken_reply = replace(add(quantity=5), encode=fail)
    answers = [writer.submit(broken_reply), writer.submit(add())]
    results = await asyncio.gather(*answers, return_exceptions=True)
    assert isinstance(results[0], ZeroDivisionError)
    assert await total(engine) == 1


@pytest.mark.parametrize("position", [0, 3, 6])
async def test_a_batch_that_the_database_refuses_is_split_and_only_the_culprit_fails(
    writer: WriteQueue, engine: Engine, position: int
) -> None:
    bob = cart_key(user_key("bob"), "default")
    commands = [add() for _ in range(6)]
    commands.insert(position, refused_by_the_database(bob))
    results = await asyncio.gather(*map(writer.submit, commands), return_exceptions=True)
    assert isinstance(results.pop(position), IntegrityError | IntegrityConstraintViolationError)
    assert [decode(reply)[SKU] for reply in results if isinstance(reply, bytes)] == [1, 2, 3, 4, 5, 6]
    assert await total(engine) == 6
    assert await Reads(engine).find_cart(bob) is None


async def test_a_culprit_in_the_same_cart_leaves_no_trace_in_it(writer: WriteQueue, engine: Engine) -> None:
    commands = [add(), refused_by_the_database(), add()]
    results = await asyncio.gather(*map(writer.submit, commands), return_exceptions=True)
    assert isinstance(results[1], IntegrityError | IntegrityConstraintViolationError)
    found = await Reads(engine).find_cart(KEY)
    assert found is not None
    assert [(line.item.sku, line.item.quantity) for line in found.lines] == [(SKU, 2)]
    assert found.cart.revision == 2


async def test_a_command_whose_caller_has_gone_before_its_batch_is_not_run(writer: WriteQueue, engine: Engine) -> None:
    gone, there = writer.submit(add(quantity=5)), writer.submit(add())
    gone.cancel()
    assert decode(await there) == {SKU: 1}
    assert await total(engine) == 1


async def test_a_caller_who_goes_in_mid_commit_loses_nothing_and_strands_nobody(engine: Engine) -> None:
    held = Held(engine)
    writer = WriteQueue(held, ChangeNotifier(), app.new_id, 1000)
    await writer.start()
    held.reached.clear()
    held.go_on.clear()
    first, gone, last = (writer.submit(add()) for _ in range(3))
    await held.reached.wait()
    gone.cancel()
    held.go_on.set()
    assert [decode(await answer)[SKU] for answer in (first, last)] == [1, 3]
    assert decode(await writer.submit(add())) == {SKU: 4}
    await writer.close()


async def test_a_full_queue_refuses_callers_while_the_reconcilers_commands_still_pass(engine: Engine) -> None:
    writer = WriteQueue(engine, ChangeNotifier(), app.new_id, queue_size=3)
    answers = [writer.submit(add()) for _ in range(3)]
    with pytest.raises(Overloaded):
        writer.submit(add())
    claimed = writer.submit_background(Claim(HOLD_LANE, 10, LEASE))
    await writer.start()
    assert [decode(await answer)[SKU] for answer in answers] == [1, 2, 3]
    # Claims come after what their batch has changed.
    assert len(await claimed) == 1
    assert decode(await writer.submit(add())) == {SKU: 4}
    await writer.close()


async def test_closing_writes_what_waits_and_refuses_what_comes_after(engine: Engine) -> None:
    writer = WriteQueue(engine, ChangeNotifier(), app.new_id, 1000)
    await writer.start()
    answers = [writer.submit(add()) for _ in range(5)]
    closing = asyncio.create_task(writer.close())
    assert [decode(await answer)[SKU] for answer in answers] == [1, 2, 3, 4, 5]
    await closing
    with pytest.raises(ShuttingDown):
        writer.submit(add())
