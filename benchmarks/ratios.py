"""Ratios between figures of the same round, which hold on other machines, too.

`make bench-check` compares new ratios with the committed ones: `python -m benchmarks.ratios`.
"""

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.programs import ROOT, Json
from benchmarks.shards import pairs

KEPT = ROOT / "docs" / "performance.json"
# Smaller changes are not reported, however quiet the machine was.
REPORTED_CHANGE = 0.10


class Ratio(NamedTuple):
    """The median, the lowest and the highest of the rounds."""

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
    """Return the ratio of two contenders in the same rounds. Lower latencies and CPU times are better."""
    pairs = zip(rounds[one], rounds[other], strict=True)
    return of([a[figure] / b[figure] for a, b in pairs], more_is_better=figure == "per_s")


def ratios(results: Json) -> dict[str, dict[str, Ratio]]:
    """Return the ratios of the measured sections, by database and name."""
    found: dict[str, dict[str, Ratio]] = {}
    for section, of_section in _OF_SECTIONS.items():
        for database, rounds in results.get(section, {}).items():
            found.setdefault(database, {}).update(of_section(rounds))
    return found


def _of_reserved(rounds: Json) -> dict[str, Ratio]:
    many = rounds["many"]
    return {
        "reserved item CPU / no-op CPU": between(many, "reserved", "noop", "cpu_us"),
        "reserved items / no-ops": between(many, "reserved", "noop"),
    }


def _of_table(rounds: Json) -> dict[str, Ratio]:
    idle = rounds["idle"]
    return {
        "AddItem / no-op, idle": between(idle, "add", "noop"),
        "AddItem p99 / no-op p99, idle": between(idle, "add", "noop", "p99_us"),
        "AddItem CPU / no-op CPU, idle": between(idle, "add", "noop", "cpu_us"),
        "GetCart / no-op, idle": between(idle, "get", "noop"),
        "GetCart of changing carts / no-op, idle": between(idle, "get changing", "noop"),
    }


def _of_flatness(rounds: Json) -> dict[str, Ratio]:
    # Each compares with the small database whose carts have as many items.
    against = {"many carts": "1 item", "many pending": "few", "many finished": "few"}
    found = {
        f"{call}, {kind} / few": between(rounds, f"{call}, {kind}", f"{call}, {small}")
        for call in ("add", "get")
        for kind, small in against.items()
    }
    found["add, 200 items / 1 item"] = between(rounds, "add, 200 items", "add, 1 item")
    found["add, one hot cart / no-op"] = between(rounds, "add, one hot cart", "noop")
    return found


def _of_access(rounds: Json) -> dict[str, Ratio]:
    none = "no identity"
    return {f"AddItem CPU, {name} / {none}": between(rounds, name, none, "cpu_us") for name in rounds if name != none}


def _of_metrics(rounds: Json) -> dict[str, Ratio]:
    return {f"AddItem CPU, {name} / none": between(rounds, name, "none", "cpu_us") for name in rounds if name != "none"}


def _of_traces(rounds: Json) -> dict[str, Ratio]:
    return {f"AddItem CPU, {name} / off": between(rounds, name, "off", "cpu_us") for name in rounds if name != "off"}


def _of_shards(rounds: Json) -> dict[str, Ratio]:
    return {f"reserved items, {several} / {one}": between(rounds, several, one) for several, one in pairs()} | {
        f"reserved item CPU, {several} / {one}": between(rounds, several, one, "cpu_us") for several, one in pairs()
    }


def _of_comparisons(rounds: Json) -> dict[str, Ratio]:
    peers = [name for name in rounds if name != "noop"]
    return (
        {f"{name} / no-op": between(rounds, name, "noop") for name in peers}
        | {f"{name} CPU / no-op CPU": between(rounds, name, "noop", "cpu_us") for name in peers}
        | {f"reserved item / {name}": between(rounds, "reserved", name) for name in peers if name.endswith(" reserved")}
    )


def _of_overload(results: Json) -> dict[str, Ratio]:
    loads = results["loads"]
    return {
        f"goodput at {times} × / capacity": of([load["reserved_per_s"] / results["capacity"]])
        for times, load in loads.items()
    }


def _of_fairness(results: Json) -> dict[str, Ratio]:
    def p99(name: str) -> list[float]:
        return [(turn["ok_us"] or {"p99": float("inf")})["p99"] for turn in results[name]]

    return {
        f"p99 {name} / alone": of(
            [flooded / alone for flooded, alone in zip(p99(name), p99("alone"), strict=True)], more_is_better=False
        )
        for name in ("beside a flood", "in a flood")
    }


def _of_interpreters(results: Json) -> dict[str, Ratio]:
    rounds = results["rounds"]
    return {
        f"other Python / this one: {call} CPU": between(rounds, f"other {call}", f"this {call}", "cpu_us")
        for call in ("noop", "reserved")
    } | {"other Python / this one: reserved items": between(rounds, "other reserved", "this reserved")}


_OF_SECTIONS: dict[str, Callable[[Json], dict[str, Ratio]]] = {
    "reserved": _of_reserved,
    "table": _of_table,
    "flatness": _of_flatness,
    "access": _of_access,
    "metrics": _of_metrics,
    "traces": _of_traces,
    "shards": _of_shards,
    "comparisons": _of_comparisons,
    "overload": _of_overload,
    "fairness": _of_fairness,
    "interpreters": _of_interpreters,
}


def find_fallen(then: dict[str, dict[str, Ratio]], now: dict[str, dict[str, Ratio]]) -> list[str]:
    """Describe the ratios that got worse by more than noise: the best new round is worse than the worst old one."""
    complaints = []
    for database, of_database in now.items():
        for name, ratio in of_database.items():
            before = then.get(database, {}).get(name)
            if before is None:
                continue
            change = ratio.median / before.median - 1
            if before.more_is_better:
                is_worse = ratio.high < before.low and change < -REPORTED_CHANGE
            else:
                is_worse = ratio.low > before.high and change > REPORTED_CHANGE
            if is_worse:
                complaints.append(f"{database}: {name} was {before} and is {ratio}: {change:+.0%}")
    return complaints


def read(file: Path = KEPT) -> dict[str, dict[str, Ratio]]:
    kept = json.loads(file.read_text())["ratios"]
    return {database: {name: Ratio(*ratio) for name, ratio in found.items()} for database, found in kept.items()}


def main() -> int:
    """Compare the results of `benchmarks.run` with the committed ratios. Return the exit status."""
    now = ratios(json.loads(Path(sys.argv[1]).read_text()))
    complaints = find_fallen(read(), now)
    for complaint in complaints:
        print(complaint)
    compared = sum(len(found) for found in now.values())
    print(f"{len(complaints)} of {compared} ratios fell by more than the noise")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
