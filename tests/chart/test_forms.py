"""Objects of operators have the fields that their operators know."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.forms import misfits
from tests.chart.render import rendered, values

ROOT = Path(__file__).parents[2]
RELABELING = [
    {"action": "labeldrop", "regex": "pod"},
    {"sourceLabels": ["a", "b"], "separator": "/", "targetLabel": "c"},
]
MONITOR = {
    "enabled": True,
    "scrapeTimeout": "10s",
    "honorLabels": True,
    "relabelings": RELABELING,
    "metricRelabelings": RELABELING,
}
RULE = {"enabled": True, "additionalRuleLabels": {"team": "a"}, "additionalRuleAnnotations": {"runbook_url": "b"}}


@pytest.mark.parametrize("kind", ["PodMonitor", "ServiceMonitor", "PrometheusRule"])
def test_what_the_chart_renders_for_the_prometheus_operator_has_its_form(kind: str) -> None:
    assert misfits(rendered(values(podMonitor=MONITOR, serviceMonitor=MONITOR, prometheusRule=RULE))[kind]) == []
    on = {"enabled": True}
    assert misfits(rendered(values(podMonitor=on, serviceMonitor=on, prometheusRule=on))[kind]) == []


@pytest.mark.parametrize("file", ["external-secrets.yaml", "vault-secrets-operator.yaml"])
def test_the_examples_for_operators_have_their_forms(file: str) -> None:
    objects = [*yaml.safe_load_all((ROOT / "examples" / file).read_text())]
    assert objects
    for made in objects:
        assert misfits(made) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"endpoint": []}, "spec.endpoint: there is no such field"),
        ({"selector": None}, "spec.selector: None is no dict"),
        ({"endpoints": [{"interval": "soon"}]}, "spec.endpoints[0].interval: 'soon' does not match"),
        ({"endpoints": [{"honorLabels": "yes"}]}, "spec.endpoints[0].honorLabels: 'yes' is no bool"),
        ({"sampleLimit": True}, "spec.sampleLimit: True is no int"),
        ({"targetLabels": "a"}, "spec.targetLabels: 'a' is no list"),
        ({"selector": {"matchLabels": {"a": 1}}}, "spec.selector.matchLabels.a: 1 is no str"),
    ],
)
def test_another_form_is_seen(changes: dict[str, Any], said: str) -> None:
    made = rendered(values(serviceMonitor={"enabled": True}))["ServiceMonitor"]
    (found,) = misfits({**made, "spec": {**made["spec"], **changes}})
    assert found.startswith(said)
    assert misfits({**made, "spec": {"endpoints": []}}) == ["spec.selector is missing"]
    assert misfits({**made, "apiVersion": "v0"}) == ["no such object: v0 ServiceMonitor"]
