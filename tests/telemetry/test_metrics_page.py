"""docs/metrics.md has every metric, as metrics.py defines it."""

import re
from pathlib import Path

import pytest

from tests.telemetry.scrapes import instruments

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(
    r"^\| `(?P<name>\w+)` \| (?P<kind>\w+)(, (?P<mode>\w+))? \| (?P<labels>[^|]*)\| .+ \| `(?P<query>.+)` \|$",
    re.MULTILINE,
)
ROWS = {row["name"]: row for row in ROW.finditer(PAGE.read_text())}


def exposed_names() -> dict[str, str]:
    """The names in Prometheus of all instruments, and their names in Python."""
    found = {}
    for python_name, instrument in instruments().items():
        (family,) = instrument.describe() or instrument.collect()
        found[f"{family.name}_total" if family.type == "counter" else family.name] = python_name
    return found


def test_the_page_has_all_metrics_in_their_order() -> None:
    assert list(ROWS) == list(exposed_names())


@pytest.mark.parametrize("name", exposed_names())
def test_a_row_has_the_type_the_labels_and_a_query_for_the_metric(name: str) -> None:
    instrument, row = instruments()[exposed_names()[name]], ROWS[name]
    assert row["kind"] == instrument._type
    assert re.findall(r"`(\w+)`", row["labels"]) == list(instrument._labelnames)
    assert re.search(rf"\b{name}(_bucket|_sum|_count)?\b", row["query"])


@pytest.mark.parametrize("name", exposed_names())
def test_a_gauge_says_how_processes_are_combined(name: str) -> None:
    instrument = instruments()[exposed_names()[name]]
    mode = getattr(instrument, "_multiprocess_mode", None)
    shown = {"each": "livesum", "shared": "livemostrecent", None: "livemostrecent" if mode else None}
    assert mode == shown[ROWS[name]["mode"]]
