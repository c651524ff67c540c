"""values.schema.json: the chart's values, and `settings` as the settings class has them. `make chart` writes it."""

import json
import sys
from pathlib import Path
from typing import Any, Final

from worker.settings import Settings

CHART: Final = Path(__file__).parents[2] / "helm" / "appjwt-worker"
_SECRET: Final = {"token"}
"""A ConfigMap is no place for it: an Agent's sink, or VAULT_TOKEN from a Secret by extraEnv, is."""
_FREE: Final = {"type": "object"}
_TEXT: Final = {"type": "string"}
_TEXTS: Final = {"type": "object", "additionalProperties": {"type": "string"}}
_OBJECTS: Final = {"type": "array", "items": {"type": "object"}}
_PORTS: Final = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 65535}}
_YES_OR_NO: Final = {"type": "boolean"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _choice(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": [*values]}


def _settings() -> dict[str, Any]:
    schema = Settings.model_json_schema()
    tables = {}
    for table, of in schema["properties"].items():
        keys = schema["$defs"][of["$ref"].rpartition("/")[2]]["properties"]
        tables[table] = _object(**{key: _plain(told) for key, told in keys.items() if key not in _SECRET})
    return _object(**tables)


def _plain(told: dict[str, Any]) -> dict[str, Any]:
    """What a value may be, without titles and defaults; those are in config/worker.toml."""
    kinds = [kind for kind in told.get("anyOf", [told]) if kind.get("type") != "null"]
    kept = {key: value for kind in kinds for key, value in kind.items() if key not in ("title", "default", "format")}
    kept.pop("description", None)
    return kept


def schema() -> dict[str, Any]:
    secret = _object(secretName=_TEXT, key=_TEXT)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart appjwt-worker",
        **_object(
            settings=_settings(),
            replicas={"type": "integer", "minimum": 0},
            image=_object(
                repository={"type": "string", "minLength": 1},
                tag=_TEXT,
                digest={"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
                pullPolicy=_choice("Always", "IfNotPresent", "Never"),
            ),
            imagePullSecrets=_OBJECTS,
            fullnameOverride=_TEXT,
            serviceAccount=_object(create=_YES_OR_NO, name=_TEXT, annotations=_TEXTS),
            vaultToken=_object(
                audience={"type": "string", "minLength": 1}, expirationSeconds={"type": "integer", "minimum": 600}
            ),
            authDelegator=_YES_OR_NO,
            vaultCA=secret,
            sentinelCA=secret,
            approle=secret,
            extraEnv=_OBJECTS,
            extraVolumes=_OBJECTS,
            extraVolumeMounts=_OBJECTS,
            commonLabels=_TEXTS,
            podLabels=_TEXTS,
            podAnnotations=_TEXTS,
            resources=_FREE,
            nodeSelector=_TEXTS,
            tolerations=_OBJECTS,
            affinity=_FREE,
            topologySpreadConstraints=_OBJECTS,
            priorityClassName=_TEXT,
            podDisruptionBudget=_object(enabled=_YES_OR_NO),
            networkPolicy=_object(enabled=_YES_OR_NO, proxyPorts=_PORTS, extraPorts=_PORTS, **{"from": _OBJECTS}),
            podMonitor=_object(enabled=_YES_OR_NO, labels=_TEXTS, interval=_TEXT),
            prometheusRule=_object(enabled=_YES_OR_NO, labels=_TEXTS),
            dashboard=_object(enabled=_YES_OR_NO, labels=_TEXTS),
            **{"global": _FREE},  # Helm hands it to each subchart
        ),
    }


def text() -> str:
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    (CHART / "values.schema.json").write_text(text())
    sys.stdout.write("values.schema.json is in step with the settings\n")
