"""`python -m tests.simulation`: run many seeds on all cores, or replay one seed with its trace.

make simulate SEEDS=50000 FIRST=0     prints a replay command for each seed with a violation, and then exits with 1
make simulate SEED=4711               prints the trace of one seed
"""

import argparse
import multiprocessing
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.simulation.seeds import SeedReport, run

BLOCK = 50
SHOWN = 20


@dataclass
class Total:
    """The totals of all seeds so far."""

    seeds: int = 0
    virtual_seconds: float = 0.0
    events: int = 0
    slowest: float = 0.0
    steps: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[int, list[str]]] = field(default_factory=list)

    def add(self, report: SeedReport) -> None:
        self.seeds += 1
        self.virtual_seconds += report.virtual_seconds
        self.events += len(report.trace)
        self.slowest = max(self.slowest, report.converged_after)
        self.steps.update(event[2] for event in report.trace if event[1] == "checkout")
        if report.violations:
            self.failed.append((report.seed, report.violations[:3]))

    def join(self, other: "Total") -> None:
        self.seeds += other.seeds
        self.virtual_seconds += other.virtual_seconds
        self.events += other.events
        self.slowest = max(self.slowest, other.slowest)
        self.steps += other.steps
        self.failed += other.failed

    def __str__(self) -> str:
        hours = self.virtual_seconds / 3600
        return (
            f"{self.seeds} seeds, {len(self.failed)} with a violation, {hours:.0f} hours simulated, "
            f"{self.events} events, slowest convergence {self.slowest:.0f} s"
        )


def run_block(seeds: range) -> Total:
    """Run `seeds` in this process."""
    total = Total()
    for seed in seeds:
        total.add(run(seed))
    return total


def _run_blocks(first: int, count: int, jobs: int) -> Iterator[tuple[int, Total]]:
    """Yield the end of each block of seeds and its totals, in order."""
    blocks = [range(begin, min(begin + BLOCK, first + count)) for begin in range(first, first + count, BLOCK)]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for block, total in zip(blocks, pool.imap(run_block, blocks), strict=True):
            yield block.stop, total


def explore(first: int, count: int, jobs: int) -> int:
    """Run `count` seeds starting at `first`. Returns the exit code."""
    began, printed_at, total = time.monotonic(), 0.0, Total()
    for reached, block in _run_blocks(first, count, jobs):
        total.join(block)
        for seed, violations in block.failed[: max(0, SHOWN - len(total.failed) + len(block.failed))]:
            print(f"make simulate SEED={seed}    # {violations[0][:200]}", flush=True)
        if time.monotonic() - printed_at > 10:
            printed_at = time.monotonic()
            print(f"{total}; continue with FIRST={reached}", flush=True)
    print("checkouts:", ", ".join(f"{count} {step}" for step, count in sorted(total.steps.items())))
    minutes = (time.monotonic() - began) / 60
    print(f"{total}, {total.seeds / minutes:.0f} seeds a minute on {jobs} cores, commit {_commit()}")
    for seed, violations in total.failed:
        print(f"make simulate SEED={seed}    # {violations[0][:200]}")
    return 1 if total.failed else 0


def replay(seed: int) -> int:
    """Run one seed and print its trace. Returns the exit code."""
    report = run(seed)
    for when, *event in report.trace:
        print(f"{when:12.6f}", *(str(part).removeprefix("00000000-0000-7000-8000-") for part in event))
    print(f"seed {seed}: {report.virtual_seconds:.0f} s simulated, digest {report.digest[:16]}")
    for violation in report.violations:
        print(violation)
    return 1 if report.violations else 0


def _commit() -> str:
    found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulate")
    parser.add_argument("--seed", type=int, help="replay this seed and print its trace")
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if options.seed is not None:
        return replay(options.seed)
    return explore(options.first, options.seeds, options.jobs)
