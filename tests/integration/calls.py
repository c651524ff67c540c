"""Ways to call the installed command that several tests share."""

import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.integration.processes import Done, Scene, Settings
from worker.schedule.boottime import boottime
from worker.vault.accounts import AccountStore
from worker.vault.kv import VaultKv
from worker.vault.operation import Operation
from worker.vault.session import VaultSession
from worker.vault.tokens import TokenStore


def run_concurrently(*calls: Callable[[], Done]) -> list[Done]:
    """Run the calls in parallel, and return their results in the order given."""
    with ThreadPoolExecutor(4) as pool:
        return [running.result() for running in [pool.submit(call) for call in calls]]


def by_token(scene: Scene, *policies: str, **changes: str) -> dict[str, str | None]:
    """Changes to the settings, for a login by a token with these policies."""
    token = scene.openbao.token(policies)
    scene.secrets.append(token)
    names = ("AUTH_METHOD", "ROLE_ID", "SECRET_ID_FILE")
    return {**{f"APPJWT_VAULT_{name}": None for name in names}, "APPJWT_VAULT_TOKEN": token, **changes}


def on_a_terminal(world: Scene, *flags: str, changes: Settings | None = None) -> tuple[int, str, str]:
    """Run the command on a terminal; return its exit status, stdout, and what it wrote to the terminal as stderr."""
    ours, theirs = pty.openpty()
    environment = world.environment({"TERM": "xterm", "COLUMNS": "100", **(changes or {})})
    with subprocess.Popen(
        world.command(*flags), env=environment, stdout=subprocess.PIPE, stderr=theirs, text=True
    ) as process:
        os.close(theirs)
        output = b""
        try:
            while piece := os.read(ours, 65536):
                output += piece
        except OSError:  # the other end is closed
            pass
        os.close(ours)
        assert process.stdout
        out = process.stdout.read()
    world.keep(out, output.decode())
    return process.returncode, out, output.decode()


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


def account_store(session: VaultSession, prefix: str = "liveperson/accounts", mount: str = "secret") -> AccountStore:
    """Return the account store, assembled as in wiring."""
    return AccountStore(VaultKv(session, mount, read=Operation.READ_ACCOUNT), prefix=prefix)


def token_store(session: VaultSession, prefix: str = "liveperson/tokens") -> TokenStore:
    """Return the token store likewise, at secret/."""
    return TokenStore(
        VaultKv(session, "secret", read=Operation.READ_TOKEN, only_v2=True), prefix=prefix, clock=boottime
    )
