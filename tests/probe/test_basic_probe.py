"""The probe of `basic`, over real sockets, against APIs that keep it and APIs that break one point each."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cart_grpc import app
from cart_grpc.probe.basic import BASIC
from cart_grpc.probe.calls import SECOND
from cart_grpc.probe.findings import NobodyThere, Verdict
from cart_grpc.probe.probe import connect
from cart_grpc.probe.report import Report
from cart_grpc.probe.session import ProbeConfig
from cart_grpc.simulator.server import SimulatorServer
from cart_grpc.simulator.simulator import Simulator
from tests.probe import basic_endpoints as endpoints
from tests.probe import broken_basic as broken
from tests.probe.test_probe import make, rules

COUNTED = ProbeConfig(sku="beans", stock=10, timeout=5)
UNCOUNTED = ProbeConfig(sku="beans", timeout=5)
ALL = set(BASIC.costs)


async def ask(url: str, config: ProbeConfig = COUNTED) -> Report:
    """Probe to the end."""
    async with connect(url, config, clock=app.clock, new_id=app.new_id) as one:
        return await one.run(asyncio.Event())


async def probe(kind: type[endpoints.Door], config: ProbeConfig = COUNTED, **faults: Any) -> tuple[Report, Simulator]:
    """Probe such a door of a simulator that has 10 pieces of `beans`."""
    simulator = make(**faults)
    async with endpoints.serving(simulator, kind) as (url, _):
        return await ask(url, config), simulator


def answered(report: Report, asked: str) -> str:
    """Return what came back."""
    return next(each.answered for each in report.findings if each.asked == asked)


@pytest.mark.parametrize("config", [COUNTED, UNCOUNTED], ids=["counted", "uncounted"])
async def test_the_simulator_keeps_all_of_it_and_gets_everything_back(config: ProbeConfig) -> None:
    simulator = make()
    simulator.set_stock("beans", config.stock or 30)
    server = SimulatorServer(simulator)
    ports = await server.start(None, "127.0.0.1:0")
    try:
        report = await ask(f"basic+http://127.0.0.1:{ports.http}/basic", config)
    finally:
        await server.stop(0)
    assert report.kept, str(report)
    assert "\nbasic: kept, as far as it was tested" in str(report)
    assert rules(report, Verdict.KEPT) == ALL
    untested = {each.answered for each in report.findings if each.verdict is not Verdict.KEPT}
    assert untested == (set() if config.stock else {"--stock would say how many there are"})
    assert answered(report, "POST of 2, and the same again").startswith("2 reservations, as `basic` has it")
    assert simulator.levels("beans").held == 0
    assert "left behind" in str(report)
    assert report.log.latencies


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            endpoints.Idempotent,
            "one reservation, and the same answer: POST is idempotent, and a stronger contract is near",
        ),
        (endpoints.RefusesRepeats, "one reservation, and then EXISTS: nothing was reserved"),
        (endpoints.Numbers, "2 reservations, as `basic` has it: "),
    ],
)
async def test_what_basic_leaves_open_is_told_and_not_called_broken(kind: type[endpoints.Door], said: str) -> None:
    report, simulator = await probe(kind)
    assert report.kept, str(report)
    assert answered(report, "POST of 2, and the same again").startswith(said)
    assert simulator.levels("beans").held == 0


BROKEN: list[tuple[type[endpoints.Door], set[str]]] = [
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
async def test_an_api_that_breaks_a_point_is_told_which_and_gets_everything_back(
    kind: type[endpoints.Door], expected: set[str]
) -> None:
    config = ProbeConfig("beans", 10, timeout=0.3 if kind is broken.SoldOutHangs else 5)
    report, simulator = await probe(kind, config)
    assert rules(report, Verdict.BROKEN) == expected, str(report)
    assert f"\nbasic: not kept: {', '.join(rule for rule in BASIC.costs if rule in expected)}\n" in str(report)
    for rule in expected:
        assert f"\n  {rule} not kept: {BASIC.costs[rule]}" in str(report)
    assert (simulator.levels("beans").held == 0) is (kind not in KEEP_STOCK)
    assert not report.kept


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(broken.DeletesNothing, {"delete"}), (broken.HasNoDelete, {"delete", "gone"}), (broken.DeletesAll, {"delete"})],
)
async def test_much_is_found_without_counting(kind: type[endpoints.Door], expected: set[str]) -> None:
    simulator = make()
    simulator.set_stock("beans", 30)
    async with endpoints.serving(simulator, kind) as (url, _):
        report = await ask(url, UNCOUNTED)
    assert rules(report, Verdict.BROKEN) == expected, str(report)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (broken.DeletesNothing, "deleted, and a look-up finds "),
        (broken.HasNoDelete, "HTTP_405: "),
        (broken.FindsAndDeletesNothing, "HTTP_405: "),
    ],
)
async def test_what_cannot_be_given_back_is_told(kind: type[endpoints.Door], why: str) -> None:
    report, _ = await probe(kind)
    assert report.log.stuck
    assert all(why in each for each in report.log.stuck), report.log.stuck
    assert f"left behind, until it is deleted: {report.log.stuck[0]}" in str(report)


async def test_what_others_have_reserved_is_not_given_back_where_look_ups_find_it() -> None:
    simulator = make()
    await simulator.reserve(lambda: ("somebody's", "beans", 3))
    async with endpoints.serving(simulator, broken.FindsAll) as (url, _):
        report = await ask(url)
    assert rules(report, Verdict.BROKEN) == {"unknown"}, str(report)
    assert simulator.levels("beans").held == 3
    assert len(simulator.effects()) == 1, "nothing was reserved either"


async def test_nobody_there_is_told_at_once() -> None:
    with pytest.raises(NobodyThere, match="HTTP_503"):
        await probe(endpoints.Door, down=True)
    with pytest.raises(NobodyThere, match="UNAVAILABLE"):
        await ask("basic+http://127.0.0.1:1/shop")


async def test_nothing_is_reserved_where_every_look_up_fails() -> None:
    simulator = make()
    async with endpoints.serving(simulator, endpoints.LooksNothingUp) as (url, _):
        with pytest.raises(NobodyThere, match="HTTP_503"):
            await ask(url)
    assert simulator.effects() == []


async def test_what_is_not_found_is_not_looked_up_again() -> None:
    report, _ = await probe(broken.UnknownIsNotFound)
    assert report.log.unanswered < 60


async def test_a_path_that_a_web_server_does_not_have_is_told() -> None:
    async with endpoints.serving(make()) as (url, _):
        with pytest.raises(NobodyThere, match="HTTP_404"):
            await ask(url.replace("/shop", "/shopp"))


async def test_an_api_that_goes_down_is_not_called_broken_and_what_it_keeps_is_told() -> None:
    report, simulator = await probe(endpoints.Dies)
    assert rules(report, Verdict.BROKEN) == set(), str(report)
    assert "\nbasic: not known: " in str(report)
    assert simulator.levels("beans").held > 0
    assert "HTTP_503" in report.log.stuck[0]


async def test_an_api_that_loses_messages_and_answers_is_not_called_broken() -> None:
    report, simulator = await probe(endpoints.Door, UNCOUNTED, lost_before_effect=0.05, lost_after_effect=0.05)
    assert rules(report, Verdict.BROKEN) == set(), str(report)
    assert report.log.unanswered > 3
    assert simulator.levels("beans").held == 0


async def test_what_came_of_posts_that_were_not_answered_is_given_back() -> None:
    report, simulator = await probe(endpoints.ReservesAndFails, UNCOUNTED)
    assert rules(report, Verdict.BROKEN) == set(), str(report)
    assert simulator.effects()
    assert (simulator.levels("beans").held, report.log.stuck) == (0, [])


async def test_an_api_that_takes_no_posts_at_all_is_not_called_broken() -> None:
    report, _ = await probe(endpoints.TakesNoPosts)
    assert rules(report, Verdict.BROKEN) == set(), str(report)
    assert "\nbasic: not known: post, look-up, apart, repeat, delete, gone, refusal, text\n" in str(report)


async def test_an_api_that_is_too_slow_is_not_called_broken() -> None:
    report, _ = await probe(endpoints.Door, ProbeConfig("beans", timeout=0.05), latency_us=60 * SECOND)
    assert rules(report, Verdict.BROKEN) == set(), str(report)
    assert not rules(report, Verdict.KEPT)
    assert not report.kept
    assert "DEADLINE_EXCEEDED" in str(report)


async def test_a_post_that_is_not_answered_and_not_found_is_told() -> None:
    report, _ = await probe(broken.SoldOutHangs, ProbeConfig("beans", 10, timeout=0.3))
    assert any(
        "nothing is there, but a POST may take effect later: DEADLINE_EXCEEDED" in one for one in report.log.stuck
    )


async def test_an_item_of_which_there_is_none_breaks_nothing() -> None:
    report, _ = await probe(endpoints.Door, ProbeConfig("tea", timeout=5))
    assert rules(report, Verdict.BROKEN) == set(), str(report)
    assert not report.kept
    assert "UNKNOWN_SKU: nothing was reserved; --sku should name one" in str(report)


@pytest.mark.parametrize(("kind", "drops"), [(endpoints.Told, False), (endpoints.ToldOfDelete, True)])
async def test_a_probe_that_is_interrupted_leaves_nothing_reserved(
    kind: Callable[[Simulator], endpoints.Told], drops: bool
) -> None:
    simulator = make()
    async with (
        endpoints.serving(simulator, kind, drops=drops) as (url, door),
        connect(url, COUNTED, clock=app.clock, new_id=app.new_id) as one,
    ):
        stopped = asyncio.Event()
        running = asyncio.create_task(one.run(stopped))
        assert isinstance(door, endpoints.Told)
        async with asyncio.timeout(20):
            await door.arrived.wait()
        stopped.set()
        report = await running
    assert simulator.effects()
    assert simulator.levels("beans").held == 0
    assert (report.kept, report.log.stuck) == (False, [])
    assert any(each.answered == "interrupted" for each in report.findings)
