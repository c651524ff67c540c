"""The ways to a Vault token."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import hvac
import requests
from pydantic import SecretStr

from worker.vault.adapter import VaultError


class Login(Protocol):
    @property
    def method(self) -> str: ...

    @property
    def own(self) -> bool:
        """Whether the token is made for us, so that it is ours to revoke."""

    def __call__(self, client: hvac.Client) -> dict[str, Any]:
        """Log in; the `auth` of the answer: client_token, lease_duration (seconds, 0 = endless), renewable."""

    def has_changed(self) -> bool:
        """Whether logging in now would give another token than the last time, though that one may live."""


@dataclass(frozen=True, slots=True)
class AppRoleLogin:
    method: ClassVar[str] = "approle"
    own: ClassVar[bool] = True

    mount: str
    role_id: str
    secret_id_file: Path
    """Read at each login: it may rotate."""

    def __call__(self, client: hvac.Client) -> dict[str, Any]:
        secret_id = _read(self.secret_id_file, "secret_id")
        answer = client.auth.approle.login(self.role_id, secret_id, use_token=False, mount_point=self.mount)
        return dict(answer["auth"])

    def has_changed(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class JwtLogin:
    """The methods kubernetes and jwt: on the wire they are the same."""

    own: ClassVar[bool] = True

    method: str
    mount: str
    role: str
    jwt_file: Path
    """Read at each login: a projected service account token is replaced before it ends."""

    def __call__(self, client: hvac.Client) -> dict[str, Any]:
        jwt = _read(self.jwt_file, "jwt")
        return dict(client.auth.jwt.jwt_login(self.role, jwt, use_token=False, path=self.mount)["auth"])

    def has_changed(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class TokenLogin:
    method: ClassVar[str] = "token"
    own: ClassVar[bool] = False

    token: SecretStr

    def __call__(self, client: hvac.Client) -> dict[str, Any]:
        return _looked_up(client, _sound(self.token.get_secret_value(), "vault.token", "token"), renew=True)

    def has_changed(self) -> bool:
        return False


@dataclass(slots=True)
class TokenFileLogin:
    """The token is somebody else's, such as an Agent's sink: never renewed, and read again on change or its end."""

    method: ClassVar[str] = "token"
    own: ClassVar[bool] = False

    token_file: Path
    _read_at: int | None = field(default=None, init=False)

    def __call__(self, client: hvac.Client) -> dict[str, Any]:
        self._read_at = self._changed_at()
        return _looked_up(client, _read(self.token_file, "token"), renew=False)

    def has_changed(self) -> bool:
        return self._changed_at() not in (None, self._read_at)

    def _changed_at(self) -> int | None:
        try:
            return self.token_file.stat().st_mtime_ns
        except OSError:
            return None


_HINTS: dict[tuple[str, int | None], str] = {
    ("approle", 400): "see vault.role_id and vault.secret_id_file: the secret_id may have ended or be used up",
    ("approle", 403): "see vault.auth_mount",
    ("kubernetes", 400): "see vault.role",
    ("kubernetes", 403): "see the service account, namespace and audience that vault.role is bound to, "
    "vault.auth_mount, and whether Vault reaches the Kubernetes API for a TokenReview",
    ("jwt", 400): "see vault.role, and the subject, audience, issuer and key that it wants",
    ("jwt", 403): "see vault.auth_mount",
    ("token", 403): "see vault.token or vault.token_file: the token may have ended, "
    'or its policy lacks path "auth/token/lookup-self" { capabilities = ["read"] }',
}


def hint(method: str, status: int | None) -> str | None:
    """What to look at after a refused login: Vault itself says as little as it can."""
    return "see vault.namespace" if status == requests.codes.not_found else _HINTS.get((method, status))


def _looked_up(client: hvac.Client, token: str, *, renew: bool) -> dict[str, Any]:
    before, client.token = client.token, token
    try:
        data = client.auth.token.lookup_self()["data"]
    except VaultError:
        client.token = before  # which may live on
        raise
    ttl = data["ttl"] or (1 if data.get("expire_time") else 0)  # 0 is endless, or less than a second
    return {"client_token": token, "lease_duration": ttl, "renewable": renew and data["renewable"]}


def _read(file: Path, what: str) -> str:
    source = f"vault.{what}_file {file}"
    try:
        return _sound(file.read_text(encoding="utf-8", errors="replace"), source, what)
    except OSError as error:
        raise VaultError(f"{source} cannot be read: {(error.strerror or 'unknown').lower()}") from None


def _sound(text: str, source: str, what: str) -> str:
    """The one word that a token or a secret_id is, so that it can go into a header."""
    word = text.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", word):
        raise VaultError(f"{source} {f'holds more than a {what}' if word else 'is empty'}")
    return word
