"""Render the chart from values."""

import copy
import shutil
from pathlib import Path
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


def put(given: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Return the values with one more, by its name with dots."""
    changed = copy.deepcopy(given)
    *path, last = name.split(".")
    inner = changed
    for key in path:
        inner = inner.setdefault(key, {})
    inner[last] = value
    return changed


def rendered(given: dict[str, Any], release: str = "tokens", chart: Path = CHART) -> dict[str, dict[str, Any]]:
    """Return the objects by kind; the test's pod is `Check`, the dashboard `Dashboard`, an extra one `Extra KIND`."""
    objects = {}
    for name, text in _files(given, release, chart).items():
        for made in yaml.load_all(text, yaml.CSafeLoader) if name.endswith(".yaml") else ():
            if made:
                objects[_kind(name, made["kind"])] = made
    return objects


def notes(given: dict[str, Any], release: str = "tokens") -> str:
    return next(text for name, text in _files(given, release, CHART).items() if name.endswith("NOTES.txt"))


def of_version(version: str, folder: Path) -> Path:
    """Return a copy of the chart with this version and appVersion."""
    copy = shutil.copytree(CHART, folder / CHART.name)
    chart_yaml = yaml.safe_load((copy / "Chart.yaml").read_text())
    (copy / "Chart.yaml").write_text(yaml.safe_dump({**chart_yaml, "version": version, "appVersion": version}))
    return copy


def _files(given: dict[str, Any], release: str, path: Path) -> dict[str, str]:
    """Render as `helm install` does: defaults, then the schema, then the templates."""
    with helm_python.Chart.load(str(path)) as chart:
        files: dict[str, str] = chart.render(given, name=release, namespace="messaging")
    return files


def _kind(file: str, kind: str) -> str:
    if file.endswith("extraobjects.yaml"):
        return f"Extra {kind}"
    return "Check" if "/tests/" in file else "Dashboard" if "dashboard" in file else kind
