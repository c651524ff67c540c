"""values.schema.json: the chart's values, and `settings` as the settings class has them. `make chart` writes it."""

import json
import sys
from pathlib import Path
from typing import Any, Final

from worker.settings import Settings

CHART: Final = Path(__file__).parents[2] / "helm" / "appjwt-worker"
SECRET: Final = {"vault.token", "vault.headers"}
"""No ConfigMap may hold them: they come from a Secret, by extraEnv and vaultHeaders."""
_PATTERNS: Final = {
    "vault.address": "^https?://.",
    "sentinel.domain_api": "^https?://.",
    "http.listen": ":[0-9]+$",  # the probes need the port
}
_OWN_LABELS: Final = [
    "app.kubernetes.io/component",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/name",
    "app.kubernetes.io/version",
    "helm.sh/chart",
]
_FREE: Final = {"type": ["object", "null"]}
_TEXT: Final = {"type": "string"}
_NAME: Final = {"type": "string", "pattern": "^([a-z]([a-z0-9-]*[a-z0-9])?)?$"}
_TEXTS: Final = {"type": "object", "additionalProperties": {"type": "string"}}
_LABELS: Final = {**_TEXTS, "propertyNames": {"not": {"enum": _OWN_LABELS}}}
_LIST: Final = {"type": "array", "items": {"type": "object"}}
_NAMES: Final = {"type": "array", "items": {"type": "string"}}
_COUNT: Final = {"type": "integer", "minimum": 0}
_PORT: Final = {"type": "integer", "minimum": 1, "maximum": 65535}
_PORTS: Final = {"type": "array", "items": _PORT}
_PODS: Final = {"type": ["integer", "string"], "minimum": 0, "pattern": "^([0-9]+%)?$"}
_BOOLEAN: Final = {"type": "boolean"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _choice(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": [*values]}


def _settings() -> dict[str, Any]:
    schema = Settings.model_json_schema()
    tables = {}
    for table, of in schema["properties"].items():
        keys = schema["$defs"][of["$ref"].rpartition("/")[2]]["properties"]
        named = {key: _plain(f"{table}.{key}", of) for key, of in keys.items() if f"{table}.{key}" not in SECRET}
        tables[table] = _object(**named)
    return _object(**tables)


def _plain(name: str, field: dict[str, Any]) -> dict[str, Any]:
    """Return what a setting may be, without title and default, which are in config/worker.toml."""
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    dropped = ("title", "default", "format", "description")
    plain = {key: value for kind in kinds for key, value in kind.items() if key not in dropped}
    if name in _PATTERNS:
        plain["pattern"] = _PATTERNS[name]
    return plain


def schema() -> dict[str, Any]:
    secret = _object(secretName=_TEXT, key=_TEXT)
    monitor = _object(
        enabled=_BOOLEAN,
        labels=_LABELS,
        annotations=_TEXTS,
        interval=_TEXT,
        scrapeTimeout=_TEXT,
        honorLabels=_BOOLEAN,
        relabelings=_LIST,
        metricRelabelings=_LIST,
    )
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart appjwt-worker",
        **_object(
            settings=_settings(),
            replicas=_COUNT,
            image=_object(
                repository={"type": "string", "minLength": 1},
                tag=_TEXT,
                digest={"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
                pullPolicy=_choice("Always", "IfNotPresent", "Never"),
            ),
            imagePullSecrets=_LIST,
            nameOverride=_NAME,
            fullnameOverride=_NAME,
            namespaceOverride=_TEXT,
            serviceAccount=_object(create=_BOOLEAN, name=_TEXT, annotations=_TEXTS),
            vaultToken=_object(
                audience={"type": "string", "minLength": 1}, expirationSeconds={"type": "integer", "minimum": 600}
            ),
            authDelegator=_BOOLEAN,
            vaultCA=secret,
            vaultClientCert=_object(secretName=_TEXT, certKey=_TEXT, keyKey=_TEXT),
            vaultHeaders=secret,
            sentinelCA=secret,
            approle=secret,
            extraArgs=_NAMES,
            extraEnv=_LIST,
            envFrom=_LIST,
            extraVolumes=_LIST,
            extraVolumeMounts=_LIST,
            initContainers=_LIST,
            extraContainers=_LIST,
            extraObjects={"type": "array", "items": {"type": ["object", "string"]}},
            commonLabels=_LABELS,
            deploymentLabels=_LABELS,
            deploymentAnnotations=_TEXTS,
            podLabels=_LABELS,
            podAnnotations=_TEXTS,
            revisionHistoryLimit=_COUNT,
            strategy=_FREE,
            terminationGracePeriodSeconds=_COUNT,
            openshift=_BOOLEAN,
            podSecurityContext=_FREE,
            securityContext=_FREE,
            resources=_FREE,
            livenessProbe=_FREE,
            readinessProbe=_FREE,
            startupProbe=_FREE,
            lifecycle=_FREE,
            nodeSelector=_TEXTS,
            tolerations=_LIST,
            affinity=_FREE,
            topologySpreadConstraints=_LIST,
            priorityClassName=_TEXT,
            schedulerName=_TEXT,
            runtimeClassName=_TEXT,
            hostAliases=_LIST,
            dnsPolicy=_choice("", "ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
            dnsConfig=_FREE,
            podDisruptionBudget=_object(
                enabled=_BOOLEAN,
                minAvailable=_PODS,
                maxUnavailable=_PODS,
                unhealthyPodEvictionPolicy=_choice("", "AlwaysAllow", "IfHealthyBudget"),
            ),
            networkPolicy=_object(
                enabled=_BOOLEAN, proxyPorts=_PORTS, extraPorts=_PORTS, extraEgress=_LIST, **{"from": _LIST}
            ),
            service=_object(
                enabled=_BOOLEAN,
                type=_choice("ClusterIP", "NodePort", "LoadBalancer"),
                port=_PORT,
                ipFamilyPolicy=_choice("", "SingleStack", "PreferDualStack", "RequireDualStack"),
                ipFamilies={"type": "array", "items": _choice("IPv4", "IPv6")},
                labels=_LABELS,
                annotations=_TEXTS,
            ),
            podMonitor=monitor,
            serviceMonitor=monitor,
            prometheusRule=_object(
                enabled=_BOOLEAN,
                labels=_LABELS,
                annotations=_TEXTS,
                runbookBaseUrl=_TEXT,
                additionalRuleLabels=_TEXTS,
                additionalRuleAnnotations=_TEXTS,
            ),
            dashboard=_object(enabled=_BOOLEAN, labels=_LABELS, annotations=_TEXTS),
            # a parent chart's, with keys for other charts
            **{
                "global": {
                    "type": "object",
                    "properties": {
                        "imageRegistry": _TEXT,
                        "imagePullSecrets": {"type": "array", "items": {"type": ["object", "string"]}},
                    },
                }
            },
        ),
    }


def text() -> str:
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    (CHART / "values.schema.json").write_text(text())
    sys.stdout.write("values.schema.json is in step with the settings\n")
