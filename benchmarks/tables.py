"""Tables of docs/performance.md in Markdown."""

from collections.abc import Iterable
from statistics import median

from benchmarks.programs import DATABASES, Json
from benchmarks.ratios import Ratio

Found = dict[str, dict[str, Ratio]]
ABSOLUTE = ("", "calls/s", "p50 ms", "p99 ms", "server CPU µs a call", "load generator, cores")


def rows_of(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def middle(turns: list[Json], figure: str) -> float:
    return float(median(turn[figure] for turn in turns))


def databases_of(results: Json) -> list[str]:
    return [database for database in DATABASES if database in results]


def absolute(name: str, turns: list[Json]) -> list[object]:
    """Return the cells below ABSOLUTE."""
    share = f"{middle(turns, 'load_share'):.2f}" if "load_share" in turns[0] else ""
    times = [f"{middle(turns, figure) / 1e3:.1f}" for figure in ("p50_us", "p99_us")]
    return [name, f"{middle(turns, 'per_s'):.0f}", *times, f"{middle(turns, 'cpu_us'):.0f}", share]
