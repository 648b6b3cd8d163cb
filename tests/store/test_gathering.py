"""Gathering: on a database in this process, a batch waits for the callers that the last one has answered."""

import asyncio
from pathlib import Path

import pytest

from cart_grpc import app
from cart_grpc.store import gathering as gathering_module
from cart_grpc.store import migration_run
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.engine import connect
from cart_grpc.store.gathering import Gathering
from cart_grpc.store.write_queue import WriteQueue
from tests.store.writes import SKU, Wrapped, add, decode

LONG = 3600.0
SOON = 10.0


async def ends(waiting: "asyncio.Task[None]", seconds: float) -> bool:
    done, _ = await asyncio.wait((waiting,), timeout=seconds)
    return bool(done)


async def test_a_batch_waits_until_as_many_calls_are_queued_as_were_in_flight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gathering_module, "_MAX_SECONDS", LONG)
    queue = ["queued meanwhile"]
    gathering = Gathering(queue, 100)
    gathering.note_batch(3)
    waiting = asyncio.create_task(gathering.wait())
    assert not await ends(waiting, 0.02)
    queue += ["back", "back"]
    assert not await ends(waiting, 0.02)
    queue += ["back"]
    assert await ends(waiting, SOON)


async def test_a_caller_that_is_back_is_not_waited_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering_module, "_MAX_SECONDS", LONG)
    queue: list[str] = []
    gathering = Gathering(queue, 100)
    gathering.note_batch(8)
    queue += ["back"]
    waiting = asyncio.create_task(gathering.wait())
    assert not await ends(waiting, 0.02)
    queue += ["back"] * 7
    assert await ends(waiting, SOON)


async def test_a_batch_does_not_wait_for_long() -> None:
    gathering = Gathering(["queued"], 1000)
    gathering.note_batch(100)
    await asyncio.wait_for(gathering.wait(), SOON)


async def test_a_batch_does_not_wait_for_more_calls_than_it_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering_module, "_MAX_SECONDS", LONG)
    gathering = Gathering(["queued"] * 10, 10)
    gathering.note_batch(10)
    await asyncio.wait_for(gathering.wait(), SOON)


@pytest.mark.parametrize("size", [0, 1, 2])  # And one more is queued.
async def test_a_few_calls_do_not_wait(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering_module, "_MAX_SECONDS", LONG)
    gathering = Gathering(["queued"], 1000)
    gathering.note_batch(size)
    await asyncio.wait_for(gathering.wait(), SOON)


async def test_callers_in_a_loop_share_a_transaction_on_sqlite(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'carts.db'}", app.clock)
    await migration_run.run(engine)
    counted = Wrapped(engine)
    queue = WriteQueue(counted, ChangeNotifier(), app.new_id, 1000)
    await queue.start()
    await asyncio.gather(*(queue.submit(add()) for _ in range(5)))
    before = counted.transactions
    answers = []
    for _ in range(5):
        answers.append(queue.submit(add()))
        # Long enough for a writer to begin.
        for _ in range(5):
            await asyncio.sleep(0)
    assert [decode(await answer)[SKU] for answer in answers] == [6, 7, 8, 9, 10]
    assert counted.transactions == before + 1
    await queue.close()
    await engine.close()
