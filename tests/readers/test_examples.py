"""What docs/reading-tokens.md tells, and the examples, as far as their tools run here."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from sandbox.openbao import bao
from tests.builders import app_jwt
from tests.integration.processes import Scene, eventually, scene
from worker.core.plan import Life, Timing

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ACCOUNT = "le81823118"


@dataclass
class Reader:
    """A login that may read one account's token, as an app has it."""

    world: Scene
    environment: dict[str, str]
    folder: Path
    """Has role_id and secret_id in it."""

    def run(self, *command: str, **more: str) -> str:
        done = subprocess.run(
            command,
            env={**self.environment, **more},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @property
    def token(self) -> str:
        stored = self.world.openbao.get_token(ACCOUNT)
        assert stored
        return stored["access_token"]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reader")
    with scene(folder / "world") as world:
        world.add_account(ACCOUNT)
        assert world.call("--refresh", ACCOUNT).status == 0
        policy = (ROOT / "config" / "policies" / "reader.hcl").read_text()
        world.openbao.policy("reader", policy)
        role_id, secret_id = world.openbao.approle("reader", ["reader"])
        (folder / "role_id").write_text(role_id)
        (folder / "secret_id").write_text(secret_id)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "VAULT_ADDR": world.openbao.address,
            "VAULT_CACERT": str(world.openbao.ca_file),
            "NODE_EXTRA_CA_CERTS": str(world.openbao.ca_file),
            "VAULT_TOKEN": world.openbao.token(["reader"]),
            "ACCOUNT": ACCOUNT,
        }
        yield Reader(world, environment, folder)


def test_hvac_reads_the_token(reader: Reader) -> None:
    assert reader.run(sys.executable, str(EXAMPLES / "read_token.py")) == reader.token


def test_hvac_tries_again_with_another_token_and_not_with_the_same(reader: Reader) -> None:
    program = "import sys; sys.path.insert(0, sys.argv[1]); import hvac, os, read_token, subprocess\n"
    program += "jwt = read_token.AppJWT(os.environ['ACCOUNT'], hvac.Client(verify=os.environ['VAULT_CACERT']))\n"
    program += "jwt.headers(); print(jwt.refused()); input(); print(jwt.refused())"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(EXAMPLES)],
        env=reader.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline().strip() == "False"
        time.sleep(1.1)  # a token of the same second would end no later
        assert reader.world.call("--refresh", ACCOUNT).status == 0
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline().strip() == "True"


_WHEN_VAULT_IS_AWAY = """
import sys; sys.path.insert(0, sys.argv[1])
import os, hvac, read_token
client = hvac.Client(verify=os.environ["VAULT_CACERT"])
jwt = read_token.AppJWT(os.environ["ACCOUNT"], client)
before = jwt.headers()
read_token.time.monotonic = lambda: 1e12
client.adapter.base_uri = "https://127.0.0.1:9"
assert jwt.headers() == before, "it serves until its end"
read_token.time.time = lambda: float(jwt._secret["exp"])
read_token.time.monotonic = lambda: 2e12
jwt.headers()
"""


