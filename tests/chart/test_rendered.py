"""From ten lines of values to a pod that runs: the rendered chart starts the installed command unchanged."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from sandbox.kubernetes import AUDIENCE, NAMESPACE, Kubernetes
from sandbox.openbao import bao
from tests.chart.render import TEN_LINES, notes, put, rendered, values
from tests.integration.processes import Daemon, Done, Scene, eventually, scene

ROOT = Path(__file__).parents[2]
AGENT = ROOT / "helm" / "examples" / "vault-agent.yaml"
ACCOUNT = "le81823118"
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
    """A folder with what the rendered volumes hold, and the environment that the worker's container would have."""

    world: Scene
    objects: dict[str, dict[str, Any]]
    folder: Path
    environment: dict[str, str | None]

    def exec(self, *flags: str) -> Done:
        """`kubectl exec … -- appjwt-worker`."""
        return self.world.call(*flags, changes=self.environment)

    def start(self) -> Daemon:
        return self.world.daemon({**self.environment, "APPJWT_ACCOUNTS_SYNC_INTERVAL": None})

    def placed(self, text: str) -> str:
        """Return a text whose paths of the pod lead below the folder."""
        return _placed(text, self.folder)


def _placed(text: str, folder: Path) -> str:
    return re.sub(r"(?<![\w/])/(etc|var|vault)/", rf"{folder}/\1/", text)


def mounted(
    folder: Path, objects: dict[str, dict[str, Any]], secrets: dict[str, str], token: str
) -> dict[str, str | None]:
    """Lay out the volumes of all containers below a folder; return the environment of the worker's."""
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    configs = {made["metadata"]["name"]: made["data"] for made in objects.values() if made["kind"] == "ConfigMap"}
    containers = [*pod.get("initContainers", []), *pod["containers"]]
    for mount in (mount for container in containers for mount in container["volumeMounts"]):
        volume, place = volumes[mount["name"]], folder / mount["mountPath"].strip("/")
        if "subPath" in mount:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(_placed(configs[volume["configMap"]["name"]][mount["subPath"]], folder))
            continue
        place.mkdir(parents=True, exist_ok=True)
        if "configMap" in volume:
            for name, text in configs[volume["configMap"]["name"]].items():
                (place / name).write_text(_placed(text, folder))
        elif "secret" in volume:
            (place / "ca.crt").write_text(secrets[volume["secret"]["secretName"]])
        elif "projected" in volume:
            (place / volume["projected"]["sources"][0]["serviceAccountToken"]["path"]).write_text(token)
    environment: dict[str, str | None] = {each["name"]: each["value"] for each in containers[-1].get("env", [])}
    return {**environment, **SERVICE_LINKS, "APPJWT_CONFIG": str(folder / "etc" / "appjwt-worker" / "worker.toml")}


def install(world: Scene, cluster: Kubernetes, folder: Path, text: str) -> Pod:
    """Render values for the world, with Vault's role bound as the notes say, and lay out the pod."""
    given = put(yaml.safe_load(text), "settings.vault.address", world.openbao.address)
    # the local LivePerson has other addresses and another CA; a customer's values contain none of this
    for name, value in {
        "settings.sentinel.domain_api": world.liveperson.domain_api,
        "settings.sentinel.allowed_hosts": [*world.liveperson.hosts.values()],
        "settings.sentinel.max_in_flight": 4,
        "settings.http.listen": "[::]:0",
        "sentinelCA.secretName": "liveperson-ca",
        "namespaceOverride": NAMESPACE,
    }.items():
        given = put(given, name, value)
    bind_role(world, cluster)
    objects = rendered(given, RELEASE)
    assert world.openbao.ca_file
    secrets = {"vault-ca": world.openbao.ca_file.read_text(), "liveperson-ca": world.liveperson.ca_file.read_text()}
    environment = mounted(folder, objects, secrets, cluster.token(audience=AUDIENCE))
    world.settings.clear()
    return Pod(world, objects, folder, environment)


def bind_role(world: Scene, cluster: Kubernetes) -> None:
    """Run the command of the notes; all that Vault has before is its way to ask the cluster."""
    world.openbao.kubernetes("appjwt-worker", ["default"], cluster)
    world.openbao.client.auth.kubernetes.delete_role("appjwt-worker")
    notes_text = notes(put(values(), "namespaceOverride", NAMESPACE), RELEASE)
    command = command_that_binds(notes_text)
    subprocess.run(
        [bao(), *command[1:]],
        env={
            "HOME": str(world.folder),
            "VAULT_ADDR": world.openbao.address,
            "VAULT_CACERT": str(world.openbao.ca_file),
            "VAULT_TOKEN": world.openbao.root_token,
        },
        check=True,
        capture_output=True,
        timeout=60,
    )


def command_that_binds(text: str) -> list[str]:
    found = re.search(r"^ +(vault write auth/kubernetes(?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert found, text
    return shlex.split(found[1].replace("\\\n", " "))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Kubernetes]:
    with Kubernetes() as made:
        yield made


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory, cluster: Kubernetes) -> Iterator[Pod]:
    folder = tmp_path_factory.mktemp("rendered")
    with scene(folder / "world") as world:
        world.add_account(ACCOUNT)
        yield install(world, cluster, folder / "root", TEN_LINES)


