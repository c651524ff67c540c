"""Ways to call the installed command that several tests share."""

import shlex
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.integration.processes import Done, Scene


def side_by_side(*calls: Callable[[], Done]) -> list[Done]:
    """What became of each, in the order given."""
    with ThreadPoolExecutor(4) as pool:
        return [running.result() for running in [pool.submit(call) for call in calls]]


def by_token(scene: Scene, *policies: str, **changes: str) -> dict[str, str | None]:
    """Changes to the settings, for a login by a token with these policies."""
    token = scene.openbao.token(policies)
    scene.secrets.append(token)
    names = ("AUTH_METHOD", "ROLE_ID", "SECRET_ID_FILE")
    return {**{f"APPJWT_VAULT_{name}": None for name in names}, "APPJWT_VAULT_TOKEN": token, **changes}


def operate(scene: Scene, command: str) -> str:
    """Run a command that the worker gave, with OpenBao's own client, as root."""
    vault, *arguments = shlex.split(command)
    assert vault == "vault"
    environment = {
        "PATH": str(Path(sys.executable).parent),
        "HOME": str(scene.folder),
        "BAO_ADDR": scene.openbao.address,
        "BAO_CACERT": str(scene.openbao.ca_file),
        "BAO_TOKEN": scene.openbao.root_token,
    }
    done = subprocess.run(["bao", *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
