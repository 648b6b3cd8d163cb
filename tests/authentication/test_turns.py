"""The turns of strangers: nobody waits without a flood, and in a flood each connection gets its share."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import pytest

from cart_grpc.authentication import turns as turns_module
from cart_grpc.authentication.turns import BURST_SECONDS, MAX_TURN_SECONDS, SHARE, Turns
from cart_grpc.carts.refusals import Overloaded
from tests.simulation.loop import VirtualLoop

TURN_SECONDS = MAX_TURN_SECONDS / 2


def simulate(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` in virtual time, in which only waiting takes time."""
    loop = VirtualLoop()
    task = loop.create_task(work)
    loop.run_until_complete(task)
    loop.close()


async def call(turns: Turns, connection: str, answered: list[str]) -> None:
    """One call of a stranger, which takes TURN_SECONDS."""
    await turns.take(connection)
    turns.pay(TURN_SECONDS, is_refused=False)
    answered.append(connection)


async def flood(turns: Turns, *connections: str, answered: list[str], calls: int = 100) -> list["asyncio.Task[None]"]:
    """Let each connection make calls, until no burst is left and some wait."""
    spent = int(BURST_SECONDS * SHARE / TURN_SECONDS) + 1
    for _ in range(spent):
        turns.pay(TURN_SECONDS, is_refused=False)
    tasks = [asyncio.create_task(call(turns, name, answered)) for name in connections for _ in range(calls)]
    await asyncio.sleep(0)
    return tasks


def test_without_a_flood_nobody_waits() -> None:
    async def work() -> None:
        turns, began = Turns(), asyncio.get_running_loop().time()
        for _ in range(1_000):
            await call(turns, "a", [])
            await asyncio.sleep(TURN_SECONDS / SHARE)
        assert asyncio.get_running_loop().time() - began == pytest.approx(1_000 * TURN_SECONDS / SHARE)

    simulate(work())


def test_in_a_flood_strangers_take_no_more_than_their_share_of_the_time() -> None:
    async def work() -> None:
        loop, turns = asyncio.get_running_loop(), Turns()
        began = loop.time()
        await asyncio.gather(*await flood(turns, "a", "b", answered=[]))
        assert loop.time() - began >= 199 * TURN_SECONDS / SHARE

    simulate(work())


def test_connections_take_turns_so_a_flood_of_one_does_not_delay_another() -> None:
    async def work() -> None:
        turns, answered = Turns(), list[str]()
        flooding = await flood(turns, "a", "b", answered=answered)
        await call(turns, "c", answered)
        assert Counter(answered)["a"] <= 2
        await asyncio.gather(*flooding)
        assert answered.count("a") == answered.count("b") == 100

    simulate(work())


def test_the_calls_that_wait_are_bounded_and_each_connection_may_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "MAX_WAITING", 50)

    async def work() -> None:
        turns, answered = Turns(), list[str]()
        flooding = await flood(turns, "a", answered=answered)
        other = asyncio.create_task(call(turns, "b", answered))
        ended = await asyncio.gather(*flooding, return_exceptions=True)
        assert sum(isinstance(each, Overloaded) for each in ended) == 50
        assert answered.index("b") <= 2
        assert not other.exception()

    simulate(work())


def test_calls_that_are_cancelled_leave_the_queue_and_the_others_are_answered() -> None:
    async def work() -> None:
        turns, answered = Turns(), list[str]()
        gone = await flood(turns, "a", answered=answered)
        stays = asyncio.create_task(call(turns, "a", answered))
        await asyncio.sleep(TURN_SECONDS / SHARE)
        for task in gone:
            task.cancel()
        began = asyncio.get_running_loop().time()
        await stays
        assert asyncio.get_running_loop().time() - began <= 2 * TURN_SECONDS / SHARE
        await call(turns, "a", answered)

    simulate(work())


def test_calls_that_are_cancelled_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "MAX_WAITING", 100)

    async def work() -> None:
        turns, answered = Turns(), list[str]()
        gone = await flood(turns, "a", answered=answered)
        stays = asyncio.create_task(call(turns, "b", answered))
        for task in gone:
            task.cancel()
        # In the same turn of the loop a turn is given: to a call that is cancelled, but has not noticed it yet.
        turns._paid = 0.0
        turns._give()
        await asyncio.gather(*gone, return_exceptions=True)
        await asyncio.gather(stays, *(call(turns, "a", answered) for _ in range(99)))
        assert Counter(answered) == {"a": 99, "b": 1}

    simulate(work())


def test_a_refusal_costs_more_than_a_valid_token_and_a_wait_for_keys_costs_little() -> None:
    async def seconds_after(seconds: float, *, is_refused: bool) -> float:
        loop, turns = asyncio.get_running_loop(), Turns()
        for _ in range(2_000):
            turns.pay(seconds, is_refused=is_refused)
        began = loop.time()
        await turns.take("a")
        return loop.time() - began

    async def work() -> None:
        valid = await seconds_after(0.0001, is_refused=False)
        assert await seconds_after(0.0001, is_refused=True) > valid
        longest = await seconds_after(MAX_TURN_SECONDS, is_refused=False)
        assert await seconds_after(5, is_refused=False) == pytest.approx(longest)

    simulate(work())
