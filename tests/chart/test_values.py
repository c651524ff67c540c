"""Every value of the chart, and where it shows in what is rendered."""

from dataclasses import dataclass, field
from typing import Any

import kubernetes_validate
import pytest

from tests.chart import table
from tests.chart.render import ADDRESS, put, rendered

POD = "spec.template.spec"
CONTAINER = f"{POD}.containers.0"
LABELS = "metadata.labels"
ANNOTATIONS = "metadata.annotations"
ENDPOINT = {"PodMonitor": "spec.podMetricsEndpoints.0", "ServiceMonitor": "spec.endpoints.0"}
RELABELING = [{"action": "drop", "sourceLabels": ["account"], "regex": "le1"}]
DNS = {"nameservers": ["10.0.0.10"]}
SPREAD = [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}]
SIDECAR = [{"name": "sidecar", "image": "sidecar:1"}]
EGRESS = [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]
BASE = {"settings": {"vault": {"address": ADDRESS, "role": "appjwt-worker"}}}
PEERS = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]


@dataclass(frozen=True)
class Shown:
    """A value, and where it shows in an object; None as the path = the object is there or not."""

    name: str
    value: Any
    kind: str
    path: str | None
    expected: Any
    also: dict[str, Any] = field(default_factory=dict)
    """Further values without which it would not show, by their names."""


def same(name: str, value: Any, kind: str, path: str, **also: Any) -> Shown:
    return Shown(name, value, kind, path, value, {key.replace("_", "."): told for key, told in also.items()})


def monitor(name: str) -> list[Shown]:
    """Return the values of a monitor; both kinds have the same ones."""
    kind, at = name[0].upper() + name[1:], ENDPOINT[name[0].upper() + name[1:]]
    on = {f"{name}.enabled": True}
    return [
        Shown(f"{name}.enabled", True, kind, f"{at}.path", "/metrics"),
        Shown(f"{name}.labels", {"a": "b"}, kind, f"{LABELS}.a", "b", on),
        Shown(f"{name}.annotations", {"a": "b"}, kind, f"{ANNOTATIONS}.a", "b", on),
        Shown(f"{name}.interval", "15s", kind, f"{at}.interval", "15s", on),
        Shown(f"{name}.scrapeTimeout", "5s", kind, f"{at}.scrapeTimeout", "5s", on),
        Shown(f"{name}.honorLabels", True, kind, f"{at}.honorLabels", True, on),
        Shown(f"{name}.relabelings", RELABELING, kind, f"{at}.relabelings", RELABELING, on),
        Shown(f"{name}.metricRelabelings", RELABELING, kind, f"{at}.metricRelabelings", RELABELING, on),
    ]


def secret(name: str, folder: str, *keys: str) -> list[Shown]:
    """Return a Secret that is mounted, and its keys, each in the settings; `keys` as KEY=SETTING."""
    place = f"/etc/appjwt-worker/{folder}"
    shown = [
        Shown(f"{name}.secretName", "mine", "Deployment", f"{POD}.volumes.-1.secret.secretName", "mine"),
        Shown(f"{name}.secretName", "mine", "Deployment", f"{CONTAINER}.volumeMounts.-1.mountPath", place),
    ]
    for key in keys:
        value, _, setting = key.partition("=")
        expected = f'{setting} = "{place}/x.pem"'
        shown.append(
            Shown(f"{name}.{value}", "x.pem", "ConfigMap", "data.worker.toml", expected, {f"{name}.secretName": "mine"})
        )
    return shown


