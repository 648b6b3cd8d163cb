"""The queue of the writers: its bound, whose turn it is, and what goes into a batch."""

import asyncio
from typing import Any

import pytest

from cart_grpc import app
from cart_grpc.carts.refusals import Overloaded, ShuttingDown
from cart_grpc.commands.direct import Claim, Ping
from cart_grpc.protocol.lanes import HOLD_LANE
from cart_grpc.store.batch_writer import BatchWriter, QueuedCommand
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.engine import Engine
from cart_grpc.store.queries import WriteQueries
from cart_grpc.store.shard_queue import MAX_BATCH, Handover
from cart_grpc.store.store import Store
from cart_grpc.store.write_queue import WriteQueue
from cart_grpc.tracing import TRACE_CONTEXT
from tests.store.writes import LEASE, SKU, Wrapped, add, decode, read_total


def queued() -> QueuedCommand:
    """A command that waits."""
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    return QueuedCommand(Ping(), answer)


@pytest.fixture
def writers(engine: Engine) -> list[BatchWriter]:
    queries = WriteQueries(engine.dialect, lock_users=engine.locks_users)
    return [BatchWriter(engine, queries, ChangeNotifier(), app.new_id, lambda _: None) for _ in range(2)]


@pytest.fixture
def handover(writers: list[BatchWriter]) -> Handover:
    """A hand-over whose two writers are idle."""
    return Handover(writers)


def begin_turn(handover: Handover) -> BatchWriter:
    writer = handover.begin_turn()
    assert writer is not None
    return writer


async def test_at_most_one_turn_is_pending_and_take_ends_it(handover: Handover) -> None:
    assert handover.begin_turn() is None
    handover.callers.append(queued())
    first = begin_turn(handover)
    handover.callers.append(queued())
    assert handover.begin_turn() is None
    assert len(handover.take()) == 2
    assert handover.begin_turn() is None
    handover.callers.append(queued())
    assert begin_turn(handover) is not first


async def test_a_command_that_comes_while_both_writers_are_busy_is_taken_by_the_first_that_finishes(
    handover: Handover,
) -> None:
    writers = []
    for _ in range(2):
        handover.callers.append(queued())
        writers.append(begin_turn(handover))
        handover.take()
    late = queued()
    handover.background.append(late)
    assert handover.begin_turn() is None
    handover.give_back(writers[1])
    assert begin_turn(handover) is writers[1]
    assert handover.take() == [late]


async def test_callers_that_never_stop_do_not_keep_a_background_command_out_of_batches_of_one(
    writers: list[BatchWriter],
) -> None:
    of_one = Handover(writers, most=1)
    background = queued()
    of_one.callers.extend([queued(), queued()])
    of_one.background.append(background)
    begin_turn(of_one)
    assert of_one.take() == [background]
    begin_turn(of_one)
    assert of_one.take() != []


async def test_a_command_that_is_queued_while_take_pops_begins_the_next_turn(handover: Handover) -> None:
    late, turns = queued(), list[BatchWriter | None]()

    class Answer(asyncio.Future[Any]):
        """`take` asks each command whether it is done. On SQLite the event loop can queue another one meanwhile."""

        def done(self) -> bool:
            handover.background.append(late)
            turns.append(handover.begin_turn())
            return False

    handover.callers.append(QueuedCommand(Ping(), Answer()))
    begin_turn(handover)
    handover.take()
    assert turns[0] is not None
    assert handover.take() == [late]


async def test_half_of_a_batch_is_for_callers_if_they_wait(handover: Handover) -> None:
    background = [queued() for _ in range(2 * MAX_BATCH)]
    callers = [queued() for _ in range(2 * MAX_BATCH)]
    handover.background.extend(background)
    handover.callers.extend(callers)
    half = MAX_BATCH // 2
    assert handover.take() == background[:half] + callers[:half]
    handover.callers.clear()
    assert handover.take() == background[half : half + MAX_BATCH]


async def test_a_command_whose_caller_left_before_its_batch_does_not_run(queue: WriteQueue, engine: Engine) -> None:
    gone, there = queue.submit(add(quantity=5)), queue.submit(add())
    gone.cancel()
    assert decode(await there) == {SKU: 1}
    assert await read_total(engine) == 1


@pytest.mark.one_shard
async def test_a_full_queue_rejects_callers_but_not_background_commands(engine: Engine) -> None:
    queue = WriteQueue(engine, ChangeNotifier(), app.new_id, queue_size=3)
    answers = [queue.submit(add()) for _ in range(3)]
    with pytest.raises(Overloaded):
        queue.submit(add())
    claimed = queue.submit_to(0, Claim(HOLD_LANE, 10, LEASE))
    await queue.start()
    assert [decode(await answer)[SKU] for answer in answers] == [1, 2, 3]
    # Claims run after the other commands of their batch.
    assert len(await claimed) == 1
    assert decode(await queue.submit(add())) == {SKU: 4}
    await queue.close()


async def test_close_writes_queued_commands_and_refuses_new_ones(engine: Engine) -> None:
    queue = WriteQueue(engine, ChangeNotifier(), app.new_id, 1000)
    await queue.start()
    answers = [queue.submit(add()) for _ in range(5)]
    closing = asyncio.create_task(queue.close())
    assert [decode(await answer)[SKU] for answer in answers] == [1, 2, 3, 4, 5]
    await closing
    with pytest.raises(ShuttingDown):
        queue.submit(add())


@pytest.mark.one_shard
async def test_more_commands_than_a_batch_holds_are_written_in_several_batches(
    idle: WriteQueue, counted: Wrapped
) -> None:
    answers = [idle.submit(add(quantity=1)) for _ in range(2 * MAX_BATCH + 1)]
    await idle.start()
    replies = [decode(await answer)[SKU] for answer in answers]
    await idle.close()
    assert replies == list(range(1, 2 * MAX_BATCH + 2))
    assert counted.transactions == 1 + 3


async def test_a_batch_does_not_run_in_the_context_of_the_call_that_began_it(store: Store) -> None:
    seen: list[str] = []
    store.notifier.subscribe(lambda _: seen.append(TRACE_CONTEXT.get()), lambda: None)
    token = TRACE_CONTEXT.set("of one call")
    try:
        await store.mutate(add())
    finally:
        TRACE_CONTEXT.reset(token)
    # The batch serves other calls, too, and begins calls to the Reservation API.
    assert seen == [""]
