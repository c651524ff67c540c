"""OpenBao servers whose data outlives them: raft storage, one node or three. They unseal and set themselves up."""

import base64
import json
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import requests
from hvac.exceptions import VaultError

from sandbox.openbao import OpenBao, bao

_VOTERS_WITHIN: Final = 60.0
"""Seconds. A new node has no vote for its first twelve."""
_HEALTHY: Final = 1.0
"""Seconds that a node has to say how it is."""


class RaftNode(OpenBao):
    """A server in clear with KV v2 at `secret/`. After a kill `start` brings it back with all that it knew."""

    def __init__(
        self,
        folder: Path,
        *,
        seal_key: str | None = None,
        root_token: str | None = None,
        joins: "Sequence[RaftNode]" = (),
    ) -> None:
        """:param joins: the nodes of the cluster that it joins, whose key and root token it shares; none = new ones."""
        folder.mkdir(exist_ok=True)
        super().__init__(folder, tls=False)
        self.seal_key = seal_key or base64.b64encode(secrets.token_bytes(32)).decode()
        if root_token:
            self.root_token = self.client.token = root_token
        self._joins = joins

    def _command(self) -> list[str]:
        data, config = self.folder / "raft", self.folder / "server.hcl"
        data.mkdir(exist_ok=True)
        host, _, port = self._listen.partition(":")
        cluster = f"{host}:{int(port) + 1}"
        joins = " ".join(f'retry_join {{ leader_api_addr = "{node.address}" }}' for node in self._joins)
        config.write_text(f"""
            storage "raft" {{
              path = {json.dumps(str(data))}
              node_id = "{self.folder.name}"
              performance_multiplier = 1
              {joins}
            }}
            listener "tcp" {{ address = "{self._listen}" cluster_address = "{cluster}" tls_disable = true }}
            api_addr = "{self.address}"
            cluster_addr = "https://{cluster}"
            seal "static" {{ current_key_id = "sandbox" current_key = "{self.seal_key}" }}
            {"" if self._joins else self._initialize()}
        """)
        return [bao(), "server", f"-config={config}"]

    def _initialize(self) -> str:
        return f"""
            initialize "sandbox" {{
              request "root" {{
                operation = "update"
                path = "auth/token/create"
                data = {{ id = "{self.root_token}" policies = ["root"] no_parent = true }}
              }}
              request "kv" {{
                operation = "update"
                path = "sys/mounts/secret"
                data = {{ type = "kv" options = {{ version = "2" }} }}
              }}
            }}
        """

    def _is_ready(self) -> bool:
        """Return True if it serves, also as a standby."""
        try:
            self.client.secrets.kv.v2.read_configuration("secret")
        except (OSError, VaultError):
            return False
        return True

    def is_active(self) -> bool:
        try:
            answer = requests.get(f"{self.address}/v1/sys/health", timeout=_HEALTHY)
        except requests.RequestException:
            return False
        return bool(answer.status_code == requests.codes.ok)


class Cluster:
    """Three nodes, of which one leads."""

    def __init__(self, folder: Path) -> None:
        first = RaftNode(folder / "node-0")
        shared = {"seal_key": first.seal_key, "root_token": first.root_token}
        self.nodes = [first, *(RaftNode(folder / f"node-{number}", joins=[first], **shared) for number in (1, 2))]

    def __enter__(self) -> Self:
        try:
            self.nodes[0].start()
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda node: node.start(), self.nodes[1:]))
            self._wait_for_voters()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.__exit__(None, None, None), self.nodes))

    def leader(self) -> RaftNode:
        """Return the leader; between two leaders it waits for the next."""
        while True:
            for node in self.nodes:
                if node.is_active():
                    return node
            time.sleep(0.05)

    def step_down(self) -> None:
        """Let another one lead."""
        self.leader().client.sys.step_down()

    def _wait_for_voters(self) -> None:
        """Wait until a majority remains when one node stops."""
        give_up = time.monotonic() + _VOTERS_WITHIN
        while self._voters() < len(self.nodes):
            if time.monotonic() > give_up:
                raise TimeoutError(f"not every node had a vote in {_VOTERS_WITHIN:.0f} s")
            time.sleep(0.2)

    def _voters(self) -> int:
        with suppress(OSError, VaultError):
            answer = self.nodes[0].client.sys.read_raft_config()
            return sum(server["voter"] for server in answer["data"]["config"]["servers"])
        return 0
