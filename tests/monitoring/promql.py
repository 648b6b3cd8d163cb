"""The rules and the dashboard as their files have them, and the metrics and labels in their queries."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from prometheus_client import Counter, Gauge, Histogram, ProcessCollector

from cart_grpc import metrics

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
RULES_FILE: Final = DEPLOY / "prometheus" / "cart-grpc.rules.yml"
TESTS_FILE: Final = DEPLOY / "prometheus" / "cart-grpc.tests.yml"
DASHBOARD_FILE: Final = DEPLOY / "grafana" / "cart-grpc.json"
RULES: Final[list[dict[str, Any]]] = [
    rule for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]
]
ALERTS: Final = [rule for rule in RULES if "alert" in rule]
RECORDED: Final = [rule["record"] for rule in RULES if "record" in rule]
DASHBOARD: Final[dict[str, Any]] = json.loads(DASHBOARD_FILE.read_text())
PANELS: Final = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# Prometheus adds the first two to every series. With workers, the metrics of processes have the third.
_LABELS_OF_ALL: Final = {"job", "instance", "worker"}
_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_GROUPING: Final = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR: Final = re.compile(r"\b([a-zA-Z_:][\w:]*)\b(?!\s*\()(?:\{([^}]*)\})?")
_WORDS: Final = {"group_left", "group_right"}


def find_series() -> Mapping[str, set[str]]:
    """Return the labels of every series that a process exposes, by its name."""
    series: dict[str, set[str]] = {name: set() for name in [*RECORDED, "up"]}
    for family in ProcessCollector(registry=None).collect():
        series.update((sample.name, set()) for sample in family.samples)
    for instrument in vars(metrics).values():
        if isinstance(instrument, Counter):
            series[f"{instrument._name}_total"] = set(instrument._labelnames)
        elif isinstance(instrument, Histogram):
            labels = set(instrument._labelnames)
            series[f"{instrument._name}_bucket"] = labels | {"le"}
            series |= dict.fromkeys((f"{instrument._name}_count", f"{instrument._name}_sum"), labels)
        elif isinstance(instrument, Gauge):
            series[instrument._name] = set(instrument._labelnames)
    return {name: labels | _LABELS_OF_ALL for name, labels in series.items()}


def find_queries() -> Iterator[tuple[str, str]]:
    """Yield every query of the rules and of the dashboard, each after a name for it."""
    for rule in RULES:
        yield (
            f"{rule.get('alert') or rule['record']} {rule.get('labels', {}).get('severity', '')}".strip(),
            rule["expr"],
        )
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]


def faults_in(query: str, series: Mapping[str, set[str]]) -> list[str]:
    """Return the metrics and the labels in a query that no process has."""
    bare = _STRING.sub('""', query.replace("$__rate_interval", "1m"))
    used: set[str] = set()
    faults = []
    for name, selector in _SELECTOR.findall(_GROUPING.sub("", re.sub(r"\[[^]]*\]", "", bare))):
        if name in _WORDS or not re.search(r"[_:]|^up$", name):
            continue
        if name not in series:
            faults.append(f"no metric {name}")
            continue
        used |= series[name]
        faults += [f"{name} has no label {label}" for label in _labels(selector) if label not in series[name]]
    for group in _GROUPING.findall(bare):
        faults += [f"no metric of the query has the label {label}" for label in _names(group) if label not in used]
    return faults


def _labels(selector: str) -> list[str]:
    return re.findall(r"(\w+)\s*[=!]", selector)


def _names(group: str) -> list[str]:
    return [name.strip() for name in group.split(",") if name.strip()]
