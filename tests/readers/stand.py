"""A Vault for apps that read tokens, and the line to it, which can break."""

import asyncio
import os
import re
import ssl
import subprocess
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import trustme

from sandbox.openbao import OpenBao
from sandbox.world import POLICIES
from tests.builders import token_of
from tests.integration.processes import Scene, eventually
from tests.integration.servers import Server, pipe

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NAMESPACE = "brand/eu"
ACCOUNTS = ["le81823118", "le81823118/connector-a"]
PLACES = [(account, namespace) for account in ACCOUNTS for namespace in (None, NAMESPACE)]
"""Places of tokens: the account's name, plain and with a slash, and Vault's namespace."""


class Line(Server):
    """Carries connections to Vault. Cut, it hangs up on each request; silent, it never answers."""

    def __init__(self, openbao: OpenBao) -> None:
        self.ca_file = openbao.folder / "line-ca.pem"
        authority, tls = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.cert_pem.write_to_path(self.ca_file)
        authority.issue_cert("127.0.0.1").configure_cert(tls)
        super().__init__(self._carry, tls=tls)
        self._vault = urlsplit(openbao.address).port
        self._vault_tls = ssl.create_default_context(cafile=openbao.ca_file)
        self._state: Literal["open", "cut", "silent"] = "open"
        self.attempts = 0
        """Requests that it did not carry."""

    @contextmanager
    def broken(self, how: Literal["cut", "silent"]) -> Iterator[None]:
        self._change(how)
        try:
            yield
        finally:
            self._change("open")

    def _change(self, state: Literal["open", "cut", "silent"]) -> None:
        self._state = state
        asyncio.run_coroutine_threadsafe(self._end_connections(), self._loop).result()

    async def _end_connections(self) -> None:
        for writer in self._open.values():
            writer.transport.abort()

    async def _carry(self, reader: StreamReader, writer: StreamWriter) -> None:
        match self._state:
            case "cut":
                self.attempts += bool(await reader.read(65536))
                writer.transport.abort()
            case "silent":
                while await reader.read(65536):
                    self.attempts += 1
            case "open":
                vault_reader, vault_writer = await asyncio.open_connection(
                    "127.0.0.1", self._vault, ssl=self._vault_tls
                )
                try:
                    await asyncio.gather(pipe(reader, vault_writer), pipe(vault_reader, writer))
                finally:
                    vault_writer.transport.abort()


@dataclass
class Vault:
    """With KV v2 at secret/, in the root and in the namespace."""

    world: Scene
    line: Line

    def refresh(self, account: str, namespace: str | None = None) -> str:
        """Have the worker obtain a new token, and return it as it is stored."""
        before = self._stored(account, namespace)
        credentials = self.world.liveperson.add_account(account.partition("/")[0])
        self.world.secrets.append(credentials.client_secret)
        with self._within(namespace):
            openbao = self.world.openbao
            openbao.put_account(account, asdict(credentials))
            openbao.policy("appjwt-worker", (POLICIES / "worker.hcl").read_text())
            role_id, secret_id = openbao.approle("appjwt-worker", ["appjwt-worker"])
        file = self.world.folder / "worker_secret_id"
        file.write_text(secret_id)
        login = {"APPJWT_VAULT_ROLE_ID": role_id, "APPJWT_VAULT_SECRET_ID_FILE": str(file)}

        def newer() -> str | None:
            # within the second of the one before it Sentinel has none that expires later
            done = self.world.call("--refresh", account, changes={**login, "APPJWT_VAULT_NAMESPACE": namespace})
            assert done.status == 0, done
            return token if (token := self._stored(account, namespace)) != before else None

        return eventually(newer)

    def _stored(self, account: str, namespace: str | None) -> str | None:
        with self._within(namespace):
            stored = self.world.openbao.get_token(account)
        return stored["access_token"] if stored else None

    def put(self, account: str, remaining: float = 3600, namespace: str | None = None) -> str:
        """Store a new token that expires in so many seconds, and return it."""
        issued = datetime.now(UTC) + timedelta(seconds=remaining - 3600)
        token = token_of(issued, aud=account, jti=time.monotonic_ns())
        exp = str(int(issued.timestamp()) + 3600)
        data = {"access_token": token, "token_type": "Bearer", "exp": exp, "managed_by": "appjwt-worker"}
        with self._within(namespace):
            kv = self.world.openbao.client.secrets.kv.v2
            kv.create_or_update_secret(f"liveperson/tokens/{account}", data)
        return token

    def delete(self, account: str) -> None:
        self.world.openbao.client.secrets.kv.v2.delete_latest_version_of_secret(f"liveperson/tokens/{account}")

    def policy(self, account: str, namespace: str | None = None) -> str:
        """Write the policy for a reader of this account by the command in docs/reading-tokens.md; its name."""
        page = (ROOT / "docs" / "reading-tokens.md").read_text()
        (command,) = re.findall(r"^ +(sed .* config/policies/reader.hcl) \|", page, re.MULTILINE)
        hcl = subprocess.check_output(["sh", "-c", command.replace("ACCOUNT", account)], cwd=ROOT, text=True)
        name = f"reader-{account.replace('/', '-')}"
        with self._within(namespace):
            self.world.openbao.policy(name, hcl)
        return name

    def environment(self, account: str, namespace: str | None = None) -> dict[str, str]:
        """Return the environment of an app that may read this account's token, and nothing else."""
        policy = self.policy(account, namespace)
        with self._within(namespace):
            token = self.world.openbao.token([policy])
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.world.folder),
            "VAULT_ADDR": self.line.url,
            "VAULT_CACERT": str(self.line.ca_file),
            "NODE_EXTRA_CA_CERTS": str(self.line.ca_file),
            "VAULT_TOKEN": token,
            **({"VAULT_NAMESPACE": namespace} if namespace else {}),
        }

    def approle(self, account: str, namespace: str | None, folder: Path) -> None:
        """Leave a login for an agent in the folder: role_id and secret_id."""
        policy = self.policy(account, namespace)
        with self._within(namespace):
            role_id, secret_id = self.world.openbao.approle(policy, [policy])
        (folder / "role_id").write_text(role_id)
        (folder / "secret_id").write_text(secret_id)

    @contextmanager
    def _within(self, namespace: str | None) -> Iterator[None]:
        with self.world.openbao.within(namespace) if namespace else nullcontext():
            yield
