"""What the chart renders, by the real Helm engine."""

import json
import tomllib
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from tests.chart import schema
from tests.chart.render import ADDRESS, notes, rendered, values
from worker import settings

MATRIX: dict[str, dict[str, Any]] = {
    "ten lines": values(),
    "the least": {"settings": {"vault": {"address": ADDRESS, "role": "r"}}},
    "one replica, nothing around it": values(
        replicas=1,
        serviceAccount={"create": False, "name": "mine"},
        podDisruptionBudget={"enabled": False},
        networkPolicy={"enabled": False},
        podMonitor={"enabled": False},
    ),
    "everything": values(
        fullnameOverride="jwt",
        image={"repository": "apps/w", "digest": "sha256:" + "0" * 64},
        imagePullSecrets=[{"name": "registry"}],
        serviceAccount={"annotations": {"a": "b"}},
        authDelegator=True,
        sentinelCA={"secretName": "proxy-ca", "key": "ca.pem"},
        approle={"secretName": "approle"},
        extraEnv=[{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        extraVolumes=[{"name": "sink", "emptyDir": {}}],
        extraVolumeMounts=[{"name": "sink", "mountPath": "/sink"}],
        commonLabels={"team": "messaging"},
        podLabels={"x": "y"},
        podAnnotations={"n": "m"},
        nodeSelector={"kubernetes.io/os": "linux"},
        tolerations=[{"key": "k", "operator": "Exists"}],
        affinity={"podAntiAffinity": {}},
        topologySpreadConstraints=[
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
        ],
        priorityClassName="high",
        networkPolicy={"proxyPorts": [3128], "extraPorts": [8443], "from": [{"podSelector": {}}]},
        podMonitor={"enabled": True, "labels": {"release": "prometheus"}, "interval": "15s"},
        prometheusRule={"enabled": True, "labels": {"release": "prometheus"}},
        dashboard={"enabled": True},
    )
    | {"global": {"anything": 1}},
}
CRDS = ("PodMonitor", "PrometheusRule")
VERSIONS = ("1.27", "1.31", "1.35")


@pytest.mark.parametrize("name", MATRIX)
@pytest.mark.parametrize("version", VERSIONS)
def test_objects_are_what_kubernetes_takes(name: str, version: str) -> None:
    for kind, made in rendered(MATRIX[name]).items():
        if kind not in CRDS:
            kubernetes_validate.validate(made, version, strict=True)


@pytest.mark.parametrize("name", MATRIX)
def test_selectors_and_labels_agree_and_every_object_is_labelled(name: str) -> None:
    objects = rendered(MATRIX[name])
    pod = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [objects["Deployment"]["spec"]["selector"]["matchLabels"]]
    selectors += [
        objects[kind]["spec"][key]["matchLabels"]
        for kind, key in (
            ("PodDisruptionBudget", "selector"),
            ("NetworkPolicy", "podSelector"),
            ("PodMonitor", "selector"),
        )
        if kind in objects
    ]
    for selector in selectors:
        assert selector.items() <= pod.items()
    check = objects["Check"]["metadata"]["labels"]
    assert not selectors[0].items() <= check.items(), "the test's pod is none of the deployment's"
    for made in objects.values():
        assert made["metadata"]["labels"]["app.kubernetes.io/instance"] == "tokens"
        if name == "everything":
            assert made["metadata"]["labels"]["team"] == "messaging"


@pytest.mark.parametrize("name", MATRIX)
@pytest.mark.parametrize("kind", ["Deployment", "Check"])
def test_pods_are_restricted_and_have_no_access_to_the_cluster(name: str, kind: str) -> None:
    objects = rendered(MATRIX[name])
    spec = objects[kind]["spec"]["template"]["spec"] if kind == "Deployment" else objects[kind]["spec"]
    assert (
        spec["securityContext"] | {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        == spec["securityContext"]
    )
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert {*(key for volume in spec["volumes"] for key in volume)} <= {
        "name",
        "configMap",
        "projected",
        "secret",
        "emptyDir",
    }
    assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)
    assert spec["terminationGracePeriodSeconds"] == 45
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}


def test_the_pods_token_is_for_vault_alone() -> None:
    spec = rendered(MATRIX["ten lines"])["Deployment"]["spec"]["template"]["spec"]
    (token,) = [volume["projected"]["sources"] for volume in spec["volumes"] if "projected" in volume]
    assert token == [{"serviceAccountToken": {"path": "token", "audience": "vault", "expirationSeconds": 3600}}]
    assert "ClusterRoleBinding" not in rendered(MATRIX["ten lines"])


def test_an_update_leaves_no_gap() -> None:
    spec = rendered(MATRIX["ten lines"])["Deployment"]["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    budget = rendered(MATRIX["ten lines"])["PodDisruptionBudget"]["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


def toml(given: dict[str, Any]) -> dict[str, Any]:
    return tomllib.loads(rendered(given)["ConfigMap"]["data"]["worker.toml"])


def test_the_configmap_is_the_users_settings_and_what_the_chart_knows() -> None:
    assert toml(MATRIX["everything"]) == {
        "vault": {
            "address": ADDRESS,
            "role": "appjwt-worker",
            "jwt_file": "/var/run/secrets/vault/token",
            "ca_cert": "/etc/appjwt-worker/vault-ca/ca.crt",
            "auth_method": "approle",
            "secret_id_file": "/etc/appjwt-worker/approle/secret_id",
        },
        "sentinel": {"ca_cert": "/etc/appjwt-worker/sentinel-ca/ca.pem"},
        "http": {"listen": "0.0.0.0:8080"},
        "log": {"format": "json"},
    }


def test_what_the_user_says_wins() -> None:
    told = {
        "vault": {"address": ADDRESS, "jwt_file": "/mine"},
        "http": {"listen": "0.0.0.0:9000"},
        "log": {"format": "console"},
    }
    assert toml({"settings": told}) == told
    container = rendered({"settings": told})["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["ports"] == [{"name": "http", "containerPort": 9000}]


def test_a_changed_setting_rolls_the_pods_and_nothing_else_does() -> None:
    def checksum(**of_vault: str) -> str:
        made = rendered({"settings": {"vault": {"address": ADDRESS, **of_vault}}})
        return str(made["Deployment"]["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    assert checksum(role="a") == checksum(role="a") != checksum(role="b")


@pytest.mark.parametrize(
    ("address", "port"),
    [("https://v:8200", 8200), ("https://v", 443), ("http://v", 80), ("https://[::1]:8201/x", 8201)],
)
def test_the_network_policy_lets_out_to_vaults_own_port(address: str, port: int) -> None:
    policy = rendered({"settings": {"vault": {"address": address, "role": "r"}}})["NetworkPolicy"]["spec"]
    assert {each["port"] for each in policy["egress"][1]["ports"]} == {port, 443}
    assert policy["ingress"] == [{"ports": [{"port": 8080, "protocol": "TCP"}]}]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no address": ({}, "settings.vault.address: set it to your Vault's address"),
    "a misspelt setting": ({"settings": {"vault": {"adress": "x"}}}, "'adress' not allowed"),
    "a misspelt value": ({"replica": 3}, "'replica' not allowed"),
    "a token in the ConfigMap": ({"settings": {"vault": {"token": "s.x"}}}, "'token' not allowed"),
    "a number too large": ({"settings": {"sentinel": {"max_in_flight": 99}}}, "maximum"),
    "a word for a number": ({"replicas": "two"}, "got string, want integer"),
    "a digest that is none": ({"image": {"digest": "latest"}}, "does not match pattern"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused_with_a_message_that_says_which(name: str) -> None:
    given, words = BAD[name]
    with pytest.raises(helm_python.HelmError) as caught:
        rendered(given)
    assert words in str(caught.value)


def test_helm_lint_has_nothing_to_say() -> None:
    found = helm_python.lint(str(schema.CHART), values())
    assert not [each for each in found["messages"] if "icon is recommended" not in str(each)]


def test_the_schema_is_in_step_with_the_settings() -> None:
    assert (schema.CHART / "values.schema.json").read_text() == schema.text(), "make chart writes it anew"
    tables = json.loads(schema.text())["properties"]["settings"]["properties"]
    found = {f"{table}.{key}" for table, of in tables.items() for key in of["properties"]}
    assert found == {*settings.names()} - {"vault.token"}


def test_every_value_has_a_comment_and_is_in_the_schema() -> None:
    text = (schema.CHART / "values.yaml").read_text().splitlines()
    known = json.loads(schema.text())["properties"]

    def check(told: dict[str, Any], of: dict[str, Any]) -> None:
        assert told.keys() <= of.keys()
        for key, value in told.items():
            if of[key].get("properties") and key != "settings":
                check(value, of[key]["properties"])
            else:
                (at, *_) = [number for number, line in enumerate(text) if line.strip().startswith(f"{key}:")]
                assert text[at - 1].strip().startswith("#"), key

    check(yaml.safe_load("\n".join(text)), known)


def test_the_notes_name_commands_that_work_as_they_stand() -> None:
    told = notes(MATRIX["ten lines"])
    assert "kubectl exec -n messaging deploy/tokens-appjwt-worker -- appjwt-worker --refresh ACCOUNT" in told
    assert "helm test -n messaging tokens --logs" in told
    assert "settings.vault.role is not set" not in told
    assert "settings.vault.role is not set" in notes({"settings": {"vault": {"address": ADDRESS}}})


def test_rendering_twice_gives_the_same() -> None:
    assert rendered(MATRIX["everything"]) == rendered(MATRIX["everything"])
