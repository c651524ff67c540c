"""LivePerson and OpenBao together, set up so that the installed command can run with the worker's policy."""

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import sandbox
from sandbox.liveperson import Credentials, LivePerson
from sandbox.openbao import OpenBao

POLICIES = Path(sandbox.__file__).parent.parent / "config" / "policies"
_COMMAND = "appjwt-worker"


class World:
    """`settings` is the environment that the command needs; change it before the command is started."""

    def __init__(
        self,
        folder: Path,
        *,
        token_life: timedelta = timedelta(hours=1),
        vault_tls: bool = True,
        audit: bool = False,
        openbao: OpenBao | None = None,
    ) -> None:
        """:param openbao: one that runs, and that the caller stops; None = a new dev server."""
        self._folder = folder
        self._running = ExitStack()
        self.liveperson = LivePerson(folder, token_life=token_life)
        self.openbao = openbao or OpenBao(folder, tls=vault_tls, audit=audit)
        self._has_own_openbao = openbao is None
        self.settings: dict[str, str] = {}
        self.secrets: list[str] = []
        """Values that must never appear in any output, as far as they were made here."""

    def __enter__(self) -> Self:
        self._running.enter_context(self.liveperson)
        if self._has_own_openbao:
            self._running.enter_context(self.openbao)
        self.openbao.policy("appjwt-worker", (POLICIES / "worker.hcl").read_text())
        role_id, secret_id = self.openbao.approle("appjwt-worker", ["appjwt-worker"])
        self.secrets += secret_id, self.openbao.root_token
        secret_id_file = self._folder / "secret_id"
        secret_id_file.write_text(secret_id)
        secret_id_file.chmod(0o600)
        self.settings = {
            "APPJWT_VAULT_ADDRESS": self.openbao.address,
            "APPJWT_VAULT_AUTH_METHOD": "approle",
            "APPJWT_VAULT_ROLE_ID": role_id,
            "APPJWT_VAULT_SECRET_ID_FILE": str(secret_id_file),
            "APPJWT_SENTINEL_DOMAIN_API": self.liveperson.domain_api,
            "APPJWT_SENTINEL_ALLOWED_HOSTS": ",".join(self.liveperson.hosts.values()),
            "APPJWT_SENTINEL_CA_CERT": str(self.liveperson.ca_file),
            "APPJWT_HTTP_LISTEN": "",
        }
        if self.openbao.ca_file:
            self.settings["APPJWT_VAULT_CA_CERT"] = str(self.openbao.ca_file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def add_account(self, name: str, region: str = "va", **fields: object) -> Credentials:
        """Add an account known to LivePerson, and its secret, with these fields too, where the worker looks for it."""
        credentials = self.liveperson.add_account(str(fields.get("account_id", name.partition("/")[0])), region)
        self.secrets.append(credentials.client_secret)
        self.openbao.put_account(name, {**asdict(credentials), **fields})
        return credentials

    def environment(self) -> dict[str, str]:
        """Return the environment of the command: nothing of ours but what any process needs, and `settings`."""
        ours = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        return {**ours, "HOME": str(self._folder), **self.settings}

    def command(self, *flags: str) -> list[str]:
        """Return the installed command of the Python that runs this."""
        installed = shutil.which(_COMMAND, path=str(Path(sys.executable).parent))
        if installed is None:
            raise RuntimeError(f"{_COMMAND} is not installed beside {sys.executable}")
        return [installed, *flags]

    def run(self, *flags: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a mode to its end."""
        return subprocess.run(
            self.command(*flags), env=self.environment(), capture_output=True, text=True, timeout=timeout, check=False
        )
