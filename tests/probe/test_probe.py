"""The probe, over real sockets, against APIs that keep the contract and APIs that break one rule each."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from cart_grpc import app
from cart_grpc.probe.calls import SECOND
from cart_grpc.probe.findings import NobodyThere, Verdict
from cart_grpc.probe.probe import Probe, connect
from cart_grpc.probe.report import Report
from cart_grpc.probe.reservation_v1 import RESERVATION_V1
from cart_grpc.probe.session import ProbeConfig
from cart_grpc.protocol.reservation import Disposition, Intent
from cart_grpc.simulator.errors import CallFailed
from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.server import SimulatorServer
from cart_grpc.simulator.simulator import SimulatedReply, Simulator
from cart_grpc.simulator.stock import Stock
from tests.probe import broken
from tests.reservation_api.hostile import Hostile, Script, hostile_http

COUNTED = ProbeConfig(sku="beans", stock=10, ttl=0, timeout=5)


def make(stock: type[Stock] = Stock, kind: type[Simulator] = Simulator, **faults: Any) -> Simulator:
    """Return a simulator with 10 pieces of `beans` and none of anything else."""
    return kind(
        stock({"beans": 10}, default_total=None),
        faults=Faults(**faults),
        numbers=random.Random(1),
        clock=lambda: time.time_ns() // 1000,
    )


@asynccontextmanager
async def probing(simulator: Simulator, transport: str, config: ProbeConfig) -> AsyncIterator[Probe[Any]]:
    """Serve the simulator, and a probe of it."""
    server = SimulatorServer(simulator)
    ports = await server.start("127.0.0.1:0", "127.0.0.1:0")
    url = f"grpc://127.0.0.1:{ports.grpc}" if transport == "grpc" else f"http://127.0.0.1:{ports.http}"
    try:
        async with connect(url, config, clock=app.clock, new_id=app.new_id) as one:
            yield one
    finally:
        await server.stop(0)


async def probe(simulator: Simulator, transport: str = "grpc", config: ProbeConfig = COUNTED) -> Report:
    """Probe the simulator to the end."""
    async with probing(simulator, transport, config) as one:
        return await one.run(asyncio.Event())


def rules(report: Report, verdict: Verdict) -> set[str]:
    """Return the rules that have a finding of this kind."""
    return {finding.rule for finding in report.findings if finding.verdict is verdict}


@pytest.mark.parametrize("stock", [Stock, broken.Forgetful])
async def test_an_api_that_keeps_the_contract_is_found_to_keep_all_of_it(stock: type[Stock], transport: str) -> None:
    simulator = make(stock)
    report = await probe(simulator, transport, ProbeConfig("beans", 10, SECOND // 2, commit=True, timeout=5))
    assert report.kept, str(report)
    assert rules(report, Verdict.KEPT) == {"1", "2", "3", "4", "5", "6", "7", "reads"}
    assert [each.asked for each in report.findings if each.verdict is not Verdict.KEPT] == [
        "what was answered, after the API was killed"
    ]
    levels = simulator.levels("beans")
    assert (levels.available, levels.held, levels.committed) == (8, 0, 2)


async def test_a_probe_that_knows_little_tells_what_it_did_not_test_and_sells_nothing(transport: str) -> None:
    simulator = make()
    simulator.set_stock("beans", 1000)
    report = await probe(simulator, transport, ProbeConfig("beans", ttl=0, timeout=5))
    assert report.kept, str(report)
    untested = {each.answered for each in report.findings if each.verdict is Verdict.NOT_TESTED}
    assert untested == {
        "--stock would say how many there are",
        "a sale cannot be taken back: --commit allows it",
        "--ttl would say how long to hold it",
        "only its owners can kill it",
    }
    assert (simulator.levels("beans").held, simulator.levels("beans").committed) == (0, 0)


BROKEN: list[tuple[type[Stock], set[str]]] = [
    (broken.DecidesAgain, {"1", "6"}),
    (broken.ReservesAgain, {"1"}),
    (broken.IgnoresTheBody, {"1"}),
    (broken.ObeysTheBody, {"1"}),
    (broken.RefusesAndObeysTheBody, {"1"}),
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
async def test_an_api_that_breaks_a_rule_is_told_which(stock: type[Stock], expected: set[str]) -> None:
    report = await probe(make(stock))
    assert rules(report, Verdict.BROKEN) == expected, str(report)
    assert not report.kept
    for rule in expected:
        assert f"\n  rule {rule} not kept: " in str(report)


async def test_what_was_refused_for_its_revision_is_released_below_it() -> None:
    simulator = make(broken.SmallRevisions)
    report = await probe(simulator)
    assert (simulator.levels("beans").held, report.log.stuck) == (0, [])


@pytest.mark.parametrize(
    ("stock", "expected"),
    [(broken.LastWins, {"1", "3", "6"}), (broken.ForgetsReleases, {"2", "7"}), (broken.RefusedLoses, {"3"})],
)
async def test_much_is_found_without_counting(stock: type[Stock], expected: set[str]) -> None:
    simulator = make(stock)
    simulator.set_stock("beans", 1000)
    report = await probe(simulator, config=ProbeConfig("beans", ttl=0, timeout=5))
    assert rules(report, Verdict.BROKEN) == expected, str(report)


LASTING: list[tuple[type[Stock], set[str]]] = [
    (broken.SoldComesBack, {"4"}),
    (broken.RefusesLateSales, {"4"}),
    (broken.ExpiresEarly, {"4", "5"}),
    (broken.ForgetsExpired, {"5"}),
]


@pytest.mark.parametrize(("stock", "expected"), LASTING, ids=lambda value: getattr(value, "__name__", ""))
async def test_what_lasts_too_short_or_comes_back_is_told(stock: type[Stock], expected: set[str]) -> None:
    report = await probe(make(stock), config=ProbeConfig("beans", 10, SECOND // 2, commit=True, timeout=5))
    assert rules(report, Verdict.BROKEN) == expected, str(report)


@pytest.mark.parametrize(("kind", "expected"), [(broken.Races, {"6"}), (broken.ReadsNothing, {"reads"})])
async def test_a_race_and_a_wrong_read_are_told(kind: type[Simulator], expected: set[str]) -> None:
    simulator = make(kind=kind)
    simulator.set_stock("beans", 1000)
    report = await probe(simulator, config=ProbeConfig("beans", ttl=0, timeout=5))
    assert rules(report, Verdict.BROKEN) == expected, str(report)
    assert not report.kept


async def test_nobody_there_is_told_at_once(transport: str) -> None:
    with pytest.raises(NobodyThere, match=r"UNAVAILABLE|HTTP_503"):
        await probe(make(down=True), transport)


async def test_an_address_where_something_else_answers_is_told(hostile: Hostile) -> None:
    hostile.script = Script(code=grpc.StatusCode.UNIMPLEMENTED)
    async with connect(hostile.url, COUNTED, clock=app.clock, new_id=app.new_id) as one:
        with pytest.raises(NobodyThere, match=r"UNIMPLEMENTED|HTTP_501"):
            await one.run(asyncio.Event())


async def test_a_path_that_a_web_server_does_not_have_is_told() -> None:
    async with (
        hostile_http() as hostile,
        connect(hostile.url.removesuffix("/shop"), COUNTED, clock=app.clock, new_id=app.new_id) as one,
    ):
        with pytest.raises(NobodyThere, match=r"INVALID_ANSWER: .*(404|text/plain)"):
            await one.run(asyncio.Event())


async def test_an_api_that_answers_garbage_breaks_the_contract(transport: str) -> None:
    report = await probe(make(garbage=1.0), transport)
    assert rules(report, Verdict.BROKEN), str(report)
    assert not rules(report, Verdict.KEPT)
    assert not report.kept
    assert "INVALID_ANSWER" in str(report)


async def test_an_api_that_is_too_slow_is_not_called_broken(transport: str) -> None:
    simulator = make(latency_us=60 * SECOND)
    report = await probe(simulator, transport, ProbeConfig("beans", ttl=0, timeout=0.05))
    assert rules(report, Verdict.BROKEN) == set()
    assert rules(report, Verdict.NO_ANSWER) == {"1", "2", "3", "4", "5", "6", "7", "reads"}
    assert not report.kept
    assert "DEADLINE_EXCEEDED" in str(report)
    assert len(report.log.stuck) > 10
    assert report.log.unanswered < 100, "a time-out is not worth as much time again"
    assert f"left behind, for 20 minutes at most: {report.log.stuck[0]}" in str(report)


async def test_an_api_that_loses_messages_and_answers_is_not_called_broken() -> None:
    report = await probe(make(lost_before_effect=0.05, lost_after_effect=0.05, throttled=0.01))
    assert rules(report, Verdict.BROKEN) == set(), str(report)
    assert rules(report, Verdict.KEPT) == {"1", "2", "3", "4", "5", "6", "7", "reads"}
    assert report.log.unanswered > 5


async def test_a_sku_of_which_there_is_none_breaks_no_rule(transport: str) -> None:
    report = await probe(make(), transport, ProbeConfig("tea", ttl=0, timeout=5))
    assert rules(report, Verdict.BROKEN) == set(), str(report)
    assert not report.kept
    assert "REJECTED UNKNOWN_SKU, 0 held; --sku should name one" in str(report)


async def test_a_probe_that_is_interrupted_leaves_nothing_reserved(transport: str) -> None:
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
    assert any(finding.answered == "interrupted" for finding in report.findings)
    assert len(report.findings) == len(RESERVATION_V1.checks)
    assert (report.kept, report.log.stuck) == (False, [])


class StopsAtTheFirstRelease(Simulator):
    """The first RELEASE is not answered, and the probe is interrupted at that moment."""

    stopped: asyncio.Event | None = None

    async def apply(self, read: Callable[[], Intent]) -> SimulatedReply:
        if self.stopped and not self.stopped.is_set() and read().disposition is Disposition.RELEASE:
            self.stopped.set()
            raise CallFailed("lost")
        return await super().apply(read)


async def test_a_probe_that_is_interrupted_while_it_gives_back_goes_on_with_that() -> None:
    simulator = make(kind=StopsAtTheFirstRelease)
    assert isinstance(simulator, StopsAtTheFirstRelease)
    simulator.stopped = asyncio.Event()
    async with probing(simulator, "grpc", COUNTED) as one:
        await one.run(simulator.stopped)
    assert simulator.levels("beans").held == 0
