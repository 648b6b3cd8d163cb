"""Runs the probe against APIs that break one rule each: it names that rule, and no other."""

from dataclasses import replace

import pytest

from cart_grpc.probe.batches import BATCHES
from cart_grpc.probe.findings import Verdict
from cart_grpc.simulator.simulator import Simulator
from cart_grpc.simulator.stock import Stock
from tests.probe import broken, broken_batches, broken_simulators, broken_values
from tests.probe.probing import EVERYTHING, UNCOUNTED, make, probe, rules

BROKEN: list[tuple[type[Stock], set[str]]] = [
    (broken.DecidesAgain, {"1", "6"}),
    (broken.ReservesAgain, {"1"}),
    (broken.IgnoresTheBody, {"1"}),
    (broken.ObeysTheBody, {"1"}),
    (broken.RefusesAndObeysTheBody, {"1"}),
    (broken.ComparesLabels, {"1"}),
    (broken.ComparesQuantitiesOnly, {"1"}),
    (broken_values.ExchangesTheSku, {"3"}),
    (broken_values.IgnoresUnusedFields, {"1"}),
    (broken_values.KeepsTheFirstSku, {"3"}),
    (broken_values.ReleasesOneSku, {"3"}),
    (broken_values.HoldsForADay, {"5"}),
    (broken_values.CapsTheTtl, {"5"}),
    (broken_values.RefusesShortHolds, {"5"}),
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
    report = await probe(simulator, config=UNCOUNTED)
    assert rules(report, Verdict.FAILED) == expected, str(report)


SALES: list[tuple[type[Stock], set[str]]] = [
    (broken_values.SoldComesBack, {"4"}),
    (broken_values.SellsAnotherSku, {"3"}),
    (broken_values.SellsWhatIsHeld, {"4"}),
    (broken_values.SellsNoMoreThanIsHeld, {"4"}),
    (broken_values.SellsOnlyHolds, {"4"}),
    (broken_values.LosesTheHoldOfARefusedSale, {"3", "4"}),
]


@pytest.mark.parametrize(("stock", "expected"), SALES, ids=lambda value: getattr(value, "__name__", ""))
async def test_an_api_that_sells_wrongly_fails_the_rules_about_it(stock: type[Stock], expected: set[str]) -> None:
    report = await probe(make(stock), config=replace(EVERYTHING, ttl_us=0))
    assert rules(report, Verdict.FAILED) == expected, str(report)


LASTING: list[tuple[type[Stock], set[str]]] = [
    (broken_values.RefusesLateSales, {"4"}),
    (broken.ExpiresEarly, {"4", "5"}),
    (broken.ForgetsExpired, {"5"}),
]


@pytest.mark.parametrize(("stock", "expected"), LASTING, ids=lambda value: getattr(value, "__name__", ""))
async def test_an_api_that_expires_early_or_forgets_fails_the_rules_about_it(
    stock: type[Stock], expected: set[str]
) -> None:
    report = await probe(make(stock), config=EVERYTHING)
    assert rules(report, Verdict.FAILED) == expected, str(report)


@pytest.mark.parametrize(
    ("kind", "expected"), [(broken_simulators.Races, {"6"}), (broken_simulators.ReadsNothing, {"reads"})]
)
async def test_an_api_with_a_race_or_wrong_reads_fails_that_rule(kind: type[Simulator], expected: set[str]) -> None:
    simulator = make(kind=kind)
    simulator.set_stock("beans", 1000)
    report = await probe(simulator, config=UNCOUNTED)
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