HEADERS = {"name": "APPJWT_VAULT_HEADERS", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "headers"}}}
SHOWN = [
    Shown("settings", {"vault": {"address": ADDRESS, "role": "x"}}, "ConfigMap", "data.worker.toml", 'role = "x"'),
    same("replicas", 3, "Deployment", "spec.replicas"),
    Shown("image.repository", "a/b", "Deployment", f"{CONTAINER}.image", "a/b:1.0.0"),
    Shown("image.tag", "2", "Deployment", f"{CONTAINER}.image", "appjwt-worker:2"),
    Shown(
        "image.digest",
        "sha256:" + "0" * 64,
        "Deployment",
        f"{CONTAINER}.image",
        "appjwt-worker@sha256:" + "0" * 64,
        {"image.tag": "2"},
    ),
    same("image.pullPolicy", "Always", "Deployment", f"{CONTAINER}.imagePullPolicy"),
    same("imagePullSecrets", [{"name": "a"}], "Deployment", f"{POD}.imagePullSecrets"),
    Shown(
        "global.imageRegistry",
        "r.example:5000",
        "Check",
        "spec.containers.0.image",
        "r.example:5000/appjwt-worker:1.0.0",
    ),
    Shown(
        "global.imagePullSecrets",
        ["b", {"name": "c"}, "a"],
        "Check",
        "spec.imagePullSecrets",
        [{"name": "b"}, {"name": "c"}, {"name": "a"}],
        {"imagePullSecrets": [{"name": "a"}]},
    ),
    Shown("nameOverride", "jwt", "Deployment", "metadata.name", "tokens-jwt"),
    same("fullnameOverride", "jwt", "Deployment", "metadata.name"),
    same("namespaceOverride", "elsewhere", "Deployment", "metadata.namespace"),
    Shown("serviceAccount.create", False, "ServiceAccount", None, None),
    same("serviceAccount.name", "mine", "Deployment", f"{POD}.serviceAccountName"),
    Shown("serviceAccount.annotations", {"a": "b"}, "ServiceAccount", f"{ANNOTATIONS}.a", "b"),
    same("vaultToken.audience", "x", "Deployment", f"{POD}.volumes.1.projected.sources.0.serviceAccountToken.audience"),
    same(
        "vaultToken.expirationSeconds",
        900,
        "Deployment",
        f"{POD}.volumes.1.projected.sources.0.serviceAccountToken.expirationSeconds",
    ),
    Shown("authDelegator", True, "ClusterRoleBinding", "subjects.0.name", "tokens-appjwt-worker"),
    *secret("vaultCA", "vault-ca", "key=ca_cert"),
    *secret("vaultClientCert", "vault-client", "certKey=client_cert", "keyKey=client_key"),
    *secret("sentinelCA", "sentinel-ca", "key=ca_cert"),
    *secret("approle", "approle", "key=secret_id_file"),
    Shown(
        "vaultHeaders.secretName", "mine", "Deployment", f"{CONTAINER}.env.0", HEADERS, {"extraEnv": [{"name": "X"}]}
    ),
    same(
        "vaultHeaders.key",
        "k",
        "Check",
        "spec.containers.0.env.0.valueFrom.secretKeyRef.key",
        vaultHeaders_secretName="mine",
    ),
    same("extraArgs", ["--config", "/x"], "Deployment", f"{CONTAINER}.args"),
    same("extraEnv", [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}], "Deployment", f"{CONTAINER}.env"),
    same("envFrom", [{"secretRef": {"name": "mine"}}], "Deployment", f"{CONTAINER}.envFrom"),
    Shown("extraVolumes", [{"name": "x", "emptyDir": {}}], "Check", "spec.volumes.-1.name", "x"),
    Shown(
        "extraVolumeMounts",
        [{"name": "x", "mountPath": "/x"}],
        "Check",
        "spec.containers.0.volumeMounts.-1.mountPath",
        "/x",
    ),
    same("initContainers", SIDECAR, "Deployment", f"{POD}.initContainers"),
    same("initContainers", SIDECAR, "Check", "spec.initContainers"),
    Shown("extraContainers", SIDECAR, "Deployment", f"{POD}.containers.1.image", "sidecar:1"),
    Shown(
        "extraObjects",
        [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-x"}}],
        "Extra ConfigMap",
        "metadata.name",
        "tokens-x",
    ),
    Shown(
        "extraObjects",
        ['{apiVersion: v1, kind: Secret, metadata: {name: x, namespace: "{{ .Release.Namespace }}"}}'],
        "Extra Secret",
        "metadata.namespace",
        "messaging",
    ),
    *[Shown("commonLabels", {"a": "b"}, kind, f"{LABELS}.a", "b") for kind in ("Deployment", "ConfigMap", "Check")],
    Shown("commonLabels", {"a": "b"}, "Deployment", f"spec.template.{LABELS}.a", "b"),
    Shown("deploymentLabels", {"a": "b"}, "Deployment", f"{LABELS}.a", "b", {"commonLabels": {"a": "c"}}),
    Shown("deploymentAnnotations", {"a": "b"}, "Deployment", f"{ANNOTATIONS}.a", "b"),
    Shown("podLabels", {"a": "b"}, "Deployment", f"spec.template.{LABELS}.a", "b", {"commonLabels": {"a": "c"}}),
    Shown("podAnnotations", {"a": "b"}, "Deployment", f"spec.template.{ANNOTATIONS}.a", "b"),
    same("revisionHistoryLimit", 0, "Deployment", "spec.revisionHistoryLimit"),
    same("strategy", {"type": "Recreate"}, "Deployment", "spec.strategy"),
    same("terminationGracePeriodSeconds", 60, "Deployment", f"{POD}.terminationGracePeriodSeconds"),
    Shown(
        "openshift",
        True,
        "Deployment",
        f"{POD}.securityContext",
        {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    ),
    Shown("openshift", True, "Check", "spec.securityContext.runAsUser", None),
    Shown(
        "podSecurityContext",
        {"runAsUser": 1000, "runAsGroup": None, "fsGroup": None},
        "Deployment",
        f"{POD}.securityContext",
        {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
    ),
    Shown("securityContext", {"runAsUser": 7}, "Deployment", f"{CONTAINER}.securityContext.runAsUser", 7),
    Shown("securityContext", {"capabilities": None}, "Check", "spec.containers.0.securityContext.capabilities", None),
    Shown("resources", {"limits": {"memory": "1Gi"}}, "Deployment", f"{CONTAINER}.resources.limits.memory", "1Gi"),
    Shown("livenessProbe", {"periodSeconds": 7}, "Deployment", f"{CONTAINER}.livenessProbe.periodSeconds", 7),
    Shown("livenessProbe", None, "Deployment", f"{CONTAINER}.livenessProbe", None),
    Shown("readinessProbe", {"failureThreshold": 7}, "Deployment", f"{CONTAINER}.readinessProbe.failureThreshold", 7),
    Shown("readinessProbe", None, "Deployment", f"{CONTAINER}.readinessProbe", None),
    same("startupProbe", {"httpGet": {"path": "/livez", "port": "http"}}, "Deployment", f"{CONTAINER}.startupProbe"),
    same("lifecycle", {"preStop": {"exec": {"command": ["true"]}}}, "Deployment", f"{CONTAINER}.lifecycle"),
    same("nodeSelector", {"kubernetes.io/os": "linux"}, "Deployment", f"{POD}.nodeSelector"),
    same("tolerations", [{"key": "k", "operator": "Exists"}], "Deployment", f"{POD}.tolerations"),
    same("affinity", {"podAntiAffinity": {}}, "Deployment", f"{POD}.affinity"),
    same("topologySpreadConstraints", SPREAD, "Deployment", f"{POD}.topologySpreadConstraints"),
    same("priorityClassName", "high", "Deployment", f"{POD}.priorityClassName"),
    same("schedulerName", "mine", "Deployment", f"{POD}.schedulerName"),
    same("runtimeClassName", "gvisor", "Deployment", f"{POD}.runtimeClassName"),
    same("hostAliases", [{"ip": "10.0.0.1", "hostnames": ["vault"]}], "Deployment", f"{POD}.hostAliases"),
    same("dnsPolicy", "None", "Deployment", f"{POD}.dnsPolicy", dnsConfig=DNS),
    same("dnsConfig", DNS, "Deployment", f"{POD}.dnsConfig"),
    Shown("podDisruptionBudget.enabled", False, "PodDisruptionBudget", None, None),
    same("podDisruptionBudget.minAvailable", "50%", "PodDisruptionBudget", "spec.minAvailable"),
    same("podDisruptionBudget.minAvailable", 0, "PodDisruptionBudget", "spec.minAvailable"),
    Shown("podDisruptionBudget.minAvailable", 1, "PodDisruptionBudget", "spec.maxUnavailable", None),
    same("podDisruptionBudget.maxUnavailable", "50%", "PodDisruptionBudget", "spec.maxUnavailable"),
    same(
        "podDisruptionBudget.unhealthyPodEvictionPolicy",
        "IfHealthyBudget",
        "PodDisruptionBudget",
        "spec.unhealthyPodEvictionPolicy",
    ),
    Shown("networkPolicy.enabled", False, "NetworkPolicy", None, None),
    Shown("networkPolicy.proxyPorts", [3128], "NetworkPolicy", "spec.egress.1.ports.-1.port", 3128),
    Shown("networkPolicy.extraPorts", [8201], "NetworkPolicy", "spec.egress.1.ports.-1.port", 8201),
    Shown("networkPolicy.extraEgress", EGRESS, "NetworkPolicy", "spec.egress.2", EGRESS[0]),
    Shown("networkPolicy.from", PEERS, "NetworkPolicy", "spec.ingress.0.from", PEERS),
    Shown("service.enabled", True, "Service", "spec.ports.0.targetPort", "http"),
    same("service.type", "LoadBalancer", "Service", "spec.type", service_enabled=True),
    same("service.port", 80, "Service", "spec.ports.0.port", service_enabled=True),
    same("service.ipFamilyPolicy", "PreferDualStack", "Service", "spec.ipFamilyPolicy", service_enabled=True),
    same("service.ipFamilies", ["IPv6"], "Service", "spec.ipFamilies", service_enabled=True),
    Shown("service.labels", {"a": "b"}, "Service", f"{LABELS}.a", "b", {"service.enabled": True}),
    Shown("service.annotations", {"a": "b"}, "Service", f"{ANNOTATIONS}.a", "b", {"service.enabled": True}),
    *monitor("podMonitor"),
    *monitor("serviceMonitor"),
    Shown("serviceMonitor.enabled", True, "Service", "spec.ports.0.name", "http"),
    Shown("prometheusRule.enabled", True, "PrometheusRule", "spec.groups.0.name", "appjwt-worker"),
    Shown(
        "prometheusRule.runbookBaseUrl",
        "https://git.example/",
        "PrometheusRule",
        "spec.groups.0.rules.0.annotations.runbook_url",
        "https://git.example/docs/operations.md#appjwttokenexpirycritical",
        {"prometheusRule.enabled": True},
    ),
    Shown("prometheusRule.labels", {"a": "b"}, "PrometheusRule", f"{LABELS}.a", "b", {"prometheusRule.enabled": True}),
    Shown(
        "prometheusRule.annotations",
        {"a": "b"},
        "PrometheusRule",
        f"{ANNOTATIONS}.a",
        "b",
        {"prometheusRule.enabled": True},
    ),
    *[
        Shown(
            f"prometheusRule.additionalRule{what.title()}",
            {"team": "messaging"},
            "PrometheusRule",
            f"spec.groups.0.rules.{number}.{what}.team",
            "messaging",
            {"prometheusRule.enabled": True},
        )
        for what in ("labels", "annotations")
        for number in (0, -1)
    ],
    Shown("dashboard.enabled", True, "Dashboard", f"{LABELS}.grafana_dashboard", "1"),
    Shown("dashboard.labels", {"a": "b"}, "Dashboard", f"{LABELS}.a", "b", {"dashboard.enabled": True}),
    Shown("dashboard.annotations", {"a": "b"}, "Dashboard", f"{ANNOTATIONS}.a", "b", {"dashboard.enabled": True}),
]
CUSTOM = ("PodMonitor", "ServiceMonitor", "PrometheusRule")


def look(objects: dict[str, dict[str, Any]], kind: str, path: str | None) -> Any:
    """Return a field, None if it is not there. `worker.toml` is one name, a number counts in a list."""
    found: Any = objects.get(kind)
    if path is None:
        return found
    for key in path.replace("worker.toml", "worker-toml").split("."):
        if isinstance(found, list):
            found = found[int(key)] if int(key) < len(found) else None
        else:
            found = (found or {}).get(key.replace("worker-toml", "worker.toml"))
    return found


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: f"{shown.name}-{shown.kind}-{shown.path}")
def test_a_value_shows_where_kubernetes_looks_for_it(shown: Shown) -> None:
    before: dict[str, Any] = BASE
    for name, value in shown.also.items():
        before = put(before, name, value)
    objects = rendered(put(before, shown.name, shown.value))
    without, found = look(rendered(before), shown.kind, shown.path), look(objects, shown.kind, shown.path)
    if shown.path == "data.worker.toml":
        assert shown.expected in found
        assert shown.expected not in without
    else:
        assert found == shown.expected
        assert without != shown.expected
    if shown.kind in objects and shown.kind not in CUSTOM:
        kubernetes_validate.validate(objects[shown.kind], "1.35", strict=True)


def test_each_value_is_rendered_by_a_test() -> None:
    assert {shown.name for shown in SHOWN} == {row.name for row in table.rows()}


@pytest.mark.parametrize("row", [row for row in table.rows() if row.default in ([], {})], ids=lambda row: row.name)
def test_a_list_or_map_may_be_null(row: table.Row) -> None:
    """A key without a value is null in YAML."""
    everything = {**BASE, **{name: {"enabled": True} for name in ("podMonitor", "serviceMonitor", "prometheusRule")}}
    assert rendered(put(everything, row.name, None)) == rendered(everything)
