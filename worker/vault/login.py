"""The ways to a Vault token."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import hvac
from pydantic import SecretStr

from worker.vault.adapter import VaultError


class Login(Protocol):
    method: ClassVar[str]
    own: ClassVar[bool]
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


def _looked_up(client: hvac.Client, token: str, *, renew: bool) -> dict[str, Any]:
    before, client.token = client.token, token
    try:
        data = client.auth.token.lookup_self()["data"]
    except VaultError:
        client.token = before  # which may live on
        raise
    return {"client_token": token, "lease_duration": data["ttl"], "renewable": renew and data["renewable"]}


def _read(file: Path, what: str) -> str:
    source = f"the {what} file {file}"
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
