"""The examples for agents, by real ones: `bao agent` renders a token into a file, `bao proxy` serves it to an app."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from sandbox.openbao import bao
from tests.integration.processes import eventually
from tests.readers.stand import EXAMPLES, PLACES, Vault

every_place = pytest.mark.parametrize(("account", "namespace"), PLACES)


@contextmanager
def running(
    kind: str, vault: Vault, account: str, namespace: str | None, folder: Path, changes: dict[str, str]
) -> Iterator[None]:
    """Run the example in the folder, with these texts of it replaced too."""
    vault.approle(account, namespace, folder)
    config = (EXAMPLES / f"{kind}.hcl").read_text()
    for old, new in {
        "https://vault.example.com:8200": vault.line.url,
        "vault-ca.pem": str(vault.line.ca_file),
        **({"# namespace": "namespace"} if namespace else {}),
        **changes,
    }.items():
        assert old in config
        config = config.replace(old, new)
    (folder / f"{kind}.hcl").write_text(config)
    with subprocess.Popen(
        [bao(), kind, f"-config={kind}.hcl"],
        cwd=folder,
        env={"HOME": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield
        finally:
            process.terminate()


@every_place
def test_an_agent_renders_the_token_and_its_successor(
    account: str, namespace: str | None, vault: Vault, tmp_path: Path
) -> None:
    file = tmp_path / "appjwt"
    token = vault.refresh(account, namespace)
    with running("agent", vault, account, namespace, tmp_path, {"le81823118": account, '"1m"': '"1s"'}):
        eventually(lambda: file.exists() and file.read_text() == token)
        assert file.stat().st_mode & 0o777 == 0o600
        successor = vault.refresh(account, namespace)
        eventually(lambda: file.read_text() == successor)


@pytest.mark.parametrize("how", ["cut", "silent"])
def test_an_agent_leaves_the_last_token_in_the_file_while_vault_is_away_or_hangs_or_has_none(
    how: Literal["cut", "silent"], vault: Vault, tmp_path: Path
) -> None:
    file, account = tmp_path / "appjwt", "le1"
    token = vault.put(account)
    with running("agent", vault, account, None, tmp_path, {"le81823118": account, '"1m"': '"1s"'}):
        eventually(lambda: file.exists() and file.read_text() == token)
        vault.delete(account)
        with vault.line.broken(how):
            enough = vault.line.attempts + (3 if how == "cut" else 1)  # the first that hangs does so for a minute
            eventually(lambda: vault.line.attempts >= enough)
        assert file.read_text() == token
        successor = vault.put(account)
        eventually(lambda: file.read_text() == successor)


def test_an_agent_renders_an_expired_token_too(vault: Vault, tmp_path: Path) -> None:
    """A reader of the file therefore has to check `exp`."""
    file, account = tmp_path / "appjwt", "le1"
    token = vault.put(account, remaining=-1)
    with running("agent", vault, account, None, tmp_path, {"le81823118": account, '"1m"': '"1s"'}):
        eventually(lambda: file.exists() and file.read_text() == token)


class App:
    """An app that uses read_token.py through a `bao proxy`, without a login."""

    def __init__(self, account: str, namespace: str | None, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self._environment = {"HOME": str(folder), "ACCOUNT": account, "VAULT_ADDR": f"http://{self.address}"}
        if namespace:
            self._environment["VAULT_NAMESPACE"] = namespace

    def read(self) -> str:
        """Return the token, or nothing where there is none."""
        command = [sys.executable, str(EXAMPLES / "read_token.py")]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False, timeout=60)
        return done.stdout.strip()


@every_place
def test_a_proxy_serves_the_newest_token_to_apps_without_a_login(
    account: str, namespace: str | None, vault: Vault, tmp_path: Path
) -> None:
    app = App(account, namespace, tmp_path)
    with running("proxy", vault, account, namespace, tmp_path, {"127.0.0.1:8100": app.address}):
        for _ in ("first", "successor"):
            token = vault.refresh(account, namespace)
            assert eventually(app.read) == token


@pytest.mark.parametrize("how", ["cut", "silent"])
def test_through_a_proxy_an_app_has_no_token_while_vault_is_away_or_hangs_and_has_the_newest_after(
    how: Literal["cut", "silent"], vault: Vault, tmp_path: Path
) -> None:
    app = App("le1", None, tmp_path)
    token = vault.put("le1")
    with running("proxy", vault, "le1", None, tmp_path, {"127.0.0.1:8100": app.address}):
        assert eventually(app.read) == token
        with vault.line.broken(how):
            assert app.read() == ""
        token = vault.put("le1")
        assert eventually(app.read) == token


def test_through_a_proxy_an_app_takes_no_expired_and_no_deleted_token(vault: Vault, tmp_path: Path) -> None:
    app = App("le1", None, tmp_path)
    token = vault.put("le1")
    with running("proxy", vault, "le1", None, tmp_path, {"127.0.0.1:8100": app.address}):
        assert eventually(app.read) == token
        vault.put("le1", remaining=-1)
        assert app.read() == ""
        token = vault.put("le1")
        assert eventually(app.read) == token
        vault.delete("le1")
        assert app.read() == ""
