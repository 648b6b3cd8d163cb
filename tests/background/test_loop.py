"""The shape of the background loops: they survive their own errors, and stop between rounds."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cart_grpc.background.loop import Loop
from cart_grpc.carts.refusals import DatabaseUnavailable, OutcomeUnknown


class Rounds:
    """A loop whose rounds do what `script` says; it stops after the last one. `results` is what each pause got."""

    def __init__(self, *script: int | Exception) -> None:
        self.script = list(script)
        self.results: list[int | None] = []
        self.loop = Loop("example", self.run_once, self.pause)

    async def run_once(self) -> int:
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    async def pause(self, result: int | None) -> None:
        self.results.append(result)
        if not self.script:
            self.loop._stopping = True


@contextmanager
def warnings_of(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    messages: list[str] = []
    with caplog.at_level(logging.WARNING):
        yield messages
    messages += [record.getMessage() for record in caplog.records]


async def test_each_pause_gets_the_result_of_its_round_and_none_after_a_failure() -> None:
    rounds = Rounds(3, RuntimeError("a bug"), 0)
    await rounds.loop.run()
    assert rounds.results == [3, None, 0]


async def test_an_unexpected_error_is_logged_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    bug = RuntimeError("a bug")
    with warnings_of(caplog) as messages:
        await Rounds(bug, bug, 1, bug, KeyError("another"), 1).loop.run()
    assert messages == ["example: unexpected error: a bug", "example: unexpected error: 'another'"]
    assert caplog.text.count("Traceback") == 2


async def test_a_loop_does_not_log_an_unavailable_database_because_the_store_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rounds = Rounds(1, DatabaseUnavailable(), OutcomeUnknown(), 1)
    with warnings_of(caplog) as messages:
        await rounds.loop.run()
    assert messages == []
    assert rounds.results == [1, None, None, 1]


async def test_stop_waits_for_the_round_under_way_and_starts_no_other() -> None:
    started, may_end, count = asyncio.Event(), asyncio.Event(), 0

    async def run_once() -> None:
        nonlocal count
        count += 1
        started.set()
        await may_end.wait()

    async def pause(_: None) -> None:
        raise AssertionError("a stopped loop must not pause")

    loop = Loop("example", run_once, pause)
    running = asyncio.create_task(loop.run())
    await started.wait()
    stopping = asyncio.create_task(loop.stop())
    await asyncio.sleep(0)
    assert not stopping.done()
    may_end.set()
    await stopping
    await running
    assert count == 1


async def test_a_loop_that_never_ran_can_be_stopped() -> None:
    rounds = Rounds()
    await rounds.loop.stop()
    await rounds.loop.run()
    assert rounds.results == []
