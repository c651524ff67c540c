"""The rendered chart, by the real Helm engine."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from tests.chart import schema, table
from tests.chart.render import ADDRESS, notes, of_version, put, rendered, values
from worker import settings

ROOT = Path(__file__).parents[2]

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
        vaultClientCert={"secretName": "vault-client"},
        vaultHeaders={"secretName": "vault-headers"},
        openshift=True,
        service={"enabled": True, "ipFamilyPolicy": "PreferDualStack"},
        serviceMonitor={"enabled": True},
        networkPolicy={"proxyPorts": [3128], "extraPorts": [8443], "from": [{"podSelector": {}}]},
        podMonitor={"enabled": True, "labels": {"release": "prometheus"}, "interval": "15s"},
        prometheusRule={"enabled": True, "labels": {"release": "prometheus"}},
        dashboard={"enabled": True},
    )
    | {"global": {"anything": 1}},
}
CUSTOM = ("PodMonitor", "ServiceMonitor", "PrometheusRule")
VERSIONS = ("1.27", "1.31", "1.35")


@pytest.mark.parametrize("name", MATRIX)
@pytest.mark.parametrize("version", VERSIONS)
def test_objects_are_what_kubernetes_takes(name: str, version: str) -> None:
    for kind, made in rendered(MATRIX[name]).items():
        if kind not in CUSTOM:
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
    if "Service" in objects:
        assert objects["Service"]["spec"]["selector"].items() <= pod.items()
        monitored = objects["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
        assert monitored.items() <= objects["Service"]["metadata"]["labels"].items()
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


@pytest.mark.parametrize("version", [each for each in VERSIONS if each != "1.27"])  # sidecars are newer
def test_the_example_with_a_vault_agent_is_what_kubernetes_takes_and_restricted(version: str) -> None:
    objects = rendered(yaml.safe_load((ROOT / "helm" / "examples" / "vault-agent.yaml").read_text()))
    for made in objects.values():
        kubernetes_validate.validate(made, version, strict=True)
    for spec in (objects["Deployment"]["spec"]["template"]["spec"], objects["Check"]["spec"]):
        (agent,), (worker,) = spec["initContainers"], spec["containers"]
        assert agent["restartPolicy"] == "Always", "so the test's pod ends all the same"
        assert agent["securityContext"] == worker["securityContext"]
        mounts = {mount["name"] for container in (agent, worker) for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in spec["volumes"]}


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
            "client_cert": "/etc/appjwt-worker/vault-client/tls.crt",
            "client_key": "/etc/appjwt-worker/vault-client/tls.key",
            "secret_id_file": "/etc/appjwt-worker/approle/secret_id",
        },
        "sentinel": {"ca_cert": "/etc/appjwt-worker/sentinel-ca/ca.pem"},
        "http": {"listen": "[::]:8080"},
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


def test_a_changed_setting_rolls_the_pods_since_a_file_mounted_by_subpath_never_changes_in_one() -> None:
    def rolled(**of_vault: str) -> tuple[str, str]:
        pod = rendered({"settings": {"vault": {"address": ADDRESS, **of_vault}}})["Deployment"]["spec"]["template"]
        (mount,) = [each for each in pod["spec"]["containers"][0]["volumeMounts"] if each["name"] == "config"]
        return mount["subPath"], pod["metadata"]["annotations"]["checksum/config"]

    assert rolled(role="a") == rolled(role="a") != rolled(role="b")
    mine = {"podAnnotations": {"checksum/config": "mine"}, "settings": {"vault": {"address": ADDRESS, "role": "a"}}}
    template = rendered(mine)["Deployment"]["spec"]["template"]
    assert template["metadata"]["annotations"]["checksum/config"] == rolled(role="a")[1]


def test_secrets_are_mounted_as_folders_so_that_new_ones_arrive_in_a_pod_that_runs() -> None:
    container = rendered(MATRIX["everything"])["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    folders = {mount["mountPath"] for mount in container["volumeMounts"] if "subPath" not in mount}
    assert {f"/etc/appjwt-worker/{name}" for name in ("vault-ca", "vault-client", "sentinel-ca", "approle")} < folders


@pytest.mark.parametrize(
    ("address", "port"),
    [("https://v:8200", 8200), ("https://v", 443), ("http://v", 80), ("https://[::1]:8201/x", 8201)],
)
def test_the_network_policy_lets_out_to_vaults_own_port(address: str, port: int) -> None:
    policy = rendered({"settings": {"vault": {"address": address, "role": "r"}}})["NetworkPolicy"]["spec"]
    assert {each["port"] for each in policy["egress"][1]["ports"]} == {port, 443}


def test_a_vault_service_whose_pods_listen_on_another_port_is_reached() -> None:
    """A NetworkPolicy sees the port behind the Service."""
    inside = {"settings": {"vault": {"address": "https://vault.vault.svc", "role": "r"}}}
    policy = rendered({**inside, "networkPolicy": {"extraPorts": [8200]}})["NetworkPolicy"]["spec"]
    assert [each["port"] for each in policy["egress"][1]["ports"]] == [443, 8200]


def test_dns_is_let_out_as_kubernetes_and_openshift_serve_it() -> None:
    dns = rendered(MATRIX["the least"])["NetworkPolicy"]["spec"]["egress"][0]
    assert {(each["port"], each["protocol"]) for each in dns["ports"]} == {
        (port, protocol) for port in (53, 5353) for protocol in ("UDP", "TCP")
    }


def test_nobody_is_let_in_whom_the_values_do_not_name() -> None:
    policy = rendered(MATRIX["ten lines"])["NetworkPolicy"]["spec"]
    assert "Ingress" in policy["policyTypes"]
    assert "ingress" not in policy
    assert "name your Prometheus in networkPolicy.from" in notes(MATRIX["ten lines"])
    policy = rendered(MATRIX["everything"])["NetworkPolicy"]["spec"]
    assert policy["ingress"] == [{"ports": [{"port": 8080, "protocol": "TCP"}], "from": [{"podSelector": {}}]}]
    assert "networkPolicy.from" not in notes(MATRIX["everything"])


@pytest.mark.parametrize("version", ["1.0.0+a1b2c3d", "1.0.0-" + "x" * 70, "1.0.0+" + "a." * 30 + "b"])
def test_a_version_with_a_plus_or_a_long_one_makes_valid_labels(version: str, tmp_path: Path) -> None:
    objects = rendered(MATRIX["everything"], chart=of_version(version, tmp_path))
    for made in [*objects.values(), objects["Deployment"]["spec"]["template"]]:
        for value in made["metadata"]["labels"].values():
            assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", value)
    without_digest = rendered(MATRIX["ten lines"], chart=of_version("1.0.0+a1", tmp_path / "tag"))
    assert without_digest["Check"]["spec"]["containers"][0]["image"] == "apps/appjwt-worker:1.0.0_a1"


def test_it_works_as_another_charts_dependency_with_its_globals(tmp_path: Path) -> None:
    of_version("1.0.0", tmp_path / "charts")
    (tmp_path / "Chart.yaml").write_text("{apiVersion: v2, name: apps, version: 1.0.0}")
    everywhere = {"imageRegistry": "r.example/", "imagePullSecrets": ["registry"], "elsewhere": 1}
    given = {"global": everywhere, "appjwt-worker": values(livenessProbe=None, podSecurityContext={"fsGroup": None})}
    objects = rendered(given, chart=tmp_path)
    kubernetes_validate.validate(objects["Deployment"], "1.35", strict=True)
    spec = objects["Deployment"]["spec"]["template"]["spec"]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["containers"][0]["image"] == "r.example/apps/appjwt-worker:1.0.0"
    assert not spec["containers"][0].get("livenessProbe")
    assert not spec["securityContext"].get("fsGroup")


def test_a_release_and_a_namespace_may_be_numbers() -> None:
    given = values(namespaceOverride="2024", fullnameOverride="jwt", authDelegator=True)
    for made in rendered(given, release="7").values():
        assert made["metadata"]["labels"]["app.kubernetes.io/instance"] == "7"
        assert made["metadata"].get("namespace", "2024") == "2024"


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no address": ({}, "settings.vault.address: set it to your Vault's address"),
    "a misspelt setting": ({"settings": {"vault": {"adress": "x"}}}, "'adress' not allowed"),
    "a misspelt value": ({"replica": 3}, "'replica' not allowed"),
    "a token in the ConfigMap": ({"settings": {"vault": {"token": "s.x"}}}, "'token' not allowed"),
    "a number too large": ({"settings": {"sentinel": {"max_in_flight": 99}}}, "maximum"),
    "a word for a number": ({"replicas": "two"}, "got string, want integer"),
    "a digest that is none": ({"image": {"digest": "latest"}}, "does not match pattern"),
    "headers in the ConfigMap": ({"settings": {"vault": {"headers": {"X": "y"}}}}, "'headers' not allowed"),
    "an address without a scheme": ({"settings": {"vault": {"address": "vault:8200"}}}, "'vault:8200' does not match"),
    "another without one": ({"settings": {"sentinel": {"domain_api": "a.example"}}}, "'a.example' does not match"),
    "no port for the probes": ({"settings": {"http": {"listen": ""}}}, "/settings/http/listen"),
    "a share of pods that is none": ({"podDisruptionBudget": {"minAvailable": "half"}}, "'half' does not match"),
    "a name that Kubernetes refuses": ({"fullnameOverride": "My_App"}, "'My_App' does not match"),
    **{
        f"the chart's own {label} in {row.name}": (
            put({}, row.name, {label: "mine"}),
            f"invalid propertyName '{label}'",
        )
        for row in table.rows()
        if row.name.lower().endswith("labels")
        and isinstance(row.default, dict)
        and "Rule" not in row.name.partition(".")[2]
        for label in ("app.kubernetes.io/name", "app.kubernetes.io/component", "helm.sh/chart")
    },
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused_with_a_message_that_says_which(name: str) -> None:
    given, words = BAD[name]
    with pytest.raises(helm_python.HelmError) as caught:
        rendered(given)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", MATRIX)
def test_helm_lint_has_nothing_to_say(name: str) -> None:
    found = helm_python.lint(str(schema.CHART), MATRIX[name])
    assert not [each for each in found["messages"] if "icon is recommended" not in str(each)]


def test_the_schema_is_in_step_with_the_settings() -> None:
    assert (schema.CHART / "values.schema.json").read_text() == schema.text(), "make chart writes it anew"
    tables = json.loads(schema.text())["properties"]["settings"]["properties"]
    found = {f"{table}.{key}" for table, of in tables.items() for key in of["properties"]}
    assert found == {*settings.names()} - schema.SECRET


def test_the_readmes_table_is_in_step_with_the_comments_in_values() -> None:
    assert table.README.read_text() == table.readme(), "make chart writes it anew"


def test_every_value_has_a_comment_and_is_in_the_schema() -> None:
    def names(of: dict[str, Any], path: str = "") -> list[str]:
        inner = of.get("properties", {}) if path != "settings." else {}
        return [name for key, each in inner.items() for name in names(each, f"{path}{key}.")] or [path.rstrip(".")]

    assert sorted(row.name for row in table.rows()) == sorted(names(json.loads(schema.text())))


def test_the_labels_that_the_schema_refuses_are_the_charts_own() -> None:
    labels = rendered(MATRIX["ten lines"])["Deployment"]["spec"]["template"]["metadata"]["labels"]
    refused = json.loads(schema.text())["properties"]["podLabels"]["propertyNames"]["not"]["enum"]
    assert {*labels} == {*refused}


def test_the_chart_says_of_itself_what_the_repository_has() -> None:
    told = yaml.safe_load((schema.CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert told["appVersion"] == told["version"] == project["version"]
    assert told["annotations"]["artifacthub.io/license"] == project["license"]
    assert told["kubeVersion"]
    assert "://" not in str(told), "there is no address to name"


@pytest.mark.parametrize(
    ("of_vault", "lines"),
    [
        (
            {"role": "jwt", "auth_mount": "k8s/eu", "namespace": "brand/eu"},
            ["-namespace=brand/eu auth/k8s/eu/role/jwt", "bound_service_account_names=mine", "audience=vault"],
        ),
        (
            {"role": "jwt", "auth_method": "jwt"},
            ["auth/jwt/role/jwt", "bound_subject=system:serviceaccount:apps:mine", "bound_audiences=vault"],
        ),
        ({"auth_method": "approle", "role_id": "r"}, []),
        ({"token_file": "/sink"}, []),
    ],
)
def test_the_notes_bind_vaults_role_where_the_login_has_one(of_vault: dict[str, str], lines: list[str]) -> None:
    given = {"vault": {"address": ADDRESS, **of_vault}}
    told = notes({"settings": given, "serviceAccount": {"name": "mine"}, "namespaceOverride": "apps"})
    assert ("vault write" in told) == bool(lines)
    for line in lines:
        assert line in told


def test_the_notes_name_commands_that_work_as_they_stand() -> None:
    told = notes(MATRIX["ten lines"])
    assert "kubectl exec -n messaging deploy/tokens-appjwt-worker -- appjwt-worker --refresh ACCOUNT" in told
    assert "helm test -n messaging tokens --logs" in told
    assert "settings.vault.role is not set" not in told
    assert "settings.vault.role is not set" in notes({"settings": {"vault": {"address": ADDRESS}}})


def test_rendering_twice_gives_the_same() -> None:
    assert rendered(MATRIX["everything"]) == rendered(MATRIX["everything"])
