"""The rules, their tests, the runbook and the dashboard belong together, and query metrics that exist."""

import re
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from tests.monitoring.promql import ALERTS, DASHBOARD, PANELS, TESTS_FILE, faults_in, find_queries, find_series

RUNBOOK = Path(__file__).parents[2] / "docs" / "runbook.md"
SERIES = find_series()
QUERIES = dict(find_queries())


def test_every_alert_has_a_section_of_the_runbook_and_every_section_an_alert() -> None:
    sections = re.findall(r"^## (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert sections == list(dict.fromkeys(alert["alert"] for alert in ALERTS))
    for alert in ALERTS:
        assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{alert['alert'].lower()}"


def test_every_section_of_the_runbook_says_what_to_do_and_whom_to_call() -> None:
    for section in re.split(r"^## ", RUNBOOK.read_text(), flags=re.MULTILINE)[1:]:
        name, _, text = section.partition("\n")
        missing = [word for word in ("Meaning:", "Impact:", "Confirm", "emedy", "Escalate:") if word not in text]
        assert not missing, name


def test_every_alert_says_how_urgent_it_is_and_what_is_wrong() -> None:
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("page", "ticket"), alert["alert"]
        assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert all(text.strip() for text in alert["annotations"].values())


def test_every_alert_is_tested_with_series_that_make_it_fire_and_with_series_that_do_not() -> None:
    fired, quiet = defaultdict(set), set()
    for group in yaml.safe_load(TESTS_FILE.read_text())["tests"]:
        for one in group["alert_rule_test"]:
            if not one["exp_alerts"]:
                quiet.add(one["alertname"])
            for expected in one["exp_alerts"]:
                fired[one["alertname"]].add(expected["exp_labels"]["severity"])
    for alert in ALERTS:
        assert alert["labels"]["severity"] in fired[alert["alert"]], alert["alert"]
        assert alert["alert"] in quiet


def test_queries_use_metrics_and_labels_that_exist() -> None:
    assert len(QUERIES) > 80
    assert {name: faults for name, query in QUERIES.items() if (faults := faults_in(query, SERIES))} == {}


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("sum(rate(cart_alarm_total[5m])) > 0", "no metric cart_alarm_total"),
        ('cart_ready{state="x"} == 0', "cart_ready has no label state"),
        ("max by (job, stat) (cart_checkouts)", "no metric of the query has the label stat"),
        ("cart_ready and on (host) up", "no metric of the query has the label host"),
    ],
)
def test_a_query_with_a_name_that_does_not_exist_is_found(query: str, fault: str) -> None:
    assert faults_in(query, SERIES) == [fault]


def test_every_panel_has_a_title_a_unit_and_a_description_and_uses_the_variables() -> None:
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert panel["datasource"]["uid"] == target["datasource"]["uid"] == "${datasource}"
            assert 'job=~"$job"' in target["expr"]
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "job"]
