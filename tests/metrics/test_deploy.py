"""The alert rules and the dashboard of deploy/ speak of metrics there are, the runbook of each alert and warning."""

import json
import re
from pathlib import Path

import pytest

from outbox.core.tally import GivenBack, Tally
from outbox.metrics import page
from outbox.metrics.families import FAMILIES, Kind

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FILES = ["prometheus/alerts.yaml", "grafana/outbox.json"]
OF_PROMETHEUS = {"job", "instance"}


def series() -> dict[str, set[str]]:
    """Return the name of each series there is, with its labels."""
    found = {}
    for family in FAMILIES.values():
        endings = ["_bucket", "_count", "_sum"] if family.kind is Kind.HISTOGRAM else [""]
        for ending in endings:
            labels = {*family.labels, *(["le"] if ending == "_bucket" else [])}
            found[family.name + ending] = labels | OF_PROMETHEUS
    for metric in page._processes([1, 2]):  # noqa: SLF001 - the names that the library gives
        found[metric.samples[0].name] = {"worker"} | OF_PROMETHEUS
    return found


@pytest.mark.parametrize("file", FILES)
def test_every_name_is_a_series(file: str) -> None:
    """What a rule or a panel asks for is served, under that very name."""
    text = (DEPLOY / file).read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:outbox|process)_\w+", text))
    assert len(named) >= 10
    assert named - series().keys() == set()


@pytest.mark.parametrize("file", FILES)
def test_every_selector_and_grouping_has_labels_that_there_are(file: str) -> None:
    """A selector's labels are those of its series, a grouping's those of some series; values are spelled right."""
    text = (DEPLOY / file).read_text(encoding="utf-8").replace('\\"', '"')
    known = series()
    for name, selector in re.findall(r"\b((?:outbox|process)_\w+)\{([^}]*)\}", text):
        assert set(re.findall(r"(\w+)!?=~?\"", selector)) <= known[name], (name, selector)
    every = set().union(*known.values())
    for grouping in re.findall(r"\b(?:by|on) \(([^)]*)\)", text):
        assert {label.strip() for label in grouping.split(",")} <= every, grouping
    assert set(re.findall(r'outcome!?="(\w+)"', text)) <= {outcome for outcome, _ in Tally().attempts}
    named = {reason for each in re.findall(r'reason!?=~?"([^"]+)"', text) for reason in each.split("|")}
    assert named <= set(GivenBack)


def test_the_dashboard_is_one() -> None:
    """It is JSON; each panel has a number of its own, a title and something to ask."""
    panels = json.loads((DEPLOY / "grafana/outbox.json").read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 10
    assert all(panel["title"] and all(target["expr"] for target in panel["targets"]) for panel in panels)


def test_each_alert_says_what_to_do() -> None:
    """It has a description, and a section of the runbook with its name, where its runbook_url leads."""
    rules = (DEPLOY / "prometheus/alerts.yaml").read_text(encoding="utf-8").split("- alert: ")[1:]
    alerts = [rule.split("\n", 1)[0] for rule in rules]
    runbook = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (Outbox\w+)$", runbook, re.MULTILINE) == alerts
    for alert, rule in zip(alerts, rules, strict=True):
        assert "description: " in rule, alert
        assert f"runbook_url: docs/runbook.md#{alert.lower()}\n" in rule


def test_the_runbook_tells_of_each_warning() -> None:
    """Whatever the program logs as a warning or an error stands in the table of events, and each of these is logged."""
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "outbox").rglob("*.py")))
    warned = set(re.findall(r'\blog\.(?:warning|error|exception)\(\s*"(\w+\.\w+)"', source))
    assert len(warned) >= 10
    runbook = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*) \| (?:info|warning|error|error, warning) \|", runbook, re.MULTILINE)
    told = {event for row in rows for event in re.findall(r"`(\w+\.\w+)`", row)}
    assert warned - told == set()
    assert {event for event in told if f'"{event}"' not in source} == set()