def test_hvac_goes_on_with_a_living_token_where_vault_is_away(reader: Reader) -> None:
    program = [sys.executable, "-c", _WHEN_VAULT_IS_AWAY, str(EXAMPLES)]
    done = subprocess.run(program, env=reader.environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "ConnectionError" in done.stderr.splitlines()[-1], "and says so when it has ended"


@pytest.mark.tool("curl")
def test_curl_reads_the_token_and_says_when_there_is_none(reader: Reader) -> None:
    script = str(EXAMPLES / "read-token.sh")
    assert reader.run("sh", script, ACCOUNT) == reader.token
    for token in (reader.environment["VAULT_TOKEN"], "none"):
        told = {**reader.environment, "VAULT_TOKEN": token}
        name = "nobody" if token != "none" else ACCOUNT
        done = subprocess.run(["sh", script, name], env=told, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode != 0
        assert done.stdout == ""
        assert done.stderr


@pytest.mark.tool("node", "npm")
def test_node_reads_the_token(reader: Reader) -> None:
    shutil.copy(EXAMPLES / "read-token.mjs", reader.folder)
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--silent", "node-vault"],
        cwd=reader.folder,
        check=True,
        capture_output=True,
        timeout=180,
    )
    assert reader.run("node", "read-token.mjs") == reader.token


def test_an_agent_renders_the_token_and_its_successor(reader: Reader) -> None:
    """bao agent 2.7 takes a version that will go one day for one that is gone, so here it never goes."""
    path, kv = f"liveperson/tokens/{ACCOUNT}", reader.world.openbao.client.secrets.kv.v2
    config = (EXAMPLES / "agent.hcl").read_text().replace('"1m"', '"1s"')
    config = config.replace("https://vault.example.com:8200", reader.world.openbao.address)
    shutil.copy(str(reader.world.openbao.ca_file), reader.folder / "vault-ca.pem")
    (reader.folder / "agent.hcl").write_text(config)
    environment = {key: value for key, value in reader.environment.items() if key != "VAULT_TOKEN"}
    file = reader.folder / "appjwt"
    kv.update_metadata(path, delete_version_after="0s")
    with subprocess.Popen(
        [bao(), "agent", "-config=agent.hcl"],
        cwd=reader.folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    ) as agent:
        try:
            for text in (reader.token, app_jwt().raw.get_secret_value()):
                kv.create_or_update_secret(path, {"access_token": text, "managed_by": "appjwt-worker"})
                eventually(lambda text=text: file.exists() and file.read_text() == text)  # type: ignore[misc]
        finally:
            agent.terminate()
    assert reader.world.call("--refresh", ACCOUNT).status == 0


def test_a_proxy_serves_the_token_to_whoever_has_no_login(reader: Reader) -> None:
    address = "127.0.0.1:8114"
    config = (EXAMPLES / "proxy.hcl").read_text().replace("127.0.0.1:8100", address)
    config = config.replace("https://vault.example.com:8200", reader.world.openbao.address)
    (reader.folder / "proxy.hcl").write_text(config.replace("vault-ca.pem", str(reader.world.openbao.ca_file)))
    environment = {key: value for key, value in reader.environment.items() if key != "VAULT_TOKEN"}

    def read() -> Any:
        try:
            answer = requests.get(f"http://{address}/v1/secret/data/liveperson/tokens/{ACCOUNT}", timeout=5)
        except requests.ConnectionError:
            return None
        return answer.json()["data"]["data"]["access_token"] if answer.ok else None

    with subprocess.Popen(
        [bao(), "proxy", "-config=proxy.hcl"],
        cwd=reader.folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    ) as proxy:
        try:
            assert eventually(read) == reader.token
        finally:
            proxy.terminate()


@pytest.mark.parametrize(
    ("file", "kind"),
    [("vault-secrets-operator.yaml", "VaultStaticSecret"), ("external-secrets.yaml", "ExternalSecret")],
)
def test_an_operators_example_reads_the_path_that_the_worker_writes(file: str, kind: str) -> None:
    told = yaml.safe_load((EXAMPLES / file).read_text())
    assert told["kind"] == kind
    assert f"liveperson/tokens/{ACCOUNT}" in str(told["spec"])


def test_who_reads_a_token_has_27_minutes_left_while_all_is_well() -> None:
    life = Life(0.0, 3600.0)
    timing = Timing(0.5, 0.05, "a")
    latest = max(timing.refresh_at(f"le{number}", life) for number in range(2000))
    assert 3600.0 - latest >= 27 * 60


def test_the_page_names_every_example_and_they_exist() -> None:
    text = (ROOT / "docs" / "reading-tokens.md").read_text()
    assert {*re.findall(r"\(\.\./examples/(.*?)\)", text)} == {
        file.name for file in EXAMPLES.iterdir() if file.is_file()
    }
