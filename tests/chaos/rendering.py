"""A real `bao agent` that renders every account's token into a file, as a sidecar of an app does."""

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from sandbox.openbao import OpenBao, bao
from tests.integration.processes import eventually

SOON = 5.0
"""Seconds from the agent's first successful read after a fault until its files hold the newest tokens."""
_OWN_BACKOFF = 70.0
"""Seconds: after failures the agent itself waits up to a minute until it reads again."""
_TEMPLATE = '{{ with secret "secret/data/liveperson/tokens/NAME" }}{{ .Data.data.access_token }}{{ end }}'


class Rendering:
    """The agent and its rendered files."""

    def __init__(self, folder: Path, vault: OpenBao, names: Iterable[str]) -> None:
        """:param vault: the server that it reads from; the address must not change while this is in use."""
        folder.mkdir()
        self._log = folder / "agent.log"
        self._files = {name: folder / name.replace("/", "-") for name in names}
        token = folder / "token"
        token.write_text(vault.root_token)
        templates = [
            {
                "destination": str(file),
                "contents": _TEMPLATE.replace("NAME", name),
            }
            for name, file in self._files.items()
        ]
        tls = {"ca_cert": str(vault.ca_file)} if vault.ca_file else {}
        self._vault = vault
        self._config = config = folder / "agent.json"
        config.write_text(
            json.dumps(
                {
                    "vault": {"address": vault.address, **tls},
                    "auto_auth": {"method": [{"type": "token_file", "config": {"token_file_path": str(token)}}]},
                    "template_config": {"static_secret_render_interval": "1s", "exit_on_retry_failure": False},
                    "template": templates,
                }
            )
        )
        self._command = [bao(), "agent", f"-config={config}"]

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env={"HOME": str(self._log.parent)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)

    def lead_to(self, vault: OpenBao) -> None:
        """Restart the agent with another server's address."""
        self.__exit__()
        self._config.write_text(self._config.read_text().replace(self._vault.address, vault.address))
        self._vault = vault
        self.__enter__()

    def held(self) -> dict[str, str | None]:
        """Return the fingerprint of the token in each file."""
        return {name: _fingerprint(file) for name, file in self._files.items()}

    def lag(self, newest: Callable[[], dict[str, str | None]]) -> float:
        """Return the seconds from the agent's first new rendering until every file contains the newest token.

        :param newest: the fingerprints in Vault.
        """
        before, first = self.held(), None

        def current() -> bool:
            nonlocal first
            held = self.held()
            if first is None and held != before:
                first = time.monotonic()
            wanted = newest()
            return all(held[name] == wanted.get(name) for name in held)

        eventually(current, _OWN_BACKOFF)
        return time.monotonic() - first if first is not None else 0.0


def _fingerprint(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.exists() else None
