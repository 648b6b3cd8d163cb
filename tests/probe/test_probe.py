"""Runs the probe over real sockets, and against APIs that are slow, silent, unreachable or hard to stop."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import grpc
import pytest

from cart_grpc import app
from cart_grpc.probe.batches import BATCHES, streamed_results
from cart_grpc.probe.findings import Unreachable, Verdict
from cart_grpc.probe.formats import FORMATS
from cart_grpc.probe.probe import connect
from cart_grpc.probe.reservation_v1 import RESERVATION_V1
from cart_grpc.probe.session import ProbeConfig
from cart_grpc.protocol.reservation import Disposition, Intent
from cart_grpc.simulator.errors import CallFailed
from cart_grpc.simulator.simulator import SimulatedReply, Simulator
from cart_grpc.simulator.stock import Stock
from tests.intents import SECOND
from tests.probe import broken, broken_batches
from tests.probe.probing import COUNTED, EVERY_RULE, EVERYTHING, UNCOUNTED, make, probe, probing, rules
from tests.reservation_api.hostile import Hostile, Script, hostile_http

NEEDS_A_SLOW_API = streamed_results.test


@pytest.mark.parametrize(("stock", "transport"), [(Stock, "grpc"), (Stock, "http"), (broken.Forgetful, "grpc")])
async def test_an_api_that_keeps_the_contract_passes_every_check(stock: type[Stock], transport: str) -> None:
    simulator = make(stock)
    report = await probe(simulator, transport, EVERYTHING)
    assert report.passed, str(report)
    assert rules(report, Verdict.PASSED) == EVERY_RULE
    styles = {"http": FORMATS, "grpc": FORMATS[:1]}[transport]
    assert [each.test for each in report.findings if each.verdict is not Verdict.PASSED] == [
        "decisions after a crash of the API",
        *(each.test for each in FORMATS if each not in styles),
        NEEDS_A_SLOW_API,
    ]
    levels = simulator.levels("beans")
    assert (levels.available, levels.held, levels.committed) == (5, 0, 5)


async def test_without_options_the_probe_names_the_options_that_untested_checks_need_and_sells_nothing(
    transport: str,
) -> None:
    simulator = make()
    simulator.set_stock("beans", 1000)
    report = await probe(simulator, transport, UNCOUNTED)
    assert report.passed, str(report)
    untested = {
        each.answer for each in report.findings if each.verdict is Verdict.NOT_TESTED and each.test != NEEDS_A_SLOW_API
    }
    assert untested - {"this transport cannot send it"} == {
        "this check needs --stock",
        "this check needs --commit: it cannot undo a sale",
        "this check needs --ttl",
        "only the owners of the API can test this",
    }
    assert (simulator.levels("beans").held, simulator.levels("beans").committed) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "transport", "verdict"),
    [
        (Simulator, "grpc", Verdict.PASSED),
        (Simulator, "http", Verdict.PASSED),
        (broken_batches.WaitsForTheSlowest, "http", Verdict.FAILED),
    ],
)
async def test_if_some_calls_are_slow_the_probe_sees_whether_they_delay_the_rest_of_a_batch(
    kind: type[Simulator], transport: str, verdict: Verdict
) -> None:
    simulator = make(kind=kind, slow=0.3, slow_latency_us=3 * SECOND // 2)
    config = ProbeConfig("beans", ttl_us=0, timeout=20)
    report = await probe(simulator, transport, config, checks=(streamed_results,))
    [finding] = report.findings
    assert finding.verdict is verdict, str(report)


async def test_the_least_stock_is_enough_to_probe_batches() -> None:
    simulator = make()
    simulator.set_stock("beans", 5)
    report = await probe(simulator, config=replace(COUNTED, stock=5), checks=BATCHES)
    assert [each.test for each in report.findings if each.verdict is not Verdict.PASSED] == [NEEDS_A_SLOW_API]


async def test_an_api_with_single_calls_only_passes_and_the_report_says_so(transport: str) -> None:
    report = await probe(make(no_batches=True), transport)
    assert report.passed, str(report)
    assert rules(report, Verdict.PASSED) == EVERY_RULE - {"batches"}
    batches = [each for each in report.findings if each.rule == "batches"]
    assert {each.verdict for each in batches} == {Verdict.NOT_TESTED}
    assert all(each.answer.startswith("single calls only: ") for each in batches), str(report)


async def test_an_api_that_is_down_is_unreachable(transport: str) -> None:
    with pytest.raises(Unreachable, match=r"UNAVAILABLE|HTTP_503"):
        await probe(make(down=True), transport)


async def test_an_address_with_another_service_is_unreachable(hostile: Hostile) -> None:
    hostile.script = Script(code=grpc.StatusCode.UNIMPLEMENTED)
    async with connect(hostile.url, COUNTED, clock=app.clock, new_id=app.new_id) as one:
        with pytest.raises(Unreachable, match=r"UNIMPLEMENTED|HTTP_501"):
            await one.run(asyncio.Event())


async def test_a_path_that_a_web_server_does_not_have_is_unreachable() -> None:
    async with (
        hostile_http() as hostile,
        connect(hostile.url.removesuffix("/shop"), COUNTED, clock=app.clock, new_id=app.new_id) as one,
    ):
        with pytest.raises(Unreachable, match=r"INVALID_ANSWER: .*(404|text/plain)"):
            await one.run(asyncio.Event())


async def test_an_api_that_answers_garbage_fails(transport: str) -> None:
    report = await probe(make(garbage=1.0), transport)
    assert rules(report, Verdict.FAILED), str(report)
    assert not rules(report, Verdict.PASSED)
    assert not report.passed
    assert "INVALID_ANSWER" in str(report)


async def test_an_api_that_never_answers_fails_no_rule(transport: str) -> None:
    simulator = make(latency_us=60 * SECOND)
    report = await probe(simulator, transport, ProbeConfig("beans", ttl_us=0, timeout=0.05))
    assert rules(report, Verdict.FAILED) == set()
    assert rules(report, Verdict.NO_ANSWER) == EVERY_RULE
    assert not report.passed
    assert "DEADLINE_EXCEEDED" in str(report)
    assert len(report.log.left_behind) > 10
    assert report.log.unanswered < 100, "a time-out is not retried"
    assert f"left behind, expires within 25 hours, all but one within 20 minutes: {report.log.left_behind[0]}" in str(
        report
    )


async def test_an_api_that_loses_messages_and_answers_fails_no_rule() -> None:
    simulator = make(lost_before_effect=0.05, lost_after_effect=0.05, throttled=0.01)
    simulator.set_stock("beans", 1000)
    report = await probe(simulator, "grpc", UNCOUNTED)
    assert rules(report, Verdict.FAILED) == set(), str(report)
    assert rules(report, Verdict.PASSED) == EVERY_RULE
    assert report.log.unanswered > 5


async def test_an_unknown_sku_fails_no_rule(transport: str) -> None:
    report = await probe(make(), transport, ProbeConfig("tea", ttl_us=0, timeout=5))
    assert rules(report, Verdict.FAILED) == set(), str(report)
    assert not report.passed
    assert "REJECTED UNKNOWN_SKU, 0 held; choose a --sku with a few units" in str(report)


async def test_an_interrupted_probe_releases_everything(transport: str) -> None:
    simulator = make(latency_us=20_000)
    async with probing(simulator, transport, COUNTED) as one:
        stopped = asyncio.Event()
        running = asyncio.create_task(one.run(stopped))
        async with asyncio.timeout(20):
            while simulator.levels("beans").held < 2:
                await asyncio.sleep(0.001)
        stopped.set()
        report = await running
        await simulator.settle()
    assert simulator.levels("beans").held == 0
    assert any(finding.answer == "interrupted" for finding in report.findings)
    assert len(report.findings) == len(RESERVATION_V1.checks)
    assert (report.passed, report.log.left_behind) == (False, [])


class StopsAtTheFirstRelease(Simulator):
    """Interrupts the probe at its first RELEASE, which gets no answer."""

    stopped: asyncio.Event | None = None

    async def apply(self, read: Callable[[], Intent]) -> SimulatedReply:
        if self.stopped and not self.stopped.is_set() and read().disposition is Disposition.RELEASE:
            self.stopped.set()
            raise CallFailed("lost")
        return await super().apply(read)


async def test_a_probe_that_is_interrupted_during_a_release_repeats_the_release() -> None:
    simulator = make(kind=StopsAtTheFirstRelease)
    assert isinstance(simulator, StopsAtTheFirstRelease)
    simulator.stopped = asyncio.Event()
    async with probing(simulator, "grpc", COUNTED) as one:
        await one.run(simulator.stopped)
    assert simulator.levels("beans").held == 0
