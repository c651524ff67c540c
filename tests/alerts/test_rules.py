"""The alerts, by promtool: each fires, and each stays silent where one might fear that it fires."""

import json
import re
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.alerts.stand import RULES, alertmanager_config, rules
from worker.core.errors import Kind, Stage
from worker.core.status import CRITICAL_MARGIN, WARNING_MARGIN

ROOT = Path(__file__).parents[2]
DASHBOARD = RULES.parents[1] / "dashboards" / "appjwt-worker.json"
TESTS = Path(__file__).parent / "rules_test.yaml"
RUNBOOK = (ROOT / "docs" / "operations.md").read_text()


def run_promtool(tests: str, folder: Path, *, annotations: Collection[str]) -> None:
    """Run promtool's tests on the rules, with only these of their annotations."""
    document: dict[str, Any] = yaml.safe_load(RULES.read_text())
    for rule in document["groups"][0]["rules"]:
        rule["annotations"] = {name: rule["annotations"][name] for name in annotations}
    (folder / RULES.name).write_text(yaml.safe_dump(document))
    (folder / TESTS.name).write_text(tests)
    done = subprocess.run(
        ["promtool", "test", "rules", TESTS.name], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.tool("amtool")
def test_amtool_takes_the_inhibitions_and_they_name_alerts_that_there_are(tmp_path: Path) -> None:
    file = tmp_path / "alertmanager.yml"
    file.write_text(alertmanager_config())
    done = subprocess.run(["amtool", "check-config", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for inhibition in yaml.safe_load(file.read_text())["inhibit_rules"]:
        for matcher in (*inhibition["source_matchers"], *inhibition["target_matchers"]):
            pattern = matcher.split()[-1].strip('"')
            named = [rule["alert"] for rule in rules() if re.fullmatch(pattern, rule["alert"])]
            assert len(named) == pattern.count("|") + 1, matcher


@pytest.mark.parametrize("panel", json.loads(DASHBOARD.read_text())["panels"], ids=lambda panel: panel["title"])
def test_each_panel_of_the_dashboard_says_what_it_shows_and_shows_the_releases_chosen(panel: dict[str, Any]) -> None:
    assert len(panel["description"]) > 20
    for target in panel["targets"]:
        chosen = target["expr"].count('{namespace=~"$namespace", job=~"$job"')
        assert chosen == len(re.findall(r"appjwt_\w+|process_\w+", target["expr"]))
        assert "rate(" not in target["expr"] or "[$__rate_interval]" in target["expr"]


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
    run_promtool(TESTS.read_text(), tmp_path, annotations=())


@pytest.mark.tool("promtool")
@pytest.mark.parametrize(
    ("accounts", "summary"),
    [
        (1, "1 account is failing, most of the attempts at the stage vault (permanent)"),
        (2, "2 accounts are failing, most of the attempts at the stage vault (permanent)"),
    ],
)
def test_the_summary_counts_accounts_as_people_do_and_names_the_stage(
    accounts: int, summary: str, tmp_path: Path
) -> None:
    failures = 'appjwt_refresh_failures_total{job="w", namespace="n"'
    series = {
        f'appjwt_consecutive_failures{{job="w", namespace="n", account="{n}"}}': "9+0x20" for n in range(accounts)
    }
    series |= {f'{failures}, stage="vault", kind="permanent"}}': "0+2x20"}
    series |= {f'{failures}, stage="sentinel", kind="transient"}}': "0+1x20"}
    series |= {'appjwt_refresh_failures_total{job="other", stage="claims", kind="permanent"}': "0+9x20"}
    labels = {"job": "w", "namespace": "n", "severity": "warning"}
    expected = {"exp_labels": labels, "exp_annotations": {"summary": summary}}
    case = {"eval_time": "12m", "alertname": "AppJWTAccountFailing", "exp_alerts": [expected]}
    document = {
        "rule_files": [RULES.name],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [case],
            }
        ],
    }
    run_promtool(yaml.safe_dump(document), tmp_path, annotations=("summary",))


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
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert page == "docs/operations.md"
    assert anchor == rule["alert"].lower()
    assert anchor in anchors(RUNBOOK)
    section = RUNBOOK.partition(f"### {rule['alert']}\n")[2].partition("\n##")[0]
    assert section.startswith("\n    appjwt-worker --check")
    assert set(re.findall(r"\(#([a-z0-9-]+)\)", section)) <= anchors(RUNBOOK)


def test_the_runbook_explains_every_stage_and_kind_of_failure() -> None:
    assert [word for word in (*Stage, *Kind) if f"`{word}`" not in RUNBOOK] == []


def test_the_chart_brings_the_same_rules_and_dashboard() -> None:
    render = pytest.importorskip("tests.chart.render", reason="Helm's engine is not made for this machine")
    objects = render.rendered(render.values(prometheusRule={"enabled": True}, dashboard={"enabled": True}))
    assert objects["PrometheusRule"]["spec"] == yaml.safe_load(RULES.read_text())
    rendered = objects["Dashboard"]["data"]["appjwt-worker.json"]
    assert rendered.strip() == DASHBOARD.read_text().strip()


def test_alerts_and_dashboard_have_the_limits_that_every_screen_has() -> None:
    expressions = {rule["alert"]: rule["expr"] for rule in rules()}
    for alert, limit in (("AppJWTTokenExpiryCritical", CRITICAL_MARGIN), ("AppJWTTokenExpirySoon", WARNING_MARGIN)):
        assert expressions[alert] == f"max by (job, namespace) (appjwt_min_margin_ratio) < {limit}"
    assert f"< {WARNING_MARGIN} * (" in expressions["AppJWTRefreshOverdue"]
    panels = [
        panel
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        if any("margin" in target["expr"] for target in panel.get("targets", []))
    ]
    assert panels
    for panel in panels:
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert [step["value"] for step in steps] == [None, CRITICAL_MARGIN, WARNING_MARGIN]
