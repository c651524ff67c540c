"""From ten lines of values to a pod that runs: what the chart renders starts the installed command as it stands."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from sandbox.kubernetes import AUDIENCE, Kubernetes
from tests.chart.render import TEN_LINES, notes, rendered
from tests.integration.processes import Daemon, Done, Scene, scene

RELEASE = "appjwt-worker"
"""The stand-in for Kubernetes knows this service account."""
SERVICE_LINKS = {
    "APPJWT_WORKER_SERVICE_HOST": "10.0.0.7",
    "APPJWT_WORKER_SERVICE_PORT": "8080",
    "APPJWT_WORKER_SERVICE_PORT_HTTP": "8080",
    "APPJWT_WORKER_PORT": "tcp://10.0.0.7:8080",
    "APPJWT_WORKER_PORT_8080_TCP": "tcp://10.0.0.7:8080",
    "APPJWT_WORKER_PORT_8080_TCP_PROTO": "tcp",
}
"""Kubernetes adds them for a Service of this name, where a pod does not refuse them."""


@dataclass
class Pod:
    """A folder with what the rendered volumes hold, and the environment that the container would have."""

    world: Scene
    objects: dict[str, dict[str, Any]]
    environment: dict[str, str | None]
    daemon: Daemon

    def exec(self, *flags: str) -> Done:
        """`kubectl exec … -- appjwt-worker`."""
        return self.world.call(*flags, changes=self.environment)


def mounted(
    folder: Path, objects: dict[str, dict[str, Any]], secrets: dict[str, str], token: str
) -> dict[str, str | None]:
    """Lay out the volumes below a folder; the environment in which the command finds them there."""
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for mount in container["volumeMounts"]:
        volume, place = volumes[mount["name"]], folder / mount["mountPath"].strip("/")
        (place.parent if "subPath" in mount else place).mkdir(parents=True, exist_ok=True)
        if "configMap" in volume:
            text = objects["ConfigMap"]["data"][mount["subPath"]]
            place.write_text(re.sub(r'"(/(?:etc|var)/)', rf'"{folder}\1', text))
        elif "secret" in volume:
            (place / "ca.crt").write_text(secrets[volume["secret"]["secretName"]])
        else:
            (place / volume["projected"]["sources"][0]["serviceAccountToken"]["path"]).write_text(token)
    environment: dict[str, str | None] = {each["name"]: each["value"] for each in container.get("env", [])}
    return {**environment, **SERVICE_LINKS, "APPJWT_CONFIG": str(folder / "etc" / "appjwt-worker" / "worker.toml")}


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    folder = tmp_path_factory.mktemp("rendered")
    with scene(folder / "world") as world, Kubernetes() as cluster:
        world.add_account("le81823118")
        world.openbao.kubernetes("appjwt-worker", ["appjwt-worker"], cluster)
        given = yaml.safe_load(TEN_LINES)
        given["settings"]["vault"]["address"] = world.openbao.address
        # the local LivePerson has its own addresses and CA; a customer's values say none of this
        given["settings"]["sentinel"] = {
            "domain_api": world.liveperson.domain_api,
            "allowed_hosts": [*world.liveperson.hosts.values()],
            "max_in_flight": 4,
        }
        given["settings"]["http"] = {"listen": "127.0.0.1:0"}
        given["sentinelCA"] = {"secretName": "liveperson-ca"}
        objects = rendered(given, RELEASE)
        assert world.openbao.ca_file
        secrets = {"vault-ca": world.openbao.ca_file.read_text(), "liveperson-ca": world.liveperson.ca_file.read_text()}
        environment = mounted(folder / "root", objects, secrets, cluster.token(audience=AUDIENCE))
        world.settings.clear()
        daemon = world.daemon({**environment, "APPJWT_ACCOUNTS_SYNC_EVERY": None})
        yield Pod(world, objects, environment, daemon)
        daemon.stop()


def test_the_daemon_logs_in_as_its_service_account_and_serves_the_probes(pod: Pod) -> None:
    assert pod.daemon.wait_for("vault.login")["method"] == "kubernetes"
    pod.daemon.wait_for("token.refreshed", account="le81823118")
    url = f"http://{pod.daemon.wait_for('worker.started')['http']}"
    (container,) = pod.objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    for probe in ("livenessProbe", "readinessProbe"):
        assert requests.get(url + container[probe]["httpGet"]["path"], timeout=5).status_code == 200
    path = pod.objects["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["path"]
    assert "appjwt_build_info" in requests.get(url + path, timeout=5).text


def test_the_commands_of_the_notes_work_in_the_pod(pod: Pod) -> None:
    pod.daemon.wait_for("token.refreshed", account="le81823118")
    told = notes({"settings": {"vault": {"address": "https://v", "role": "r"}}})
    flags = [line.split() for line in re.findall(r"-- appjwt-worker (.*)", told)]
    assert flags == [["--status"], ["--refresh", "ACCOUNT"]]
    for each in flags:
        done = pod.exec(*("le81823118" if word == "ACCOUNT" else word for word in each))
        assert done.status == 0, done.err
        assert "le81823118" in done.out


def test_helms_test_passes_as_rendered(pod: Pod) -> None:
    (container,) = pod.objects["Check"]["spec"]["containers"]
    done = pod.exec(*container["args"])
    assert done.status == 0, done.out + done.err
