"""The rules by which the benchmarks judge their figures. The tests do not measure."""

import pytest

from benchmarks.overload import Window, find_recovery
from benchmarks.parts import PARTS, split
from benchmarks.ratios import Ratio, find_fallen, of
from benchmarks.scaling import Cost, Parts, Setting, Simulation

THROUGHPUT = of([0.84, 0.86, 0.90])
LATENCY = of([1.8, 2.0, 2.1], more_is_better=False)


@pytest.mark.parametrize(
    ("now", "fell"),
    [
        (of([0.60, 0.62, 0.70]), True),
        (of([0.70, 0.75, 0.85]), False),  # one round is as good as an earlier one
        (of([0.80, 0.82, 0.83]), False),  # less than a tenth
        (of([1.2, 1.3, 1.4]), False),
    ],
)
def test_a_throughput_has_fallen_if_its_best_round_is_below_the_worst_earlier_round(now: Ratio, fell: bool) -> None:
    complaints = find_fallen({"sqlite": {"AddItem / no-op": THROUGHPUT}}, {"sqlite": {"AddItem / no-op": now}})
    assert bool(complaints) is fell


@pytest.mark.parametrize(("now", "fell"), [((2.6, 2.7, 2.8), True), ((2.0, 2.7, 2.8), False), ((1.0, 1.1, 1.2), False)])
def test_a_latency_has_fallen_behind_if_its_best_round_is_above_the_worst_earlier_round(
    now: tuple[float, ...], fell: bool
) -> None:
    found = find_fallen({"sqlite": {"p99": LATENCY}}, {"sqlite": {"p99": of(list(now), more_is_better=False)}})
    assert bool(found) is fell


def test_a_ratio_that_is_missing_on_either_side_is_not_compared() -> None:
    assert (
        find_fallen({"sqlite": {"old": THROUGHPUT}}, {"sqlite": {"new": of([0.1])}, "postgresql": {"old": of([0.1])}})
        == []
    )


GOOD, SLOW, REFUSING, STALLED = (
    Window(10, 0, 50_000),
    Window(10, 0, 160_000),
    Window(10, 1, 50_000),
    Window(1, 0, 50_000),
)


@pytest.mark.parametrize("bad", [SLOW, REFUSING, STALLED])
def test_a_server_has_recovered_once_it_is_good_for_half_a_second(bad: Window) -> None:
    before = [GOOD] * 10
    assert find_recovery(before, [GOOD] * 10, rate=100) == 0
    assert find_recovery(before, [bad, GOOD, GOOD, GOOD, GOOD, bad, *[GOOD] * 5, bad], rate=100) == pytest.approx(0.6)
    assert find_recovery(before, [*[bad] * 10, *[GOOD] * 4], rate=100) is None


def test_a_recovered_server_may_be_as_slow_as_it_was_before() -> None:
    assert find_recovery([SLOW] * 10, [SLOW] * 10, rate=100) == 0


def test_a_part_costs_the_difference_to_the_stage_before_in_no_ops_of_the_same_round() -> None:
    slow_round = {stage: 200.0 * (number + 1) for number, stage in enumerate(PARTS)}
    quick_round = {stage: cpu_us / 2 for stage, cpu_us in slow_round.items()}
    rounds = {stage: [{"cpu_us": slow_round[stage]}, {"cpu_us": quick_round[stage]}] for stage in PARTS}
    assert split(rounds) == dict.fromkeys(PARTS.values(), 1.0)


def test_a_stage_that_noise_makes_cheaper_than_the_one_before_takes_nothing_from_the_sum() -> None:
    cpu_us = dict(zip(PARTS, (100, 150, 140, 200, 300, 400, 500, 600), strict=True))
    found = split({stage: [{"cpu_us": each}] for stage, each in cpu_us.items()})
    assert found["request"] == 0
    assert sum(found.values()) == pytest.approx(6.0)


# One command of a batch takes 10 ms, of which 4 are the coordinator's.
TEN_MS = Parts(Cost(add=2), Cost(add=4), Cost(add=2.5), Cost(add=6.5), call=1, outside=0, wait=0.5, connections=2)


def test_a_simulated_call_takes_the_sum_of_its_parts() -> None:
    assert Simulation(TEN_MS, Setting(1, in_flight=1)).run(5) == pytest.approx(100, abs=1)


@pytest.mark.parametrize(
    ("setting", "per_s"),
    [
        (Setting(64, in_flight=200, nodes=4, replicas=8), 2 / 0.004),  # the coordinator's two cores
        (Setting(64, in_flight=200, nodes=1, replicas=8, is_direct=True), 2 / 0.0065),
    ],
)
def test_simulated_calls_are_as_many_as_the_busiest_cores_can_take(setting: Setting, per_s: float) -> None:
    assert Simulation(TEN_MS, setting).run(1) == pytest.approx(per_s, rel=0.1)
