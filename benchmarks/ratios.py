"""What is kept of a run: figures that mean the same on another machine, since each is to something of the same round.

`make bench-check` compares them with the committed ones: `python -m benchmarks.ratios`.
"""

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.programs import ROOT, Json

KEPT = ROOT / "docs" / "performance.json"
# Less than this is not worth a word, however quiet the machine was.
WORTH_SAYING = 0.10


class Ratio(NamedTuple):
    """The median of the rounds, the least and the most."""

    median: float
    low: float
    high: float
    more_is_better: bool = True

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def of(values: list[float], *, more_is_better: bool = True) -> Ratio:
    rounded = [round(value, 4) for value in values]
    return Ratio(round(statistics.median(rounded), 4), min(rounded), max(rounded), more_is_better)


def between(rounds: Json, one: str, other: str, figure: str = "per_s") -> Ratio:
    """Of two contenders of the same rounds; latencies and CPU time are better when less."""
    pairs = zip(rounds[one], rounds[other], strict=True)
    return of([a[figure] / b[figure] for a, b in pairs], more_is_better=figure == "per_s")


def ratios(seen: Json) -> dict[str, dict[str, Ratio]]:
    """By database and name, of the sections that were run."""
    found: dict[str, dict[str, Ratio]] = {}
    for section, of_section in _OF_SECTIONS.items():
        for database, rounds in seen.get(section, {}).items():
            found.setdefault(database, {}).update(of_section(rounds))
    return found


def _of_table(rounds: Json) -> dict[str, Ratio]:
    found = {}
    for mode in ("idle", "draining"):
        found[f"AddItem / no-op, {mode}"] = between(rounds[mode], "add", "noop")
        found[f"AddItem p99 / no-op p99, {mode}"] = between(rounds[mode], "add", "noop", "p99_us")
        found[f"AddItem CPU / no-op CPU, {mode}"] = between(rounds[mode], "add", "noop", "cpu_us")
        found[f"GetCart / no-op, {mode}"] = between(rounds[mode], "get", "noop")
        found[f"GetCart of what changes / no-op, {mode}"] = between(rounds[mode], "get changing", "noop")
    return found


def _of_flatness(rounds: Json) -> dict[str, Ratio]:
    # Against the small one with as many items in a cart.
    against = {"many carts": "1 item", "many pending": "few", "many finished": "few"}
    found = {
        f"{call}, {kind} / few": between(rounds, f"{call}, {kind}", f"{call}, {small}")
        for call in ("add", "get")
        for kind, small in against.items()
    }
    found["add, 200 items / 1 item"] = between(rounds, "add, 200 items", "add, 1 item")
    found["add, one hot cart / no-op"] = between(rounds, "add, one hot cart", "noop")
    return found


def _of_comparisons(rounds: Json) -> dict[str, Ratio]:
    return {f"{name} / no-op": between(rounds, name, "noop") for name in rounds if name != "noop"}


def _of_overload(seen: Json) -> dict[str, Ratio]:
    # The best that was answered at any load is the peak.
    answered = {times: load["ok_per_s"] for times, load in seen["loads"].items()}
    return {"goodput at 10 × / peak": of([answered["10"] / max(answered.values())])}


_OF_SECTIONS: dict[str, Callable[[Json], dict[str, Ratio]]] = {
    "table": _of_table,
    "flatness": _of_flatness,
    "comparisons": _of_comparisons,
    "overload": _of_overload,
}


def find_fallen(then: dict[str, dict[str, Ratio]], now: dict[str, dict[str, Ratio]]) -> list[str]:
    """What is worse by more than the noise, in words: even the best round now is worse than the worst was then."""
    complaints = []
    for database, of_database in now.items():
        for name, ratio in of_database.items():
            before = then.get(database, {}).get(name)
            if before is None:
                continue
            change = ratio.median / before.median - 1
            if before.more_is_better:
                is_worse = ratio.high < before.low and change < -WORTH_SAYING
            else:
                is_worse = ratio.low > before.high and change > WORTH_SAYING
            if is_worse:
                complaints.append(f"{database}: {name} was {before} and is {ratio}: {change:+.0%}")
    return complaints


def read(file: Path = KEPT) -> dict[str, dict[str, Ratio]]:
    kept = json.loads(file.read_text())["ratios"]
    return {database: {name: Ratio(*ratio) for name, ratio in found.items()} for database, found in kept.items()}


def main() -> int:
    """Compare what `benchmarks.run` has seen with what is committed. Returns the exit status."""
    now = ratios(json.loads(Path(sys.argv[1]).read_text()))
    complaints = find_fallen(read(), now)
    for complaint in complaints:
        print(complaint)
    compared = sum(len(found) for found in now.values())
    print(f"{len(complaints)} of {compared} ratios fell by more than the noise")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
