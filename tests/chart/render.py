"""What the chart makes of values."""

from typing import Any

import helm_python
import yaml

from tests.chart.schema import CHART

ADDRESS = "https://vault.example.com:8200"
TEN_LINES = f"""\
settings:
  vault:
    address: {ADDRESS}
    role: appjwt-worker
vaultCA:
  secretName: vault-ca
image:
  repository: apps/appjwt-worker
podMonitor:
  enabled: true
"""
"""All that many will ever need."""


def values(text: str = TEN_LINES, **changes: Any) -> dict[str, Any]:
    return {**yaml.safe_load(text), **changes}


def rendered(given: dict[str, Any], release: str = "tokens") -> dict[str, dict[str, Any]]:
    """The objects, by kind; the test's pod is `Check`, the dashboard `Dashboard`."""
    with helm_python.Chart.load(str(CHART)) as chart:
        chart.validate_schema(given)
        files = chart.render(given, name=release, namespace="messaging")
    objects = {}
    for name, text in files.items():
        if name.endswith(".yaml") and (made := yaml.safe_load(text)):
            kind = "Check" if "/tests/" in name else "Dashboard" if "dashboard" in name else made["kind"]
            objects[kind] = made
    return objects


def notes(given: dict[str, Any]) -> str:
    with helm_python.Chart.load(str(CHART)) as chart:
        files = chart.render(given, name="tokens", namespace="messaging")
    return next(text for name, text in files.items() if name.endswith("NOTES.txt"))
