"""Runs the probe over real sockets: against APIs that keep the contract, and against APIs that break one rule each."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from aiohttp import web

from cart_grpc import app
from cart_grpc.probe.batches import BATCHES, streamed_results
from cart_grpc.probe.contract import Check
from cart_grpc.probe.findings import Unreachable, Verdict
from cart_grpc.probe.probe import Probe, connect
from cart_grpc.probe.report import Report
from cart_grpc.probe.reservation_v1 import RESERVATION_V1
from cart_grpc.probe.session import ProbeConfig, Session
from cart_grpc.protocol.reservation import Disposition, Intent
from cart_grpc.simulator.errors import CallFailed
from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.http_endpoint import make_app
from cart_grpc.simulator.server import SimulatorServer
from cart_grpc.simulator.simulator import SimulatedReply, Simulator
from cart_grpc.simulator.stock import Stock
from tests.intents import SECOND
from tests.probe import broken, broken_batches, broken_simulators
from tests.reservation_api.hostile import Hostile, Script, hostile_http

EVERY_RULE = {"1", "2", "3", "4", "5", "6", "7", "8", "reads", "batches"}
NEEDS_A_SLOW_API = streamed_results.test
COUNTED = ProbeConfig(sku="beans", stock=10, ttl_us=0, timeout=5)


def make(stock: type[Stock] = Stock, kind: type[Simulator] = Simulator, **faults: Any) -> Simulator:
    """A simulator with 10 units of `beans` and no other sku."""
    return kind(
        stock({"beans": 10}, default_total=None),
        faults=Faults(**faults),
        numbers=random.Random(1),
        clock=lambda: time.time_ns() // 1000,
    )


@asynccontextmanager
async def probing(simulator: Simulator, transport: str, config: ProbeConfig) -> AsyncIterator[Probe[Any]]:
    """Serve the simulator; yields a probe of it."""
    server = SimulatorServer(simulator)
    ports = await server.start("127.0.0.1:0", "127.0.0.1:0")
    url = f"grpc://127.0.0.1:{ports.grpc}" if transport == "grpc" else f"http://127.0.0.1:{ports.http}"
    try:
        async with connect(url, config, clock=app.clock, new_id=app.new_id) as one:
            yield one
    finally:
        await server.stop(0)


async def probe(
    simulator: Simulator,
    transport: str = "grpc",
    config: ProbeConfig = COUNTED,
    checks: tuple[Check[Session], ...] = RESERVATION_V1.checks,
) -> Report:
    """Run `checks` of the probe against the simulator."""
    async with probing(simulator, transport, config) as one:
        one._contract = replace(RESERVATION_V1, checks=checks)
        return await one.run(asyncio.Event())


def rules(report: Report, verdict: Verdict) -> set[str]:
    """The rules that have a finding with this verdict."""
    return {finding.rule for finding in report.findings if finding.verdict is verdict}


@pytest.mark.parametrize("stock", [Stock, broken.Forgetful])
async def test_an_api_that_keeps_the_contract_passes_every_check(stock: type[Stock], transport: str) -> None:
    simulator = make(stock)
    report = await probe(simulator, transport, ProbeConfig("beans", 10, SECOND // 2, commit=True, timeout=5))
    assert report.passed, str(report)
    assert rules(report, Verdict.PASSED) == EVERY_RULE
    only_over_http = [] if transport == "http" else ["HOLD 2 with its revision as a JSON number, then as a string"]
    assert [each.test for each in report.findings if each.verdict is not Verdict.PASSED] == [
        "decisions after a crash of the API",
        *only_over_http,
        NEEDS_A_SLOW_API,
    ]
    levels = simulator.levels("beans")
    assert (levels.available, levels.held, levels.committed) == (7, 0, 3)


async def test_without_options_the_probe_names_the_options_that_untested_checks_need_and_sells_nothing(
    transport: str,
) -> None:
    simulator = make()
    simulator.set_stock("beans", 1000)
    report = await probe(simulator, transport, ProbeConfig("beans", ttl_us=0, timeout=5))
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


BROKEN: list[tuple[type[Stock], set[str]]] = [
    (broken.DecidesAgain, {"1", "6"}),
    (broken.ReservesAgain, {"1"}),
    (broken.IgnoresTheBody, {"1"}),
    (broken.ObeysTheBody, {"1"}),
    (broken.RefusesAndObeysTheBody, {"1"}),
    (broken.ComparesLabels, {"1"}),
    (broken.ComparesQuantitiesOnly, {"1"}),
    (broken.ExchangesTheSku, {"3"}),
    (broken.CapsTheTtl, {"5"}),
    (broken.RefusesShortHolds, {"5"}),
    (broken.LastWins, {"1", "3", "6"}),
    (broken.StaleIsBad, {"1", "3", "6"}),
    (broken.SmallRevisions, {"1"}),
    (broken.NeverShrinks, {"1"}),
    (broken.NeverGrows, {"1"}),
    (broken.KnowsNoUnseenRelease, {"2", "7"}),
    (broken.ForgetsReleases, {"2", "7"}),
    (broken.RefusesAndTakes, {"2"}),
    (broken.RefusedLoses, {"3"}),
    (broken.RefusedRunsOut, {"3"}),
    (broken.SoldOutIsAnError, {"3"}),
    (broken.ForgetsRejections, {"3"}),
    (broken.ReleasedComesBack, {"4"}),
    (broken.RenewalShortens, {"5"}),
    (broken.TooOldForNow, {"7"}),
    (broken.OldIsAnError, {"7"}),
]


@pytest.mark.parametrize(("stock", "expected"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
async def test_an_api_that_breaks_a_rule_fails_that_rule(stock: type[Stock], expected: set[str]) -> None:
    report = await probe(make(stock))
    assert rules(report, Verdict.FAILED) == expected, str(report)
    assert not report.passed
    for rule in expected:
        assert f"\n  rule {rule} is broken. Consequence: " in str(report)


async def test_a_hold_whose_next_revision_was_refused_is_released_with_a_lower_revision() -> None:
    simulator = make(broken.SmallRevisions)
    report = await probe(simulator)
    assert (simulator.levels("beans").held, report.log.left_behind) == (0, [])


@pytest.mark.parametrize(
    ("stock", "expected"),
    [(broken.LastWins, {"1", "3", "6"}), (broken.ForgetsReleases, {"2", "7"}), (broken.RefusedLoses, {"3"})],
)
async def test_the_probe_finds_most_broken_rules_without_counting_stock(stock: type[Stock], expected: set[str]) -> None:
    simulator = make(stock)
    simulator.set_stock("beans", 1000)
    report = await probe(simulator, config=ProbeConfig("beans", ttl_us=0, timeout=5))
    assert rules(report, Verdict.FAILED) == expected, str(report)


LASTING: list[tuple[type[Stock], set[str]]] = [
    (broken.SoldComesBack, {"4"}),
    (broken.SellsWhatIsHeld, {"4"}),
    (broken.RefusesLateSales, {"4"}),
    (broken.ExpiresEarly, {"4", "5"}),
    (broken.ForgetsExpired, {"5"}),
]


@pytest.mark.parametrize(("stock", "expected"), LASTING, ids=lambda value: getattr(value, "__name__", ""))
async def test_an_api_that_expires_early_or_forgets_fails_the_rules_about_it(
    stock: type[Stock], expected: set[str]
) -> None:
    report = await probe(make(stock), config=ProbeConfig("beans", 10, SECOND // 2, commit=True, timeout=5))
    assert rules(report, Verdict.FAILED) == expected, str(report)


@pytest.mark.parametrize(
    ("kind", "expected"), [(broken_simulators.Races, {"6"}), (broken_simulators.ReadsNothing, {"reads"})]
)
async def test_an_api_with_a_race_or_wrong_reads_fails_that_rule(kind: type[Simulator], expected: set[str]) -> None:
    simulator = make(kind=kind)
    simulator.set_stock("beans", 1000)
    report = await probe(simulator, config=ProbeConfig("beans", ttl_us=0, timeout=5))
    assert rules(report, Verdict.FAILED) == expected, str(report)
    assert not report.passed


BROKEN_BATCHES = [
    broken_batches.OneErrorFailsAll,
    broken_batches.OneErrorRefusesTheBatch,
    broken_batches.StopsAtTheFirstError,
    broken_batches.OmitsErrors,
    broken_batches.StaleIsBad,
    broken_batches.MixesUp,
    broken_batches.ForgetsBatches,
    broken_batches.KeepsNothing,
    broken_batches.KeepsReleased,
    broken_batches.SmallBatches,
    broken_batches.CutsBatches,
    broken_batches.Races,
]


@pytest.mark.parametrize("kind", BROKEN_BATCHES, ids=lambda kind: kind.__name__)
async def test_an_api_whose_batches_differ_from_single_calls_fails_that_rule(kind: type[Simulator]) -> None:
    report = await probe(make(kind=kind), checks=BATCHES)
    assert rules(report, Verdict.FAILED) == {"batches"}, str(report)
    assert not report.passed
    assert "\n  batches is broken. Consequence: " in str(report)


@pytest.mark.parametrize(
    ("kind", "verdict"), [(Simulator, Verdict.PASSED), (broken_batches.WaitsForTheSlowest, Verdict.FAILED)]
)
async def test_if_some_calls_are_slow_the_probe_sees_whether_they_delay_the_rest_of_a_batch(
    kind: type[Simulator], verdict: Verdict, transport: str
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


@asynccontextmanager
async def picky(is_refused: Callable[[dict[str, Any]], bool]) -> AsyncIterator[str]:
    """Serve a simulator over HTTP that refuses a PUT if `is_refused` is true for its reservation. Yields the URL."""

    @web.middleware
    async def refuse(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.method == "PUT" and is_refused((await request.json())["reservation"]):
            return web.json_response({"error": {"status": "INVALID_ARGUMENT", "reason": "MALFORMED"}}, status=400)
        answer: web.StreamResponse = await handler(request)
        return answer

    simulator = make()
    simulator.set_stock("beans", 1000)
    app = make_app(simulator)
    app.middlewares.append(refuse)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.mark.parametrize(
    "is_refused",
    [lambda reservation: "priority" in reservation, lambda reservation: not isinstance(reservation["revision"], str)],
    ids=["unknown fields", "numbers"],
)
async def test_an_api_that_reads_only_its_own_way_of_writing_fails_that_rule(
    is_refused: Callable[[dict[str, Any]], bool],
) -> None:
    config = ProbeConfig("beans", ttl_us=0, timeout=5)
    async with picky(is_refused) as url, connect(url, config, clock=app.clock, new_id=app.new_id) as one:
        report = await one.run(asyncio.Event())
    assert rules(report, Verdict.FAILED) == {"8"}, str(report)


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
    assert f"left behind, expires within a day, all but one within 20 minutes: {report.log.left_behind[0]}" in str(
        report
    )


async def test_an_api_that_loses_messages_and_answers_fails_no_rule() -> None:
    report = await probe(make(lost_before_effect=0.05, lost_after_effect=0.05, throttled=0.01))
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
