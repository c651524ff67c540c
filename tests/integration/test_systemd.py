"""A machine without Kubernetes: what the wheel brings along, and the systemd unit."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.processes import Scene, scene

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "config" / "appjwt-worker.service"
PREFIX = "/opt/appjwt-worker"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("machine") / "world") as world:
        yield world


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel as in the README, but below this folder."""
    folder = tmp_path_factory.mktemp("wheel")
    python = [sys.executable, "-m"]
    subprocess.run([*python, "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    install = [*python, "pip", "install", "-q", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([*install, "--prefix", folder / "opt", *folder.glob("*.whl")], check=True)
    return folder / "opt"


def test_the_files_that_the_readme_names_are_in_the_wheel(installed: Path) -> None:
    named = re.findall(rf"{PREFIX}/((?:bin/appjwt|share/)[\w./-]+)", (ROOT / "README.md").read_text())
    assert {"bin/appjwt-worker", "share/appjwt-worker"} <= {*named}
    assert [name for name in named if not (installed / name).exists()] == []
    policy = installed / "share" / "appjwt-worker" / "policies" / "worker.hcl"
    assert policy.read_text() == (ROOT / "config" / "policies" / "worker.hcl").read_text()


@pytest.mark.tool("systemd-analyze")
def test_systemd_takes_the_unit_and_finds_it_hardened(installed: Path, tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(PREFIX, str(installed)))
    for command in (["verify"], ["security", "--offline=true", "--threshold=15", "--no-pager"]):
        done = subprocess.run(["systemd-analyze", *command, unit], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_the_worker_logs_in_with_the_credential_that_the_unit_hands_over(world: Scene, tmp_path: Path) -> None:
    text = UNIT.read_text()
    (credential,) = re.findall(r"^LoadCredential=(\w+):", text, re.MULTILINE)
    (tmp_path / credential).write_bytes(Path(world.settings["APPJWT_VAULT_SECRET_ID_FILE"]).read_bytes())
    environment = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.MULTILINE))
    changes = {name: value.replace("%d", str(tmp_path)) for name, value in environment.items()}
    world.add_account("le81823118")
    done = world.call("--refresh", "le81823118", changes={"APPJWT_VAULT_SECRET_ID_FILE": None, **changes})
    assert done.status == 0, done
