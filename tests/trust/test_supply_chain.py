"""The shipped packages are the declared ones, and contain no secret."""

import re
import secrets
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.builders import SAMPLE, make_token
from tests.trust.licences import ALLOWED, ELSEWHERE, licences, pins

ROOT = Path(__file__).parents[2]
RUNTIME, DEMO, DEV = (ROOT / f"requirements/{name}.txt" for name in ("runtime", "demo", "dev"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
DECLARED = [Requirement(each) for each in PROJECT["project"]["dependencies"]]
GROUPS = PROJECT["dependency-groups"]
DECLARED_FOR_DEMO = [*DECLARED, *(Requirement(each) for each in GROUPS["demo"])]
DECLARED_FOR_DEVELOPMENT = [
    *DECLARED_FOR_DEMO,
    *(Requirement(each) for each in GROUPS["dev"] if each != {"include-group": "demo"}),
]
LOCKS = [(RUNTIME, DECLARED), (DEMO, DECLARED_FOR_DEMO), (DEV, DECLARED_FOR_DEVELOPMENT)]


def tracked(*folders: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", "--", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.splitlines())


# The locks


@pytest.mark.parametrize(("lock", "declared"), LOCKS)
def test_a_lock_has_everything_declared_within_its_range(lock: Path, declared: list[Requirement]) -> None:
    locked = pins(lock)
    for each in declared:
        assert each.specifier.contains(locked[canonicalize_name(each.name)][0]), each


def test_a_lock_was_made_for_just_what_is_declared() -> None:
    """Each of our pins names its requirer: one that is no longer declared would still be there."""
    for lock, declared in LOCKS:
        blocks = re.split(r"\n(?=[a-z0-9])", lock.read_text())
        ours = {block.partition("==")[0] for block in blocks if "appjwt-worker (pyproject.toml" in block}
        assert ours == {canonicalize_name(each.name) for each in declared}


def needed(names: set[str]) -> set[str]:
    """Return these and all that they require on this machine, by the metadata of the installed packages."""
    found: set[str] = set()
    waiting = {Requirement(each) for each in names}
    while waiting:
        each = waiting.pop()
        name = canonicalize_name(each.name)
        found.add(name)
        try:
            wanted = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:
            continue
        for want in wanted:
            inside = want.marker is None or any(want.marker.evaluate({"extra": one}) for one in each.extras or {""})
            if inside and canonicalize_name(want.name) not in found:
                waiting.add(want)
    return found


def test_the_runtime_lock_holds_what_the_worker_needs_and_nothing_else() -> None:
    everywhere = {name for name, (_, marker) in pins(RUNTIME).items() if not marker or "PyPy" in marker}
    assert needed({str(each) for each in DECLARED}) == everywhere


def test_the_locks_agree_and_have_a_hash_for_each_file() -> None:
    dev = pins(DEV)
    for lock, _ in LOCKS:
        locked = pins(lock)
        assert {name: dev[name][0] for name in locked} == {name: number for name, (number, _) in locked.items()}
        text = lock.read_text()
        assert all("--hash=sha256:" in block for block in re.split(r"\n(?=[a-z0-9])", text)[1:])
        assert "index-url" not in text
        assert "://" not in text


def test_every_licence_is_known_and_one_that_may_be_used() -> None:
    for name, _, licence in licences():
        assert licence == ELSEWHERE or ALLOWED.fullmatch(licence), (name, licence)


# What is built


@pytest.mark.tool("git")
def test_wheel_and_sdist_hold_what_they_should_and_nothing_else(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    about = {name for name in names if ".dist-info/" in name}
    assert {name.partition(".dist-info/")[2] for name in about} == {
        "METADATA",
        "WHEEL",
        "RECORD",
        "entry_points.txt",
        "licenses/LICENSE",
    }
    shared = {name for name in names if ".data/" in name}
    assert {name.partition(".data/data/share/appjwt-worker/")[2] for name in shared} == {
        name.removeprefix("config/") for name in tracked("config")
    }
    assert names - about - shared == tracked("worker")
    with tarfile.open(sdist) as opened_too:
        names = {name.partition("/")[2] for name in opened_too.getnames()}
    rest = {".gitignore", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    assert names - rest == tracked(*PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"])


@pytest.mark.tool("git")
def test_the_same_commit_makes_the_same_bytes_wherever_and_whenever(tmp_path: Path) -> None:
    made: list[dict[str, bytes]] = []
    for folder, umask in (("here", "022"), ("elsewhere", "077")):
        time.sleep(1.1)  # so that the two have other times on every file
        script = (
            f"umask {umask} && git clone -q {ROOT} {folder} && cd {folder} && exec {sys.executable} -m hatchling build"
        )
        subprocess.run(["sh", "-c", script], cwd=tmp_path, check=True, capture_output=True)
        made.append({each.name: each.read_bytes() for each in (tmp_path / folder / "dist").iterdir()})
    assert {Path(name).suffix for name in made[0]} == {".whl", ".gz"}
    assert made[0] == made[1]


# No secret in the repository

SECRET = re.compile(
    r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}"
    r"|\b(?:hv[sbr])\.[A-Za-z0-9_-]{20,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{20}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{30,}|\bxox[abp]-[0-9A-Za-z-]{20,}"
    r"""|(?i:(?:client_secret|secret_id|password|_token)["']?\s*[:=]\s*["'][a-z0-9+/_-]{24,}["'])"""
)


def secrets_in(text: str) -> list[str]:
    """Adjoining string literals are read as one; LivePerson's published sample is no secret."""
    joined = re.sub(r'"\s*\n\s*"', "", text).replace(SAMPLE, "")
    return [found[:12] for found in SECRET.findall(joined)]


@pytest.mark.tool("git")
def test_no_file_of_the_repository_holds_a_secret() -> None:
    found = {}
    for name in tracked():
        if (ROOT / name).is_file() and (secrets := secrets_in((ROOT / name).read_text(errors="replace"))):
            found[name] = secrets
    assert not found


@pytest.mark.parametrize(
    "planted",
    [
        make_token(),
        "hvs." + secrets.token_urlsafe(40),
        "-----BEGIN " + "PRIVATE KEY-----\n" + secrets.token_hex(32),
        f'client_secret = "{secrets.token_hex(13)}"',
        f"'secret_id': '{secrets.token_hex(16)}'",
        "ghp_" + secrets.token_hex(18),
    ],
    ids=["token", "Vault token", "key", "client_secret", "secret_id", "other token"],
)
def test_a_planted_secret_is_found(planted: str) -> None:
    assert secrets_in(f"some text\nx = {planted}\nmore")
