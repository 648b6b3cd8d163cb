"""The whole service in virtual time: a few seeds by day, hundreds at night, each of them deterministic."""

import os
import subprocess
import sys

import pytest

from tests.simulation.seeds import SeedReport, run

BY_DAY = range(10)
BLOCK = 25
AT_NIGHT = [range(first, first + BLOCK) for first in range(0, 5 * BLOCK, BLOCK)]
NIGHT = [pytest.param(block, marks=pytest.mark.night, id=f"night-{block.start}") for block in AT_NIGHT]

# What each block of seeds meets: kinds of faults and refusals, and ways that the product takes. A fault that never
# happens proves nothing, and a way that is never taken hides behind a slower one that also works.
FAULTS = {
    "kill",
    "stop",
    "pause",
    "cut api",
    "cut database",
    "api down",
    "jump",
    "pause claims",
    "no batches",
    "repeat",
}
STREAMS = {"batches are not supported", "the batch is doubled", "error", "half", "hang"}
REFUSALS = {"unheard", "EtagMismatch", "ItemNotFound", "CartClosed", "DatabaseUnavailable"}
WAYS = {"send", "send in a batch", "born claimed", "settled", "refused"}
STEPS = {
    "OPEN became CANCELLED",
    "OPEN became EXPIRED",
    "OPEN became COMPLETING",
    "COMPLETING became COMPLETED",
    "COMPLETING became FAILED",
    "FAILED became COMPLETING",
    "FAILED became CANCELLED",
}
# With several shards: merges across two of them, and pauses of all.
SHARDS = {
    "merge committed",
    "merge killed before the commit",
    "merge killed after the commit",
    "pause killed before the commit",
    "resumption killed before the commit",
}
# In fewer than a quarter of the seeds, so these few need not meet them by day.
RARE = {
    "DatabaseUnavailable",
    "FAILED became COMPLETING",
    "FAILED became CANCELLED",
    "merge killed after the commit",
    "resumption killed before the commit",
}
# In almost every seed, reservations are born claimed, and answers are recorded without reading.
USUAL = {"born claimed", "settled"}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("seeds", [pytest.param(BY_DAY, id="day"), *NIGHT])
def test_every_invariant_holds_in_every_seed(seeds: range) -> None:
    reports = [run(seed) for seed in seeds]
    broken = {report.seed: report.violations[:3] for report in reports if report.violations}
    assert not broken, "replay one with `make simulate SEED=...`"
    met = [_events(report) for report in reports]
    assert sum(events >= USUAL for events in met) >= len(seeds) - 3
    all_kinds = FAULTS | STREAMS | REFUSALS | WAYS | STEPS | SHARDS
    assert set().union(*met) >= (all_kinds - RARE if seeds == BY_DAY else all_kinds)


def _events(report: SeedReport) -> set[str]:
    return {part for event in report.trace for part in event[1:4] if isinstance(part, str)}


def test_a_seed_gives_the_same_run_in_every_process() -> None:
    here = [run(seed).digest for seed in (1, 7)]
    program = "from tests.simulation.seeds import run; print(*(run(seed).digest for seed in (7, 1)))"
    elsewhere = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "77"},
    )
    # In the other order: what one seed leaves behind does not change the next.
    assert elsewhere.stdout.split() == here[::-1]
