"""A real `bao agent`: it logs in by itself and writes its token to a file, as a sidecar of an app does."""

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from sandbox.openbao import OpenBao, bao
from tests.integration.processes import eventually


class Agent:
    """An agent that logs in by approle when it starts, and renews that login until it stops."""

    def __init__(self, folder: Path, openbao: OpenBao, role_id: str, secret_id: str) -> None:
        folder.mkdir()
        self.sink = folder / "sink"
        self._log = folder / "agent.log"
        self._process: subprocess.Popen[bytes] | None = None
        for name, content in (("role_id", role_id), ("secret_id", secret_id)):
            (folder / name).write_text(content)
        self._config = folder / "agent.json"
        approle = {
            "type": "approle",
            "config": {
                "role_id_file_path": str(folder / "role_id"),
                "secret_id_file_path": str(folder / "secret_id"),
                "remove_secret_id_file_after_reading": False,
            },
        }
        sink = {"type": "file", "config": {"path": str(self.sink), "mode": 0o600}}
        vault = {"address": openbao.address, "ca_cert": str(openbao.ca_file)}
        self._config.write_text(
            json.dumps({"vault": vault, "auto_auth": {"method": [approle], "sinks": [{"sink": sink}]}})
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> str:
        """Start the agent and return its new token, once it is in the file."""
        before = self._token()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [bao(), "agent", f"-config={self._config}"],
                env={"HOME": str(self._config.parent)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return eventually(lambda: token if (token := self._token()) != before else None)

    def stop(self) -> None:
        """Stop the agent, if it runs. Its token remains valid until its expiry."""
        if self._process:
            self._process.terminate()
            self._process.wait(10)
        self._process = None

    def _token(self) -> str | None:
        return self.sink.read_text() if self.sink.exists() else None
