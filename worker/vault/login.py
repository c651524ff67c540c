"""The ways to a Vault token."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

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

    @property
    def pauses(self) -> Sequence[float]:
        """Seconds after the first refusal, the second and so on until the same login is tried again."""

    def has_changed(self) -> bool:
        """Whether what it shows to Vault was replaced since it logged in, or tried to."""


WORD: Final = re.compile(r"[\x21-\x7e]+")
"""What can go into a header; of anything else the library would quote it."""

_PAUSES: Final = (5.0,)
_APPROLE_PAUSES: Final = (30.0, 901.0)
"""Vault locks a role out for 15 minutes after five refused logins within 15 minutes, and replicas share the role."""


class _File:
    """One word in a file, which others replace."""

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self._what = what
        self._read_at: int | None = None

    def read(self) -> str:
        """VaultError names the file and what is wrong with it."""
        self._read_at = self._changed_at()
        source = f"vault.{self._what}_file {self._path}"
        try:
            return _sound(self._path.read_text(encoding="utf-8", errors="replace"), source, self._what)
        except OSError as error:
            raise VaultError(f"{source} cannot be read: {(error.strerror or 'unknown').lower()}") from None

    def has_changed(self) -> bool:
        return self._changed_at() not in (None, self._read_at)

    def _changed_at(self) -> int | None:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return None


@dataclass(slots=True)
class AppRoleLogin:
    method: ClassVar[str] = "approle"
    own: ClassVar[bool] = True
    pauses: ClassVar[Sequence[float]] = _APPROLE_PAUSES

    mount: str
    role_id: str
    secret_id_file: Path
    """Read at each login: it may rotate."""
    _file: _File = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._file = _File(self.secret_id_file, "secret_id")

    def __call__(self, client: hvac.Client) -> dict[str, Any]:
        secret_id = self._file.read()
        answer = client.auth.approle.login(self.role_id, secret_id, use_token=False, mount_point=self.mount)
        return dict(answer["auth"])

    def has_changed(self) -> bool:
        return self._file.has_changed()


@dataclass(slots=True)
class JwtLogin:
    """The methods kubernetes and jwt: on the wire they are the same."""

    own: ClassVar[bool] = True
    pauses: ClassVar[Sequence[float]] = _PAUSES

    method: str
    mount: str
    role: str
    jwt_file: Path
    """Read at each login: a projected service account token is replaced before it ends."""
    _file: _File = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._file = _File(self.jwt_file, "jwt")

    def __call__(self, client: hvac.Client) -> dict[str, Any]:
        jwt = self._file.read()
        return dict(client.auth.jwt.jwt_login(self.role, jwt, use_token=False, path=self.mount)["auth"])

    def has_changed(self) -> bool:
        return self._file.has_changed()


@dataclass(frozen=True, slots=True)
class TokenLogin:
    method: ClassVar[str] = "token"
    own: ClassVar[bool] = False
    pauses: ClassVar[Sequence[float]] = _PAUSES

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
    pauses: ClassVar[Sequence[float]] = _PAUSES

    token_file: Path
    _file: _File = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._file = _File(self.token_file, "token")

    def __call__(self, client: hvac.Client) -> dict[str, Any]:
        return _looked_up(client, self._file.read(), renew=False)

    def has_changed(self) -> bool:
        return self._file.has_changed()


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


def _sound(text: str, source: str, what: str) -> str:
    """The one word that a token or a secret_id is, so that it can go into a header."""
    word = text.strip()
    if not WORD.fullmatch(word):
        raise VaultError(f"{source} {f'holds more than a {what}' if word else 'is empty'}")
    return word
