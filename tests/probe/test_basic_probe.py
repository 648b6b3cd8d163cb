"""Runs the probe of `basic` over real sockets: against APIs that keep it and APIs that break one point each."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cart_grpc import app
from cart_grpc.probe.basic import BASIC
from cart_grpc.probe.findings import Unreachable, Verdict
from cart_grpc.probe.probe import connect
from cart_grpc.probe.report import Report
from cart_grpc.probe.session import ProbeConfig
from cart_grpc.simulator.server import SimulatorServer
from cart_grpc.simulator.simulator import Simulator
from tests.intents import SECOND
from tests.probe import basic_endpoints as endpoints
from tests.probe import broken_basic as broken
from tests.probe.probing import make, rules

COUNTED = ProbeConfig(sku="beans", stock=10, timeout=5)
UNCOUNTED = ProbeConfig(sku="beans", timeout=5)
ALL = set(BASIC.consequences)


async def probe_url(url: str, config: ProbeConfig = COUNTED) -> Report:
    """Run all checks against the API at `url`."""
    async with connect(url, config, clock=app.clock, new_id=app.new_id) as one:
        return await one.run(asyncio.Event())


async def probe(
    kind: type[endpoints.Endpoint], config: ProbeConfig = COUNTED, **faults: Any
) -> tuple[Report, Simulator]:
    """Run all checks against an endpoint of this kind, with 10 units of `beans`."""
    simulator = make(**faults)
    async with endpoints.serving(simulator, kind) as (url, _):
        return await probe_url(url, config), simulator


def answer_of(report: Report, test: str) -> str:
    """The answer to the check with this description."""
    return next(each.answer for each in report.findings if each.test == test)


@pytest.mark.parametrize("config", [COUNTED, UNCOUNTED], ids=["counted", "uncounted"])
async def test_the_simulator_passes_every_check_and_everything_is_released(config: ProbeConfig) -> None:
    simulator = make()
    simulator.set_stock("beans", config.stock or 30)
    server = SimulatorServer(simulator)
    ports = await server.start(None, "127.0.0.1:0")
    try:
        report = await probe_url(f"basic+http://127.0.0.1:{ports.http}/basic", config)
    finally:
        await server.stop(0)
    assert report.passed, str(report)
    assert "\nbasic: PASSED: no tested rule is broken" in str(report)
    assert rules(report, Verdict.PASSED) == ALL
    untested = {each.answer for each in report.findings if each.verdict is not Verdict.PASSED}
    assert untested == (set() if config.stock else {"this check needs --stock"})
    assert answer_of(report, "POST of 2, then the same again").startswith("2 reservations, as `basic` allows")
    assert simulator.levels("beans").held == 0
    assert "left behind" in str(report)
    assert report.log.latencies


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            endpoints.Idempotent,
            "one reservation and the same answer: this API has an idempotent POST, which `basic` does not use",
        ),
        (endpoints.RefusesRepeats, "one reservation, then EXISTS: nothing was reserved"),
        (endpoints.Numbers, "2 reservations, as `basic` allows: "),
    ],
)
async def test_behaviour_that_basic_leaves_open_is_reported_and_passes(
    kind: type[endpoints.Endpoint], said: str
) -> None:
    report, simulator = await probe(kind)
    assert report.passed, str(report)
    assert answer_of(report, "POST of 2, then the same again").startswith(said)
    assert simulator.levels("beans").held == 0


BROKEN: list[tuple[type[endpoints.Endpoint], set[str]]] = [
    (broken.AnswersNoId, {"post"}),
    (broken.TakesNothing, {"post"}),
    (broken.Lags, {"look-up"}),
    (broken.QuotesQuantities, {"look-up"}),
    (broken.WrapsLists, {"look-up", "unknown"}),
    (broken.UnknownIsNotFound, {"unknown"}),
    (broken.Mixes, {"apart"}),
    (broken.Sums, {"repeat"}),
    (broken.DeletesNothing, {"delete"}),
    (broken.HidesDeleted, {"delete"}),
    (broken.DeletesAll, {"delete"}),
    (broken.HasNoDelete, {"delete"}),
    (broken.GoneIsAnError, {"gone"}),
    (broken.GoneIsRefused, {"gone"}),
    (broken.DeletesAnother, {"gone"}),
    (broken.SoldOutIsAnError, {"refusal"}),
    (broken.SoldOutIsText, {"refusal"}),
    (broken.SoldOutHangs, {"refusal"}),
    (broken.RefusesAndReserves, {"refusal"}),
    (broken.KnowsAsciiOnly, {"text"}),
    (broken.FailsOnLetters, {"text"}),
]
KEEP_STOCK = (broken.DeletesNothing, broken.HidesDeleted, broken.HasNoDelete)


@pytest.mark.parametrize(("kind", "expected"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
async def test_an_api_that_breaks_a_point_fails_that_point_and_everything_is_released(
    kind: type[endpoints.Endpoint], expected: set[str]
) -> None:
    config = ProbeConfig("beans", 10, timeout=0.3 if kind is broken.SoldOutHangs else 5)
    report, simulator = await probe(kind, config)
    assert rules(report, Verdict.FAILED) == expected, str(report)
    assert f"\nbasic: FAILED: {', '.join(rule for rule in BASIC.consequences if rule in expected)}\n" in str(report)
    for rule in expected:
        assert f"\n  {rule} is broken. Consequence: {BASIC.consequences[rule]}" in str(report)
    assert (simulator.levels("beans").held == 0) is (kind not in KEEP_STOCK)
    assert not report.passed


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(broken.DeletesNothing, {"delete"}), (broken.HasNoDelete, {"delete", "gone"}), (broken.DeletesAll, {"delete"})],
)
async def test_the_probe_finds_most_broken_points_without_counting_stock(
    kind: type[endpoints.Endpoint], expected: set[str]
) -> None:
    simulator = make()
    simulator.set_stock("beans", 30)
    async with endpoints.serving(simulator, kind) as (url, _):
        report = await probe_url(url, UNCOUNTED)
    assert rules(report, Verdict.FAILED) == expected, str(report)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (broken.DeletesNothing, "deleted, but a look-up finds "),
        (broken.HasNoDelete, "HTTP_405: "),
        (broken.FindsAndDeletesNothing, "HTTP_405: "),
    ],
)
async def test_the_report_lists_reservations_that_could_not_be_released(
    kind: type[endpoints.Endpoint], why: str
) -> None:
    report, _ = await probe(kind)
    assert report.log.left_behind
    assert all(why in each for each in report.log.left_behind), report.log.left_behind
    assert f"left behind, stays until it is deleted: {report.log.left_behind[0]}" in str(report)


async def test_reservations_of_other_clients_are_not_released_if_look_ups_show_them() -> None:
    simulator = make()
    await simulator.reserve(lambda: ("somebody's", "beans", 3))
    async with endpoints.serving(simulator, broken.FindsAll) as (url, _):
        report = await probe_url(url)
    assert rules(report, Verdict.FAILED) == {"unknown"}, str(report)
    assert simulator.levels("beans").held == 3
    assert len(simulator.effects()) == 1, "the probe reserved nothing either"


async def test_an_api_that_is_down_is_unreachable() -> None:
    with pytest.raises(Unreachable, match="HTTP_503"):
        await probe(endpoints.Endpoint, down=True)
    with pytest.raises(Unreachable, match="UNAVAILABLE"):
        await probe_url("basic+http://127.0.0.1:1/shop")


async def test_the_probe_reserves_nothing_if_every_look_up_fails() -> None:
    simulator = make()
    async with endpoints.serving(simulator, endpoints.LooksNothingUp) as (url, _):
        with pytest.raises(Unreachable, match="HTTP_503"):
            await probe_url(url)
    assert simulator.effects() == []


async def test_a_404_is_not_retried() -> None:
    report, _ = await probe(broken.UnknownIsNotFound)
    assert report.log.unanswered < 60


async def test_a_path_that_a_web_server_does_not_have_is_unreachable() -> None:
    async with endpoints.serving(make()) as (url, _):
        with pytest.raises(Unreachable, match="HTTP_404"):
            await probe_url(url.replace("/shop", "/shopp"))


async def test_an_api_that_goes_down_fails_nothing_and_the_report_lists_what_it_keeps() -> None:
    report, simulator = await probe(endpoints.Dies)
    assert rules(report, Verdict.FAILED) == set(), str(report)
    assert "\nbasic: UNKNOWN: " in str(report)
    assert simulator.levels("beans").held > 0
    assert "HTTP_503" in report.log.left_behind[0]


async def test_an_api_that_loses_messages_and_answers_fails_nothing() -> None:
    report, simulator = await probe(endpoints.Endpoint, UNCOUNTED, lost_before_effect=0.05, lost_after_effect=0.05)
    assert rules(report, Verdict.FAILED) == set(), str(report)
    assert report.log.unanswered > 3
    assert simulator.levels("beans").held == 0


async def test_the_reservations_of_unanswered_posts_are_released() -> None:
    report, simulator = await probe(endpoints.ReservesAndFails, UNCOUNTED)
    assert rules(report, Verdict.FAILED) == set(), str(report)
    assert simulator.effects()
    assert (simulator.levels("beans").held, report.log.left_behind) == (0, [])


async def test_an_api_that_accepts_no_posts_fails_nothing() -> None:
    report, _ = await probe(endpoints.TakesNoPosts)
    assert rules(report, Verdict.FAILED) == set(), str(report)
    assert "\nbasic: UNKNOWN: post, look-up, apart, repeat, delete, gone, refusal, text\n" in str(report)


async def test_an_api_that_never_answers_fails_nothing() -> None:
    report, _ = await probe(endpoints.Endpoint, ProbeConfig("beans", timeout=0.05), latency_us=60 * SECOND)
    assert rules(report, Verdict.FAILED) == set(), str(report)
    assert not rules(report, Verdict.PASSED)
    assert not report.passed
    assert "DEADLINE_EXCEEDED" in str(report)


async def test_the_report_lists_an_unanswered_post_that_no_look_up_finds() -> None:
    report, _ = await probe(broken.SoldOutHangs, ProbeConfig("beans", 10, timeout=0.3))
    assert any(
        "a look-up finds nothing, but a POST may still take effect: DEADLINE_EXCEEDED" in one
        for one in report.log.left_behind
    )


async def test_an_unknown_item_fails_nothing() -> None:
    report, _ = await probe(endpoints.Endpoint, ProbeConfig("tea", timeout=5))
    assert rules(report, Verdict.FAILED) == set(), str(report)
    assert not report.passed
    assert "UNKNOWN_SKU: nothing was reserved; choose a --sku with a few units" in str(report)


@pytest.mark.parametrize(("kind", "drops"), [(endpoints.Signals, False), (endpoints.SignalsDelete, True)])
async def test_an_interrupted_probe_releases_everything(
    kind: Callable[[Simulator], endpoints.Signals], drops: bool
) -> None:
    simulator = make()
    async with (
        endpoints.serving(simulator, kind, drops=drops) as (url, endpoint),
        connect(url, COUNTED, clock=app.clock, new_id=app.new_id) as one,
    ):
        stopped = asyncio.Event()
        running = asyncio.create_task(one.run(stopped))
        assert isinstance(endpoint, endpoints.Signals)
        async with asyncio.timeout(20):
            await endpoint.arrived.wait()
        stopped.set()
        report = await running
    assert simulator.effects()
    assert simulator.levels("beans").held == 0
    assert (report.passed, report.log.left_behind) == (False, [])
    assert any(each.answer == "interrupted" for each in report.findings)
