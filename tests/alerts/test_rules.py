"""The alerts, by promtool: each fires, and each stays silent where one might fear that it fires."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.alerts.stand import RULES, rules
from worker import settings
from worker.core.appjwt import Check
from worker.core.errors import Kind, Stage
from worker.core.outcome import State

ROOT = Path(__file__).parents[2]
TESTS = Path(__file__).parent / "rules_test.yaml"
RUNBOOK = (ROOT / "docs" / "operations.md").read_text()


def anchors(text: str) -> set[str]:
    return {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }


@pytest.mark.tool("promtool")
def test_promtool_takes_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.tool("promtool")
def test_each_alert_fires_when_it_should_and_stays_silent_otherwise(tmp_path: Path) -> None:
    document: dict[str, Any] = yaml.safe_load(RULES.read_text())
    for rule in document["groups"][0]["rules"]:
        del rule["annotations"]  # their words are not what is tested
    (tmp_path / RULES.name).write_text(yaml.safe_dump(document))
    shutil.copy(TESTS, tmp_path)
    done = subprocess.run(
        ["promtool", "test", "rules", TESTS.name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_case_in_which_it_fires() -> None:
    fired = {
        case["alertname"]
        for test in yaml.safe_load(TESTS.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in rules()}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_each_alert_says_what_it_is_and_where_the_runbook_has_it(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert page == "docs/operations.md"
    assert anchor == rule["alert"].lower()
    assert anchor in anchors(RUNBOOK)


def test_the_runbook_explains_every_word_that_an_operator_can_meet() -> None:
    texts = "".join(file.read_text() for file in (ROOT / "worker").rglob("*.py"))
    events = set(re.findall(r'"((?:accounts?|vault|clock|credentials|refresh|token|worker)\.[a-z_]+)"', texts))
    events |= {"token.refreshed", "token.adopted", "token.unchanged"}
    modules = {f"worker.{file.stem}" for file in (ROOT / "worker").iterdir()} | {"worker.ops", "worker.bug"}
    words = {*events - modules - {*settings.names()}, *State, *Stage, *Kind, *Check}
    assert {word for word in words if f"`{word}`" not in RUNBOOK.replace("` (", "` ")} - {*Kind} == set()
    assert {kind for kind in Kind if kind not in RUNBOOK} == set()


def test_the_chart_brings_the_same_rules_and_dashboard() -> None:
    render = pytest.importorskip("tests.chart.render", reason="Helm's engine is not made for this machine")
    objects = render.rendered(render.values(prometheusRule={"enabled": True}, dashboard={"enabled": True}))
    assert objects["PrometheusRule"]["spec"] == yaml.safe_load(RULES.read_text())
    told = objects["Dashboard"]["data"]["appjwt-worker.json"]
    assert told.strip() == (RULES.parents[1] / "dashboards" / "appjwt-worker.json").read_text().strip()