@pytest.fixture(scope="module")
def daemon(pod: Pod) -> Iterator[Daemon]:
    daemon = pod.start()
    yield daemon
    daemon.stop()


def test_the_daemon_logs_in_as_its_service_account_by_the_role_of_the_notes(daemon: Daemon) -> None:
    assert daemon.wait_for("vault.login")["method"] == "kubernetes"
    daemon.wait_for("token.refreshed", account=ACCOUNT)


def test_the_readme_binds_the_same_role() -> None:
    notes_text = notes(values(namespaceOverride="messaging"), RELEASE)
    assert command_that_binds((ROOT / "README.md").read_text()) == command_that_binds(notes_text)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_it_serves_the_probes_and_prometheus_by_ipv4_and_ipv6(pod: Pod, daemon: Daemon, host: str) -> None:
    daemon.wait_for("token.refreshed", account=ACCOUNT)
    url = f"http://{host}:{daemon.url.rpartition(':')[2]}"
    (container,) = pod.objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    for probe in ("livenessProbe", "readinessProbe"):
        assert requests.get(url + container[probe]["httpGet"]["path"], timeout=5).status_code == 200
    path = pod.objects["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["path"]
    assert "appjwt_build_info" in requests.get(url + path, timeout=5).text


def test_the_commands_of_the_notes_work_in_the_pod(pod: Pod, daemon: Daemon) -> None:
    daemon.wait_for("token.refreshed", account=ACCOUNT)
    notes_text = notes({"settings": {"vault": {"address": "https://v", "role": "r"}}})
    flags = [line.split() for line in re.findall(r"-- appjwt-worker (.*)", notes_text)]
    assert flags == [["--status"], ["--refresh", "ACCOUNT"]]
    for each in flags:
        done = pod.exec(*(ACCOUNT if word == "ACCOUNT" else word for word in each))
        assert done.status == 0, done.err
        assert ACCOUNT in done.out


def test_helms_test_passes_as_rendered(pod: Pod) -> None:
    (container,) = pod.objects["Check"]["spec"]["containers"]
    done = pod.exec(*container["args"])
    assert done.status == 0, done.out + done.err


def test_the_example_with_a_vault_agent_logs_in_by_its_sink(tmp_path: Path, cluster: Kubernetes) -> None:
    with scene(tmp_path / "world") as world, ExitStack() as running:
        world.add_account(ACCOUNT)
        pod = install(world, cluster, tmp_path / "root", AGENT.read_text())
        (agent,) = pod.objects["Deployment"]["spec"]["template"]["spec"]["initContainers"]
        assert agent["command"][0] == "bao"
        command = [bao(), *(pod.placed(word) for word in agent["command"][1:])]
        log = running.enter_context((tmp_path / "agent.log").open("wb"))
        process = running.enter_context(
            subprocess.Popen(command, env={"HOME": str(tmp_path)}, stdout=log, stderr=subprocess.STDOUT)
        )
        running.callback(process.terminate)
        probe = [pod.placed(word) for word in agent["startupProbe"]["exec"]["command"]]
        eventually(lambda: subprocess.run(probe, check=False).returncode == 0)
        sink = pod.folder / "vault" / "token" / "token"
        world.secrets.append(sink.read_text())
        daemon = pod.start()
        assert daemon.wait_for("vault.login")["method"] == "token"
        daemon.wait_for("token.refreshed", account=ACCOUNT)
        (container,) = pod.objects["Check"]["spec"]["containers"]
        done = pod.exec(*container["args"])
        assert done.status == 0, done.out + done.err
        daemon.stop()
        lookup = world.openbao.client.auth.token.lookup(sink.read_text())["data"]
        assert lookup["meta"]["service_account_name"] == RELEASE, "the Agent's login, which outlives the worker"


@pytest.mark.tool("unshare", "ip", "curl")
@pytest.mark.parametrize(
    ("network", "host"),
    [
        ("echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6", "127.0.0.1"),
        ("ip -4 addr del 127.0.0.1/8 dev lo", "[::1]"),
    ],
    ids=["IPv4 only", "IPv6 only"],
)
def test_the_default_port_serves_a_cluster_with_one_family(network: str, host: str, tmp_path: Path) -> None:
    """It runs in a network namespace without a Vault: it is alive all the same."""
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no namespaces")
    environment = mounted(tmp_path, rendered(values()), {"vault-ca": Kubernetes().ca_pem}, token="t")
    script = f"""
        ip link set lo up; {network}
        "$@" & trap "kill $!" EXIT
        curl -sSgf --retry 30 --retry-delay 1 --retry-connrefused http://{host}:8080/livez
    """
    done = subprocess.run(
        ["unshare", "-rn", "sh", "-ec", script, "sh", str(Path(sys.executable).with_name("appjwt-worker"))],
        env={**os.environ, **{name: value for name, value in environment.items() if value}},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
