"""Draws the pictures of docs/performance.md."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.programs import DATABASES, Json
from benchmarks.ratios import Ratio

# Fixed, so that the same figures make the same file.
mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "cart-grpc", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
TITLES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
COLOURS = {"noop": "#888888", "add": "#c0392b", "get": "#2471a3"}
CPU_AIM = 2.2
PART_COLOURS = {
    "gRPC": "#888888",
    "pipeline": "#bbbbbb",
    "request": "#aed6f1",
    "decide and reply": "#5dade2",
    "load, write, commit": "#2471a3",
    "claim": "#f5b041",
    "record": "#c0392b",
    "call": "#7d3c98",
}
LABELS = {"noop": "no-op", "add": "AddItem", "get": "GetCart, 20 items"}


def draw(results: Json, ratios: dict[str, dict[str, Ratio]], folder: Path) -> list[str]:
    """Draw the pictures of the measured sections. Return their file names."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    if "concurrency" in results:
        drawn.append(_save(_concurrency(results["concurrency"]), folder / "concurrency.svg"))
    if "flatness" in results:
        drawn.append(_save(_flatness(ratios), folder / "flatness.svg"))
    if "overload" in results:
        drawn.append(_save(_overload(results["overload"]), folder / "overload.svg"))
    return drawn


def draw_parts(states: Mapping[str, Json], folder: Path) -> str:
    """Draw one bar for each state of the code, and return the file's name."""
    figure, axes = plt.subplots(
        len(DATABASES), 1, figsize=(9, 1.6 + 0.8 * len(states)), sharex=True, layout="constrained"
    )
    for each, database in zip(axes, DATABASES, strict=True):
        measured = {state: bars[database] for state, bars in states.items() if database in bars}
        left = [0.0] * len(measured)
        for part, colour in PART_COLOURS.items():
            widths = [bars[part] for bars in measured.values()]
            each.barh(list(measured), widths, left=left, color=colour, label=part)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for row, total in enumerate(left):
            each.annotate(f"{total:.1f}", (total, row), xytext=(3, 0), textcoords="offset points", va="center")
        each.axvline(CPU_AIM, color="#27ae60")
        each.set_title(TITLES[database])
        each.invert_yaxis()
    axes[-1].set_xlabel(f"server CPU of a reserved item / CPU of a no-op; the aim is {CPU_AIM}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return _save(figure, folder / "parts.svg")


def _save(figure: Any, file: Path) -> str:
    figure.savefig(file, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    return file.name


def _concurrency(results: Json) -> Any:
    figure, axes = plt.subplots(2, len(DATABASES), figsize=(9, 6), sharex=True, sharey="row", layout="constrained")
    numbers = [int(level) for level in next(iter(results.values()))]
    for column, database in enumerate(DATABASES):
        levels = results.get(database, {})
        for name in COLOURS if levels else ():
            for row, (figure_name, scale) in enumerate((("per_s", 1), ("p99_us", 1e-3))):
                middle = [median(turn[figure_name] for turn in levels[level][name]) * scale for level in levels]
                axes[row][column].plot(numbers, middle, "o-", color=COLOURS[name], label=LABELS[name])
        axes[0][column].set_title(TITLES[database])
        axes[1][column].set(xscale="log", yscale="log", xlabel="calls in flight", xticks=numbers, xticklabels=numbers)
        axes[1][column].minorticks_off()
    axes[0][0].set_ylabel("calls a second")
    axes[1][0].set_ylabel("p99, ms")
    axes[0][0].legend()
    return figure


def _flatness(ratios: dict[str, dict[str, Ratio]]) -> Any:
    names = [name for name in next(iter(ratios.values())) if "/ few" in name or "/ 1 item" in name]
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    axes.axvspan(0.9, 1.1, color="#27ae60", alpha=0.12)
    axes.axvline(1, color="#27ae60")
    for offset, database in ((-0.12, "sqlite"), (0.12, "postgresql")):
        found = [ratios.get(database, {}).get(name) for name in names]
        drawn = [(row + offset, ratio) for row, ratio in enumerate(found) if ratio]
        middles = [ratio.median for _, ratio in drawn]
        jitter = [[ratio.median - ratio.low for _, ratio in drawn], [ratio.high - ratio.median for _, ratio in drawn]]
        axes.errorbar(middles, [row for row, _ in drawn], xerr=jitter, fmt="o", capsize=3, label=TITLES[database])
    axes.set(
        yticks=range(len(names)),
        yticklabels=names,
        xlabel="throughput, much / little (median, lowest and highest round)",
    )
    axes.invert_yaxis()
    axes.legend()
    return figure


def _overload(results: Json) -> Any:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for database, found in results.items():
        offered = [int(times) for times in found["loads"]]
        goodput = [load["reserved_per_s"] / found["capacity"] for load in found["loads"].values()]
        axes[0].plot(offered, goodput, "o-", label=TITLES[database])
        taken = [(load["ok_us"] or {}).get("p99", float("nan")) / 1e3 for load in found["loads"].values()]
        refused = [(load["not_ok_us"] or {}).get("p99", float("nan")) / 1e3 for load in found["loads"].values()]
        (line,) = axes[1].plot(offered, taken, "o-", label=f"{TITLES[database]}, answered")
        axes[1].plot(offered, refused, "s--", color=line.get_color(), label=f"{TITLES[database]}, refused")
    axes[0].set(xlabel="offered / capacity", ylabel="reserved items, answered in time / capacity", ylim=(0, None))
    axes[1].set(xlabel="offered / capacity", ylabel="p99, ms", yscale="log")
    for each in axes:
        each.legend()
    return figure
